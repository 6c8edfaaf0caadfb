"""Claim 7: Adam is more robust; RMSProp can hold with very noisy or shifting data."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..lab import pictures
from . import drift, noise
from .claim import Claim, summary_of
from .contenders import ADAM, OURS
from .grid import OnPart, Plan, stretches
from .sweep import Sweep
from .verdict import Statement, as_good, better, within

LOSS_RULE = (
    "measure at the tuned rate, Adam's over RMSProp's: the interval lies below 1 / 1.1"
)
WIDTH_RULE = (
    "range of rates that work, Adam's less RMSProp's, in decades: the interval lies "
    "above 0"
)
HOLD_RULE = (
    "measure at the tuned rate, RMSProp's over Adam's: the interval lies below 1.1"
)


def measure(plan: Plan, on_part: OnPart) -> dict[str, Sweep]:
    """Returns the sweeps of the claims on noise and drift, which are not run twice."""
    first, second = stretches(on_part, 2)
    return {**noise.measure(plan, first), **drift.measure(plan, second)}


def _group(name: str) -> str:
    return drift.GROUPS.get(name) or noise.group(name)


def hard(name: str, setting: str) -> bool:
    """Returns whether a setting is very noisy (small batch, heavy tails) or shifts."""
    if name in drift.GROUPS:
        return drift.changing(name, setting)
    if name == noise.HEAVY:
        return setting != "normal"
    return int(name.split()[-1]) <= 4


def judge(found: Mapping[str, Sweep]) -> list[Statement]:
    """Returns two statements for Adam and one for RMSProp."""
    lower, ranges, holds = [], [], []
    for name, swept in found.items():
        group, ats = _group(name), swept.settings
        lower += better(group, ats, swept.against(ADAM, (OURS,)))
        ranges += within(group, ats, swept.wider(ADAM, (OURS,)), low=0.0)
        keep = [i for i, at in enumerate(ats) if hard(name, at)]
        ours = swept.against(OURS, (ADAM,))[keep]
        holds += as_good(group, [ats[i] for i in keep], ours)
    return [
        Statement("Adam reaches a lower loss than RMSProp", LOSS_RULE, lower),
        Statement("for Adam more rates work than for RMSProp", WIDTH_RULE, ranges),
        Statement(
            "RMSProp holds against Adam on very noisy or shifting data",
            HOLD_RULE,
            holds,
        ),
    ]


def draw(figure: Figure, found: Mapping[str, Sweep]) -> None:
    """Draws RMSProp's measure over Adam's, and the difference of their ranges."""
    left, right = figure.subplots(1, 2, sharey=True)
    ratios, widths = {}, {}
    for name, swept in found.items():
        ratio = swept.against(OURS, (ADAM,))
        width = swept.wider(OURS, (ADAM,))
        for i, at in enumerate(swept.settings):
            ratios[f"{_group(name)}: {at}"] = ratio[i]
            widths[f"{_group(name)}: {at}"] = width[i]
    ours, theirs = (pictures.STYLES[name][0] for name in (OURS, ADAM))
    pictures.intervals(left, ratios, pictures.sides(ours, theirs))
    pictures.intervals(right, widths, pictures.sides(theirs, ours))
    for axes in (left, right):
        axes.axvline(0, color=pictures.GREY, linewidth=0.8)
    left.set_xlabel("log10 of RMSProp's measure / Adam's")
    right.set_xlabel("decades of rates that work, RMSProp − Adam")
    figure.supxlabel(
        "orange: RMSProp is better; blue: Adam; grey: the 95 % interval has 0",
        fontsize=9,
    )


CLAIM = Claim(
    "adam", "Adam is often more robust; RMSProp can hold with noisy or shifting data",
    measure, judge, draw, lambda found: {**summary_of(found), "sweeps": {}},
    size=(12, 7.5),
)  # fmt: skip
