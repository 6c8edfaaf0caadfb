"""The sweeps of a command, one after the other, each with its checkpoints."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoints
from . import train
from .optimizers import LABELS, MakeOptimizer, default_learning_rates
from .progress import Observer
from .report import Outcome
from .tasks import Task

# What a sweep has to have in common with its checkpoints, besides what is its own.
_SETTINGS = ("seeds", "decay", "eps", "momentum", "centered", "nu_dtype")


def outcomes(
    tasks: Sequence[Task],
    make: Mapping[str, MakeOptimizer],
    options: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
    observer: Observer,
) -> list[Outcome]:
    """Trains every optimizer on every task.

    Args:
      tasks: the tasks.
      make: the optimizers by name.
      options: those of the command.
      sizes: steps and batch size by task, where the options have none.
      observer: opens the display of a sweep.

    Raises:
      OSError: if a checkpoint cannot be written.
      ValueError: if those that there are have other settings, or none is whole.
    """
    done: list[Outcome] = []
    number = itertools.count()
    for task in tasks:
        steps, batch_size = sizes[task.name]
        steps = options["steps"] or steps
        batch_size = options["batch_size"] or batch_size
        sweeps = {}
        for name in options["optimizers"]:
            rates = options["lrs"] or default_learning_rates(task.name, name)
            settings = {
                "task": task.name, "optimizer": name, "lrs": rates, "steps": steps,
                "batch_size": batch_size, **{key: options[key] for key in _SETTINGS},
            }  # fmt: skip
            # Numbered, so that a command with other tasks meets these, and says so.
            folder = _folder(options["checkpoint_dir"], next(number))
            with (
                observer(f"{task.name}  {LABELS[name]}", steps) as on_progress,
                Checkpoints(folder, keep=2, settings=settings)
                if folder
                else contextlib.nullcontext() as checkpoints,
            ):
                sweeps[name] = train.sweep(
                    task, make[name], rates, options["seeds"], steps, batch_size,
                    on_progress, checkpoints,
                )  # fmt: skip
        done.append(Outcome(task, sweeps, batch_size))
    return done


def refusal(checkpoint_dir: Path | None, resume: bool) -> str | None:
    """Returns what is wrong with the two options together."""
    if checkpoint_dir is None:
        return "argument --resume: needs --checkpoint-dir" if resume else None
    first = _folder(checkpoint_dir, 0)
    if first and not resume and Checkpoints(first).steps:
        return (
            f"argument --checkpoint-dir: {checkpoint_dir} has checkpoints: add "
            "--resume to go on, or name another folder"
        )
    return None


def _folder(checkpoint_dir: Path | None, number: int) -> Path | None:
    return checkpoint_dir and checkpoint_dir / f"sweep-{number + 1}"
