"""What a run of the command leaves behind."""

import argparse
import dataclasses
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bench import results
from .claim import Claim
from .grid import Plan
from .verdict import RULE

NAME = "results"


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


def content(found: Mapping[str, Any], plan: Plan, began: float) -> dict[str, Any]:
    """Returns what goes into the JSON: settings, versions, machine, and all claims."""
    settings = dataclasses.asdict(plan) | {
        "rule": RULE,
        "seeds_that_choose_rates": list(range(plan.tuning)),
        "seeds_reported": list(range(plan.tuning, plan.tuning + plan.seeds)),
    }
    return results.content(
        "claims", {"settings": settings, "claims": dict(found)}, plan.quick,
        time.perf_counter() - began,
    )  # fmt: skip


def write(folder: Path, content: Any, pictures: Mapping[str, bytes]) -> Path:
    """Writes the JSON and the pictures, all or none; returns the path of the JSON."""
    return results.write(folder, NAME, content, pictures)
