"""`rmsprop-jax claims`: what is said of RMSProp, tested."""

import argparse
import base64
import dataclasses
import time
from typing import Any

from ..lab.options import add_output, add_seeds, fail, needed

# By name: the module that has it, as CLAIM, and about how many seconds it takes.
CLAIMS = {
    "scales": ("scales", 40.0),
    "drift": ("drift", 90.0),
    "noise": ("noise", 70.0),
    "rnn": ("recurrent", 200.0),
    "decay": ("averages", 10.0),
    "eps": ("epsilon", 20.0),
    "adam": ("adam", 1.0),
    "bf16": ("equivalence", 60.0),
}

DESCRIPTION = """\
Test what is said of RMSProp, in small experiments against SGD, Adagrad and Adam, with
learning rates that other seeds chose. Prints a verdict for each claim, computed from
confidence intervals by a rule that is printed too. Writes results.json, a picture of
each claim and one of all verdicts. All takes about ten minutes on two cores.
"""

EPILOG = """\
claims: scales (ill-scaled problems), drift (objectives that change), noise (small
batches, heavy tails), rnn (vanishing and exploding gradients), decay (memory), eps,
adam (RMSProp or Adam: where?), bf16 (round_params or float32 master weights)

example: rmsprop-jax claims scales eps --out results
"""

FILES = ("results.json", "summary.png", *(f"{name}.png" for name in CLAIMS))


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
    add_seeds(parser, "seeds that are reported (default: 10)")
    parser.add_argument(
        "--resume", action="store_true",
        help="keep the claims, and the parts of bf16, that a run with these settings "
        "has left in --out",
    )  # fmt: skip
    add_output(parser, "rmsprop-jax-claims", FILES)


def run(arguments: argparse.Namespace) -> int:
    """Runs the experiments, prints the verdicts, writes the files."""
    began = time.perf_counter()
    try:
        from ..lab import pictures, progress, results
        from . import claim, summary, tables
    except ModuleNotFoundError as error:
        return fail("claims", needed(error, "bench"))
    plan = claim.plan_of(arguments)
    names = list(dict.fromkeys(arguments.claims or CLAIMS))
    kept = results.Cells(arguments.out, "claims", arguments.resume)
    found: dict[str, Any] = {}
    try:
        kept.begin(dataclasses.asdict(plan))
        total = sum(CLAIMS[name][1] for name in names)
        with progress.live(arguments.quiet, total, lambda x: CLAIMS[x][1]) as show:
            for name in names:
                parts = results.Cells(arguments.out, name, arguments.resume)
                with show(name, 100) as on_step:
                    found[name] = kept.of(
                        name,
                        lambda module=CLAIMS[name][0], parts=parts, tell=on_step: (
                            claim.tested(
                                claim.load(module), plan,
                                lambda part: tell(round(100 * part)), parts,
                            )
                        ),
                    )  # fmt: skip
    except ModuleNotFoundError as error:
        return fail("claims", needed(error, "bench"))
    except (OSError, ValueError) as error:
        return fail("claims", error)
    # With the parts of a claim, so that a run that goes on need not draw it again.
    drawn = {
        f"{name}.png": base64.b64decode(found[name].pop("picture")) for name in names
    }
    drawn["summary.png"] = pictures.png(summary.figure(found))
    tables.show(found)
    content = results.content(
        "claims", claim.content(found, plan), arguments, time.perf_counter() - began
    )
    status = results.finish("claims", arguments, "results", content, drawn)
    if not status:
        kept.done()
    return status


def _name(string: str) -> str:
    if string not in CLAIMS:
        raise argparse.ArgumentTypeError(
            f"must be names from {', '.join(CLAIMS)}, got {string!r}"
        )
    return string
