"""The sweeps of the demo over rates and seeds, one optimizer after the other."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoints
from ..diagnostics import best_rate
from ..lab.contenders import LABELS
from ..lab.program import Contender
from ..lab.progress import Show
from ..lab.statistics import mean
from ..lab.tasks import Task, learning
from ..lab.training import OnPoint, keys_of, points, train
from .optimizers import GRIDS, contenders

EVALUATIONS = 12
"""Points of a learning curve, besides the one before training."""

# What a sweep has to have in common with its checkpoints, besides what is its own.
_SETTINGS = ("seeds", "decay", "eps", "momentum", "centered", "nu_dtype")


@dataclasses.dataclass(frozen=True)
class Tried:
    """What the training of one optimizer gave.

    Attributes:
      learning_rates: [rates], ascending.
      evaluated_at: [evaluations], numbers of steps; the first is 0, the last all.
      validation_loss: [evaluations, rates, seeds].
      best: the index of the rate whose mean final validation loss is lowest.
      test_loss: [seeds], at the best rate after the last step.
      test_accuracy: [seeds], likewise.
      parameters: how many the net has.
      state_bytes_per_parameter: of the optimizer's state, for one run.
      step_seconds: wall time per step and run, without compilation and evaluation.
      compile_seconds: wall time until the first step could run.
    """

    learning_rates: np.ndarray
    evaluated_at: np.ndarray
    validation_loss: np.ndarray
    best: int
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    parameters: int
    state_bytes_per_parameter: float
    step_seconds: float
    compile_seconds: float

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate is the first or last of its grid."""
        return self.best in (0, len(self.learning_rates) - 1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that was tried on one task, by the optimizer's name."""

    task: Task
    tried: dict[str, Tried]
    batch_size: int

    @property
    def title(self) -> str:
        """The task, its net and its training in words."""
        first = next(iter(self.tried.values()))
        steps = int(first.evaluated_at[-1])
        return (
            f"{self.task.name}: {self.task.title}\n{first.parameters} parameters, "
            f"{steps} step{'s' * (steps > 1)} of batch size {self.batch_size}, "
            f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        )

    @property
    def seeds(self) -> int:
        """How many runs there are for each optimizer and learning rate."""
        return len(next(iter(self.tried.values())).test_loss)

    @property
    def test_losses(self) -> dict[str, np.ndarray]:
        """The test loss [seeds] of every optimizer."""
        return {name: tried.test_loss for name, tried in self.tried.items()}


def sweep(
    task: Task,
    contender: Contender,
    learning_rates: Sequence[float],
    seeds: int,
    steps: int,
    batch_size: int,
    on_point: OnPoint = lambda step, values: None,
    checkpoints: Checkpoints | None = None,
) -> Tried:
    """Trains `seeds` nets at every learning rate and tests those at the best one.

    A seed stands for initial parameters and batches: they are the same for every
    learning rate and every optimizer, so differences may be taken seed by seed. With
    `checkpoints` it goes on from the newest, and makes one after every evaluation.
    """
    name = "it"
    found = train(
        learning(task, steps, batch_size, schedule=None), {name: contender}, [0.0],
        {name: learning_rates}, keys_of(range(seeds)), points(steps, EVALUATIONS),
        on_point, checkpoints=checkpoints,
    )  # fmt: skip
    losses = found.values[name][:, 0]
    best = best_rate(losses[-1])
    tested = found.report({name: [best]})[name]
    return Tried(
        learning_rates=np.asarray(learning_rates, float),
        evaluated_at=found.at,
        validation_loss=losses,
        best=best,
        test_loss=tested["test_loss"][0],
        test_accuracy=tested["test_accuracy"][0],
        parameters=found.parameters,
        state_bytes_per_parameter=found.state_bytes[name] / found.parameters,
        step_seconds=found.seconds / steps / losses[0].size,
        compile_seconds=found.compile_seconds,
    )


def outcomes(
    tasks: Sequence[Task],
    options: Mapping[str, Any],
    defaults: Mapping[str, tuple[int, int]],
    show: Show,
) -> list[Outcome]:
    """Trains every optimizer on every task.

    Args:
      tasks: the tasks.
      options: those of the command.
      defaults: steps and batch size by task, where the options have none.
      show: opens the display of a sweep.

    Raises:
      OSError: if a checkpoint cannot be written.
      ValueError: if those that there are have other settings, or none is whole.
    """
    made = contenders(options)
    done: list[Outcome] = []
    number = itertools.count()
    for task in tasks:
        steps, batch_size = (
            options[key] or default
            for key, default in zip(
                ("steps", "batch_size"), defaults[task.name], strict=True
            )
        )
        found = {}
        for name in options["optimizers"]:
            rates = options["lrs"] or GRIDS[task.name][name]
            settings = {
                "task": task.name, "optimizer": name, "lrs": rates, "steps": steps,
                "batch_size": batch_size, **{key: options[key] for key in _SETTINGS},
            }  # fmt: skip
            # Numbered, so that a command with other tasks meets these, and says so.
            folder = _folder(options["checkpoint_dir"], next(number))
            with (
                show(f"{task.name}  {LABELS[name]}", steps) as on_step,
                Checkpoints(folder, keep=2, settings=settings)
                if folder
                else contextlib.nullcontext() as checkpoints,
            ):
                found[name] = sweep(
                    task, made[name], rates, options["seeds"], steps, batch_size,
                    lambda step, values, tell=on_step: tell(step, note(values)),
                    checkpoints,
                )  # fmt: skip
        done.append(Outcome(task, found, batch_size))
    return done


def note(values: Mapping[str, np.ndarray]) -> str:
    """Describes the best rate so far of validation losses [settings, rates, seeds]."""
    lowest = (np.where(np.isfinite(x), x, np.inf) for x in values.values())
    return f"validation loss {min(mean(x).min() for x in lowest):.3f}"


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
