"""`rmsprop-jax claims`: what is said of RMSProp, tested."""

import argparse
import sys
import time
from typing import Any

from ..demo.command import add_output, needed, number

# By name: the module that has it, as CLAIM.
CLAIMS = {
    "scales": "scales",
    "drift": "drift",
    "noise": "noise",
    "rnn": "recurrent",
    "decay": "averages",
    "eps": "epsilon",
    "adam": "adam",
    "bf16": "equivalence",
}

DESCRIPTION = """\
Test what is said of RMSProp, in small experiments against SGD, Adagrad and Adam, with
learning rates that other seeds chose. Prints a verdict for each claim, computed from
confidence intervals by a rule that is printed too. Writes results.json and a picture of
each claim.
"""

EPILOG = """\
claims: scales (ill-scaled problems), drift (objectives that change), noise (small
batches, heavy tails), rnn (vanishing and exploding gradients), decay (memory), eps,
adam (RMSProp or Adam: where?), bf16 (round_params or float32 master weights)

example: rmsprop-jax claims scales eps --out results
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "claims", nargs="*", metavar="NAME", type=_name,
        help=f"of {', '.join(CLAIMS)} (default: all)",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--full", action="store_true",
        help="30 seeds instead of 10, and for bf16 four nets instead of one: hours",
    )  # fmt: skip
    size.add_argument(
        "--quick", action="store_true",
        help="a few steps, to see that it runs: the verdicts mean nothing",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", metavar="N", help="seeds that are reported (default: 10)",
        type=number(int, "a whole number, at least 2", lambda x: x >= 2),
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="keep the parts of bf16 that a run with these settings has left in --out",
    )  # fmt: skip
    add_output(parser, "rmsprop-jax-claims")


def run(arguments: argparse.Namespace) -> int:
    """Runs the experiments, prints the verdicts, writes the files."""
    began = time.perf_counter()
    try:
        from . import picture, tables
        from .cells import Cells
        from .report import content, load, plan_of, write
    except ModuleNotFoundError as error:
        return _fail(needed(error, "bench"))
    plan = plan_of(arguments)
    found: dict[str, Any] = {}
    pictures = {}
    from ..bench.progress import live

    with live(arguments.quiet) as show:
        for name in dict.fromkeys(arguments.claims or CLAIMS):
            claim = load(CLAIMS[name])
            cells = Cells(arguments.out, claim.name, arguments.resume)
            kept = (cells,) if claim.resumable else ()
            with show(claim.name, 100) as on_step:
                started = time.perf_counter(), time.process_time()
                try:
                    measured = claim.measure(
                        plan,
                        lambda part, on_step=on_step: on_step(round(100 * part)),
                        *kept,
                    )
                except ModuleNotFoundError as error:
                    return _fail(needed(error, "bench"))
                except (OSError, ValueError) as error:
                    if not kept:
                        raise
                    return _fail(str(error))
            found[name] = {
                "claim": claim.title,
                "seconds": time.perf_counter() - started[0],
                "processor_seconds": time.process_time() - started[1],
                "statements": [s.judged() for s in claim.judge(measured)],
                **claim.summary(measured),
            }
            pictures[f"{name}.png"] = picture.png(
                claim.draw, measured, claim.title, claim.size
            )
    tables.show(found)
    try:
        path = write(arguments.out, content(found, plan, began), pictures)
    except OSError as error:
        return _fail(f"could not write to {arguments.out}: {error}")
    if not arguments.quiet:
        seconds = time.perf_counter() - began
        print(f"{path} and {', '.join(pictures)}, after {seconds:.0f} seconds")
    return 0


def _name(string: str) -> str:
    if string not in CLAIMS:
        raise argparse.ArgumentTypeError(
            f"must be names from {', '.join(CLAIMS)}, got {string!r}"
        )
    return string


def _fail(message: str) -> int:
    print(f"rmsprop-jax claims: error: {message}", file=sys.stderr)
    return 1
