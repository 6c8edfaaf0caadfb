"""`rmsprop-jax bench`: speed without a word, another benchmark with one."""

import argparse
import importlib

from . import speed

# By name: the module, which has `add_arguments(parser)` and `run(arguments) -> int`,
# and one line of help.
BENCHMARKS = {
    "storage": ("storage", "what narrow optimizer state costs in accuracy"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmarks and their options."""
    speed.add_arguments(parser)
    parser.set_defaults(run_benchmark=speed.run)
    words = parser.add_subparsers(
        dest="benchmark", metavar="BENCHMARK", title="another benchmark",
        description="with options of its own: rmsprop-jax bench BENCHMARK --help",
    )  # fmt: skip
    for name, (module_name, summary) in BENCHMARKS.items():
        module = importlib.import_module(f"{__package__}.{module_name}")
        benchmark = words.add_parser(name, help=summary, allow_abbrev=False)
        module.add_arguments(benchmark)
        benchmark.set_defaults(run_benchmark=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the benchmark that was named; returns the exit status."""
    return arguments.run_benchmark(arguments)
