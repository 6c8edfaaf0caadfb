"""What an experiment is to the command, and how it is run."""

import argparse
import base64
import dataclasses
import functools
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..lab import pictures
from ..lab.results import Cells
from .grid import OnPart, Plan
from .sweep import Sweep
from .verdict import RULE, Statement


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and the experiment that tests it.

    Attributes:
      name: on the command line.
      title: the claim in words.
      measure: runs the experiment; nothing else does.
      judge: from what was measured to what is judged.
      draw: likewise, on an empty figure.
      summary: likewise, to what goes into the JSON, with `notes`.
      size: of the picture, in inches.
      resumable: whether `measure` takes `Cells`, and keeps in them what it has done.
    """

    name: str
    title: str
    measure: Callable[..., Any]
    judge: Callable[[Any], Sequence[Statement]]
    draw: Callable[[Figure, Any], None]
    summary: Callable[[Any], dict[str, Any]]
    size: tuple[float, float] = (11.0, 4.6)
    resumable: bool = False


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Returns how much the options ask for."""
    plan = Plan()
    if arguments.full:
        plan = Plan(seeds=30, tuning=6, full=True)
    if arguments.quick:
        plan = Plan(seeds=3, tuning=1, part=0.05, quick=True)
    return dataclasses.replace(plan, seeds=arguments.seeds or plan.seeds)


def load(module: str) -> Claim:
    """Returns the claim of a module beside this one."""
    return importlib.import_module(f"{__package__}.{module}").CLAIM


def tested(claim: Claim, plan: Plan, on_part: OnPart, parts: Cells) -> dict[str, Any]:
    """Runs a claim's experiment; returns what goes into the JSON, and the picture.

    The picture, "picture", is a PNG in base64.
    """
    started = time.perf_counter(), time.process_time()
    kept = (parts,) if claim.resumable else ()
    measured = claim.measure(plan, on_part, *kept)
    statements = [statement.judged() for statement in claim.judge(measured)]
    figure = pictures.figure(claim.size, title(statements))
    claim.draw(figure, measured)
    return {
        "claim": claim.title,
        "seconds": time.perf_counter() - started[0],
        "processor_seconds": time.process_time() - started[1],
        "statements": statements,
        **claim.summary(measured),
        "picture": base64.b64encode(pictures.png(figure)).decode(),
    }


def title(statements: Sequence[Mapping[str, Any]]) -> str:
    """Returns what was found, a line for each statement."""
    return "\n".join(
        f"{statement['claim']}: {statement['verdict']} "
        f"(met {statement['counts']['met']} of {sum(statement['counts'].values())})"
        for statement in statements
    )


def content(found: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Returns what goes into the JSON: the settings, and all claims."""
    settings = dataclasses.asdict(plan) | {
        "rule": RULE,
        "seeds_that_choose_rates": list(range(plan.tuning)),
        "seeds_reported": list(range(plan.tuning, plan.tuning + plan.seeds)),
    }
    return {"settings": settings, "claims": dict(found)}


def summary_of(sweeps: Mapping[str, Sweep]) -> dict[str, Any]:
    """Returns the summary of an experiment that is made of sweeps."""
    return {
        "notes": [
            f"{name}: {note}"
            for name, found in sweeps.items()
            for note in found.notes()
        ],
        "sweeps": {name: found.summary() for name, found in sweeps.items()},
    }


def once(measure: Callable[[Plan, OnPart], Any]) -> Callable[[Plan, OnPart], Any]:
    """Remembers what was measured with a plan: two claims share some experiments."""
    found: dict[Plan, Any] = {}

    @functools.wraps(measure)
    def remembered(plan: Plan, on_part: OnPart) -> Any:
        if plan not in found:
            found[plan] = measure(plan, on_part)
        on_part(1.0)
        return found[plan]

    return remembered
