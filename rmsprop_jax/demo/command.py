"""`rmsprop-jax demo`: its options, and what it does in which order."""

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _install
from .optimizers import LABELS, make_optimizers

# By task: steps and batch size.
DEFAULTS = {"digits": (240, 32), "text": (120, 16), "bf16": (2400, 32)}
BF16 = "bf16"
"""The task that compares forms of RMSProp, in a program of its own."""

FILES: tuple[str, ...] = ("curves.png", "bf16.png", "results.json")
"""What a run of all tasks writes into its folder."""

EXTRA = ("matplotlib", "mnist1d", "orbax", "rich", "scipy", "sklearn")
"""The packages that only the extras bring."""

DESCRIPTION = """\
Train a small convolutional net on scikit-learn's handwritten digits and a character
GRU on the text of Python's own manual, with RMSProp, SGD, Adagrad and Adam; then, task
bf16, a fully connected net in bfloat16 with RMSProp in every form, and beside float32.
Each one's learning rate is chosen on validation data; the tables report test data.
"""

EPILOG = """\
example: rmsprop-jax demo --task digits --optimizers rmsprop,adam --steps 500
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    count = number(int, "a whole number, at least 1", lambda x: x >= 1)
    fraction = number(float, "a number in [0, 1)", lambda x: 0 <= x < 1)
    steps, batch_size = (
        ", ".join(f"{values[i]} for {name}" for name, values in DEFAULTS.items())
        for i in (0, 1)
    )
    run = parser.add_argument_group("training")
    run.add_argument("--task", choices=[*DEFAULTS, "all"], default="all")
    run.add_argument(
        "--steps", type=count, metavar="N", help=f"updates of a run (default: {steps})"
    )
    run.add_argument(
        "--batch-size", type=count, metavar="N", help=f"(default: {batch_size})"
    )
    run.add_argument(
        "--seeds", type=count, default=5, metavar="N",
        help="number of seeds, each with its initial parameters and its batches, the "
        "same for all optimizers (default: 5)",
    )  # fmt: skip
    run.add_argument(
        "--optimizers", type=_names, default=list(LABELS), metavar="NAMES",
        help=f"separated by commas (default: {','.join(LABELS)})",
    )  # fmt: skip
    run.add_argument(
        "--lrs", type=_rates, metavar="RATES",
        help="learning rates to try with every optimizer, such as 1e-3,1e-2,1e-1 "
        "(default: five for each task and optimizer; four for bf16)",
    )  # fmt: skip
    rms = parser.add_argument_group(
        "RMSProp alone", "bf16 takes decay and eps; its own forms are the rest."
    )
    rms.add_argument("--decay", type=fraction, default=0.9, help="(default: 0.9)")
    rms.add_argument(
        "--eps", default=1e-8, help="(default: 1e-8)",
        type=number(float, "a number, at least 0", lambda x: x >= 0),
    )  # fmt: skip
    rms.add_argument("--momentum", type=fraction, help="(default: none)")
    rms.add_argument(
        "--centered", action="store_true", help="divide by the standard deviation"
    )
    rms.add_argument(
        "--nu-dtype", choices=("float32", "bfloat16", "uint16", "uint8"),
        default="float32", help="what the average is stored in (default: float32)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=folder, default="rmsprop-jax-demo", metavar="FOLDER",
        help=f"for {' and '.join(FILES)} (default: rmsprop-jax-demo)",
    )  # fmt: skip
    output.add_argument(
        "--checkpoint-dir", type=folder, metavar="FOLDER",
        help="for checkpoints of digits and text, one at every point of a curve "
        "(default: none)",
    )  # fmt: skip
    output.add_argument(
        "--resume", action="store_true",
        help="go on from the checkpoints in --checkpoint-dir, if there are any",
    )  # fmt: skip
    output.add_argument("--quiet", action="store_true", help="print the table alone")


def run(arguments: argparse.Namespace) -> int:
    """Trains, prints a table for each task, writes the files; returns the status."""
    began = time.perf_counter()
    names = list(DEFAULTS) if arguments.task == "all" else [arguments.task]
    try:
        from . import bf16, bf16_report, files, picture, progress, report, sweeps, tasks

        loaded = [tasks.TASKS[name]() for name in names if name != BF16]
        # Digits', which it trains on.
        examples = {BF16: len(tasks.digits().train.inputs)} if BF16 in names else {}
    except ModuleNotFoundError as error:
        return _fail(needed(error, "demo"))
    refusal = sweeps.refusal(arguments.checkpoint_dir, arguments.resume)
    if refusal is not None:
        return _fail(refusal, status=2)
    make = make_optimizers(
        arguments.decay,
        arguments.eps,
        arguments.momentum,
        arguments.centered,
        arguments.nu_dtype,
    )
    examples |= {task.name: len(task.train.inputs) for task in loaded}
    for name, most in examples.items():
        if (arguments.batch_size or 0) > most:
            return _fail(
                f"argument --batch-size: must be at most {most}, the number of "
                f"examples that {name} trains on, got {arguments.batch_size}",
                status=2,
            )
    narrow = None
    try:
        with progress.live(arguments.quiet) as observer:
            outcomes = sweeps.outcomes(
                loaded, make, vars(arguments), DEFAULTS, observer
            )
            if BF16 in names:
                narrow = bf16.measure(arguments, *DEFAULTS[BF16], observer)
    except (OSError, ValueError) as error:
        if arguments.checkpoint_dir is None:
            raise
        return _fail(str(error))
    report.show(outcomes)
    contents = {"curves.png": picture.png(outcomes)} if outcomes else {}
    seconds = time.perf_counter() - began
    results = files.results(outcomes, vars(arguments), seconds)
    if narrow is not None:
        bf16_report.show(narrow)
        contents["bf16.png"] = bf16_report.png(narrow)
        results["tasks"][BF16] = bf16_report.results(narrow)
        results["compile_seconds"] += narrow.compile_seconds
    contents["results.json"] = files.json_bytes(results)
    try:
        files.write(arguments.out, contents)
    except OSError as error:
        return _fail(f"could not write to {arguments.out}: {error}")
    if not arguments.quiet:
        paths = ", ".join(str(arguments.out / name) for name in contents)
        print(f"{paths}, after {time.perf_counter() - began:.0f} seconds")
    return 0


def _fail(message: str, status: int = 1) -> int:
    print(f"rmsprop-jax demo: error: {message}", file=sys.stderr)
    return status


def number(
    kind: Callable[[str], Any], accepted: str, holds: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """Returns a converter for argparse that accepts finite numbers of a kind."""

    def convert(string: str) -> Any:
        try:
            value = kind(string)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {string!r}")
        return value

    return convert


def _names(string: str) -> list[str]:
    names = list(dict.fromkeys(name.strip().lower() for name in string.split(",")))
    if not set(names) <= set(LABELS):
        accepted = f"names from {','.join(LABELS)}, separated by commas"
        raise argparse.ArgumentTypeError(f"must be {accepted}, got {string!r}")
    return names


def _rates(string: str) -> list[float]:
    # Larger ones are infinite in float32.
    accepted = "numbers greater than 0, less than 1e38, separated by commas"
    rate = number(float, accepted, lambda x: 0 < x < 1e38)
    try:
        return sorted({rate(part) for part in string.split(",")})
    except argparse.ArgumentTypeError:
        message = f"must be {accepted}, got {string!r}"
        raise argparse.ArgumentTypeError(message) from None


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the options of a command that writes results."""
    parser.add_argument(
        "--out", type=folder, default=default, metavar="FOLDER",
        help=f"for the results (default: {default})",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print the tables alone")


def needed(error: ModuleNotFoundError, extra: str) -> str:
    """Says what to install; raises the error if it is not about an extra's package."""
    if error.name is None or error.name.split(".")[0] not in EXTRA:
        raise error
    return f"needs {error.name}: {_install.command(extra)}"


def folder(string: str) -> Path:
    """Refuses, before anything is trained, a folder that cannot be written to.

    It is made and written to, and nothing of that is left.
    """
    path = Path(string)
    made = []
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(None, f"{nearest} is a file")
        made = missing
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
        for name in FILES:
            if (path / name).is_dir():
                raise IsADirectoryError(None, f"{path / name} is a folder")
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"must be a folder to write to, got {string!r}: {error.strerror}"
        ) from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return path
