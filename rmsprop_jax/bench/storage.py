"""`rmsprop-jax bench storage`: what narrow optimizer state costs in accuracy."""

import argparse
import sys
import time

from ..demo.command import add_output, needed, number

PARTS = ("tracking", "training")

DESCRIPTION = """\
tracking: the error of the average and of the steps against float64, on streams of
gradients. training: the test loss of three small tasks with each dtype of nu, paired
by seed with that of float32. Writes tracking.json and training.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.description = DESCRIPTION
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument(
        "--seeds", metavar="N", help="pairs of runs of a task (default: 10, digits 40)",
        type=number(int, "a whole number, at least 2", lambda x: x >= 2),
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="a few steps, to see that it runs: the numbers mean nothing",
    )  # fmt: skip
    add_output(parser, "rmsprop-jax-bench")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables, writes each part when it is done."""
    try:
        from . import results, tables, tracking, training
        from .progress import live
    except ModuleNotFoundError as error:
        return _fail(needed(error, "bench"))
    measures = {
        "tracking": lambda show: tracking.measure(arguments.quick, show),
        "training": lambda show: training.measure(
            arguments.quick, arguments.seeds, show
        ),
    }
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        began = time.perf_counter()
        with live(arguments.quiet) as show:
            found = measures[part](show)
        tables.SHOW[part](found)
        seconds = time.perf_counter() - began
        try:
            content = results.content(
                f"storage {part}", found, arguments.quick, seconds
            )
            path = results.write(arguments.out, part, content)
        except OSError as error:
            return _fail(f"could not write to {arguments.out}: {error}")
        if not arguments.quiet:
            print(f"{path}, after {seconds:.0f} seconds")
    return 0


def _fail(message: str) -> int:
    print(f"rmsprop-jax bench storage: error: {message}", file=sys.stderr)
    return 1
