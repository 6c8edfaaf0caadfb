"""`rmsprop-jax bench storage`: what narrow optimizer state costs in accuracy."""

import argparse
import time

from ..lab.options import add_output, add_seeds, fail, needed

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
    add_seeds(parser, "pairs of runs of a task (default: 10, digits 40)")
    parser.add_argument(
        "--quick", action="store_true",
        help="a few steps, to see that it runs: the numbers mean nothing",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="keep the parts that a run with these settings has left in --out",
    )  # fmt: skip
    files = [f"{part}{ending}.json" for part in PARTS for ending in ("", "-cells")]
    add_output(parser, "rmsprop-jax-bench", files)


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables, writes each part when it is done."""
    command = "bench storage"
    try:
        from ..lab import progress, results
        from . import tables, tracking, training
    except ModuleNotFoundError as error:
        return fail(command, needed(error, "bench"))
    modules = {"tracking": tracking, "training": training}
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        began = time.perf_counter()
        cells = results.Cells(arguments.out, part, arguments.resume)
        measure = modules[part].measure
        try:
            number = modules[part].stretches()
            with progress.live(arguments.quiet, number) as show:
                found = measure(arguments.quick, arguments.seeds, show, cells)
        except (OSError, ValueError) as error:
            return fail(command, error)
        tables.SHOW[part](found)
        content = results.content(
            f"storage {part}", found, arguments, time.perf_counter() - began
        )
        if status := results.finish(command, arguments, part, content):
            return status
        cells.done()
    return 0
