"""`rmsprop-jax demo`: its options, and what it does in which order."""

import argparse
import time
from typing import Any

from ..lab.options import add_output, fail, folder, names_of, needed, number, rates
from .optimizers import NAMES

# By task, in the order that they run: steps and batch size.
DEFAULTS = {"bf16": (2400, 32), "digits": (240, 32), "text": (120, 16)}
BF16 = "bf16"
"""The task that compares forms of RMSProp, in a program of its own."""

FILES = ("curves.png", "bf16.png", "results.json")
"""What a run of all tasks writes into its folder."""

WEIGHTS = {"bf16": 14.0, "digits": 5.0, "text": 7.0}
"""Seconds by task, of digits and text for each optimizer: for the bar alone."""

DESCRIPTION = """\
First, task bf16: train a small fully connected net in bfloat16 with RMSProp in every
form, beside float32. Then train a convolutional net on scikit-learn's handwritten
digits and a character GRU on the text of Python's own manual, with RMSProp, SGD,
Adagrad and Adam. Each one's learning rate is chosen on validation data; the tables
report test data. All takes about a minute on two cores.
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
        "--optimizers", type=names_of(NAMES), default=list(NAMES), metavar="NAMES",
        help=f"separated by commas (default: {','.join(NAMES)})",
    )  # fmt: skip
    run.add_argument(
        "--lrs", type=rates, metavar="RATES",
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
    add_output(output, "rmsprop-jax-demo", FILES)
    output.add_argument(
        "--checkpoint-dir", type=folder(), metavar="FOLDER",
        help="for checkpoints of digits and text, one at every point of a curve "
        "(default: none)",
    )  # fmt: skip
    output.add_argument(
        "--resume", action="store_true",
        help="go on from the checkpoints in --checkpoint-dir, if there are any",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Trains, prints a table for each task, writes the files; returns the status."""
    began = time.perf_counter()
    options = vars(arguments)
    names = list(DEFAULTS) if arguments.task == "all" else [arguments.task]
    try:
        from ..lab import pictures, progress, results, tables, tasks
        from . import bf16, bf16_report, picture, report, sweeps

        loaded = {
            name: bf16.task() if name == BF16 else tasks.TASKS[name]() for name in names
        }
    except ModuleNotFoundError as error:
        return fail("demo", needed(error, "demo"))
    refusal = sweeps.refusal(arguments.checkpoint_dir, arguments.resume)
    if refusal is not None:
        return fail("demo", refusal, status=2)
    for name, task in loaded.items():
        most = len(task.train.inputs)
        if (arguments.batch_size or 0) > most:
            return fail(
                "demo",
                f"argument --batch-size: must be at most {most}, the number of "
                f"examples that {name} trains on, got {arguments.batch_size}",
                status=2,
            )
    compared = [task for name, task in loaded.items() if name != BF16]
    number = {name: 1 if name == BF16 else len(arguments.optimizers) for name in names}
    narrow = None
    try:
        with progress.live(
            arguments.quiet,
            sum(number[name] * WEIGHTS[name] for name in names),
            lambda label: WEIGHTS[label.split()[0]],
        ) as show:
            if BF16 in names:
                narrow = bf16.measure(options, *DEFAULTS[BF16], show)
            outcomes = sweeps.outcomes(compared, options, DEFAULTS, show)
    except (OSError, ValueError) as error:
        if arguments.checkpoint_dir is None:
            raise
        return fail("demo", error)
    found: dict[str, Any] = {}
    contents, lines, compiling = {}, [], 0.0
    if narrow is not None:
        bf16_report.show(narrow)
        contents["bf16.png"] = pictures.png(bf16_report.figure(narrow))
        found[BF16] = bf16_report.results(narrow)
        compiling += narrow.compile_seconds
        lines += [f"{BF16}: test loss beside {bf16.MASTER}"]
        lines += [f"  {line}" for line in bf16_report.verdicts(narrow)]
    for outcome in outcomes:
        report.show(outcome)
        found[outcome.task.name] = report.results(outcome)
        compiling += sum(tried.compile_seconds for tried in outcome.tried.values())
        lines += [f"{outcome.task.name}: {report.verdict(outcome.test_losses)}"]
    if outcomes:
        contents["curves.png"] = pictures.png(picture.figure(outcomes))
    tables.findings(*lines)
    seconds = time.perf_counter() - began
    content = results.content(
        "demo", {"compile_seconds": compiling, "tasks": found}, arguments, seconds
    )
    content["versions"] = content.pop("machine")
    return results.finish("demo", arguments, "results", content, contents)
