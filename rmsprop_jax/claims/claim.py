"""What an experiment is to the command."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .grid import OnPart, Plan
from .sweep import Sweep
from .verdict import Statement


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
