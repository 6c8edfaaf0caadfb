"""`rmsprop-jax bench`: how fast a step is here, or on a TPU that is not here."""

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import _install
from ..lab.options import add_output, fail, names_of, needed
from .gpus import GPUS
from .rows import BASE, ROWS, installed
from .shapes import QUICK, SHAPES

TRAINING = "training-step"
"""In the place of a shape: an ordinary training step."""

FILES = ("speed.json", "speed.png", "tpu.json", "gpu.json")

DESCRIPTION = """\
How long a whole step of an optimizer takes on this device (update and application,
compiled, in place), beside what else is installed, and how close that is to the
device's own bandwidth; for one array, and for the parameters of real models. Writes
speed.json and speed.png. With --tpu or --gpu: what XLA makes of the step there,
compiled ahead of time without one, exactly. Writes tpu.json or gpu.json.
"""

NEEDED = {
    "tpu": "libtpu: {install}",
    "gpu": "JAX's CUDA plugin: {install}, or what compiles only: "
    "pip install --no-deps {light}",
}
"""What each option needs, and how to get it."""

EPILOG = """\
examples: rmsprop-jax bench --shapes 1e7,gpt2 --rows ours,ours-uint8,optax.adam
          rmsprop-jax bench --tpu v5e:2x2,v5p:2x2x1
          rmsprop-jax bench --gpu h100,h100:8,h100:2x8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    shapes = (*SHAPES, TRAINING)
    parser.add_argument(
        "--quick", action="store_true", help="fewer shapes, rows and rounds"
    )
    parser.add_argument(
        "--shapes", type=names_of(shapes), metavar="NAMES",
        help=f"separated by commas (default: {','.join(shapes)})",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=names_of(ROWS), metavar="NAMES",
        help="optimizers, however long they take (default: of those that are "
        f"installed, what takes no minutes: {','.join(ROWS)})",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=_earlier, metavar="OLD.json",
        help="show ratios to the times in a speed.json of an earlier run",
    )  # fmt: skip
    ahead = parser.add_mutually_exclusive_group()
    ahead.add_argument(
        "--tpu", metavar="TOPOLOGIES", type=lambda string: string.split(","),
        help="exact facts for TPUs instead, such as v5e:2x2 or v5e:16x16: needs libtpu",
    )  # fmt: skip
    ahead.add_argument(
        "--gpu", metavar="GPUS", type=lambda string: string.split(","),
        help=f"exact facts for GPUs instead ({', '.join(GPUS)}), such as h100, h100:8 "
        "or h100:2x8 for two nodes: needs JAX's CUDA plugin",
    )  # fmt: skip
    add_output(parser, "rmsprop-jax-bench", FILES)


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables, writes the files; returns the status."""
    began = time.perf_counter()
    try:
        from ..lab import pictures, progress, results
        from . import ahead_tables, comparison, picture, speed_tables
    except ModuleNotFoundError as error:
        return fail("bench", needed(error, "bench"))
    others = {}
    option = "tpu" if arguments.tpu else "gpu" if arguments.gpu else None
    if option:
        for name in ("shapes", "rows", "compare"):
            if getattr(arguments, name):
                message = f"argument --{name}: does not go with --{option}"
                return fail("bench", message, status=2)
        try:
            with progress.live(arguments.quiet, _stretches(arguments)) as show:
                found = _facts(option, arguments, show)
        except ModuleNotFoundError:
            return fail("bench", f"--{option} needs {_needed_for(option)}")
        except ValueError as error:
            return fail("bench", f"argument --{option}: {error}", status=2)
        ahead_tables.show(found)
    else:
        missing = [n for n in arguments.rows or () if not installed(ROWS[n])]
        if missing:
            packages = " and ".join(ROWS[missing[0]].packages)
            return fail("bench", f"{missing[0]} needs {packages}: not installed")
        shapes = _shapes(arguments)
        with progress.live(arguments.quiet, len(shapes)) as show:
            found = _measured(arguments, shapes, show)
        speed_tables.show(found)
        if arguments.compare:
            comparison.show(found, arguments.compare)
    name, seconds = option or "speed", time.perf_counter() - began
    content = results.content(name, found, arguments, seconds)
    if not option:
        others = {"speed.png": pictures.png(picture.figure(content))}
    return results.finish("bench", arguments, name, content, others)


def _stretches(arguments: argparse.Namespace) -> int:
    """Returns how many tables are compiled ahead of time."""
    if arguments.quick:
        return 2 * len(arguments.tpu or arguments.gpu)
    alone = [name for name in arguments.gpu or () if ":" not in name]
    return 6 * len(arguments.tpu or arguments.gpu) + 3 * len(alone)


def _facts(option: str, arguments: argparse.Namespace, show: Any) -> dict[str, Any]:
    from . import ahead, targets

    names = getattr(arguments, option)
    topologies = {name: targets.BY_OPTION[option](name) for name in names}
    return {
        "topologies": {
            name: ahead.measure(devices, arguments.quick, show)
            for name, devices in topologies.items()
        }
    }


def _needed_for(option: str) -> str:
    from .targets import light_list

    install, light = _install.command(option), " ".join(light_list())
    return NEEDED[option].format(install=install, light=light)


def _shapes(arguments: argparse.Namespace) -> list[str]:
    default = _quick_shapes() if arguments.quick else SHAPES
    return arguments.shapes or [*default, TRAINING]


def _measured(
    arguments: argparse.Namespace, shapes: list[str], show: Any
) -> dict[str, Any]:
    from . import cells, training_step

    # Or JAX takes most of a GPU's memory, and torch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    quick, named = arguments.quick, arguments.rows
    seconds = 0.5 if quick else 3.0
    limits = () if named else (seconds / 3, 1.5 * seconds, 6 * seconds)
    budget = cells.Budget(*limits)
    absent = {
        name: " and ".join(row.packages)
        for name, row in ROWS.items()
        if not named and not installed(row)
    }
    found: dict[str, Any] = {
        "settings": {"seconds_for_rounds": seconds, "not_installed": absent},
        "shapes": {},
    }
    for name in shapes:
        with show(name, 100) as on_step:

            def on_part(part: float, on_step: Any = on_step) -> None:
                on_step(int(100 * part))

            if name == TRAINING:
                found["training_step"] = training_step.measure(seconds, quick, on_part)
                continue
            leaves = SHAPES[name]()
            rows = _with_twins(named) if named else _default_rows(leaves, quick)
            found["shapes"][name] = cells.measure(
                leaves, [row for row in ROWS if row in rows], seconds, budget, on_part,
                rounds=1 if quick else 3,
            )  # fmt: skip
    return found


def _quick_shapes() -> tuple[str, ...]:
    """Returns a few shapes, with one that is limited by memory where that is quick."""
    import jax

    return QUICK if jax.default_backend() == "cpu" else (*QUICK, "1e8")


def _with_twins(names: Iterable[str]) -> set[str]:
    """Returns rows with those that they are compared with."""
    return {BASE, *names} | {ROWS[name].twin for name in names}


def _default_rows(leaves: list[tuple[int, ...]], quick: bool) -> list[str]:
    large = len(leaves) == 1 and leaves[0][0] >= 10**7
    return [
        name
        for name, row in ROWS.items()
        if installed(row) and (row.quick or not quick) and (large or not row.slow)
    ]


def _earlier(string: str) -> dict[str, Any]:
    """Refuses, before anything is measured, a file of something else."""
    from ..lab import results
    from . import comparison

    try:
        found = results.read(Path(string), "speed")
        comparison.times(found)
        return found
    except (AttributeError, KeyError, TypeError):
        reason = "it has no times"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise argparse.ArgumentTypeError(
        f"must be a speed.json of an earlier run, got {string!r}: {reason}"
    )
