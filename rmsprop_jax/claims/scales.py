"""Claim 1: the step adapts per parameter, which helps on ill-scaled problems."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..lab import pictures
from . import picture
from .claim import Claim, summary_of
from .contenders import CONTENDERS, OURS, SGD, grids
from .grid import OnPart, Plan, sweep
from .problems import quadratic, quadratics
from .sweep import Sweep
from .verdict import Statement, better

CONDITIONS = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)

# By name: whether axes are rotated, and whether parameters have units of their own.
GEOMETRIES = {
    "along the axes": (0.0, 0.0),
    "rotated": (1.0, 0.0),
    "along the axes, distances unlike": (0.0, 1.0),
    "rotated, distances unlike": (1.0, 1.0),
}

RULE = (
    "squared distance to the optimum after the same number of steps, RMSProp's over "
    "that of the better SGD: the interval lies below 1 / 1.1"
)


def measure(plan: Plan, on_part: OnPart) -> dict[str, Sweep]:
    """Returns a sweep over condition numbers for each geometry."""
    settings = {
        f"{name}: {condition:g}": quadratic(
            condition=condition, rotated=rotated, units=units
        )
        for name, (rotated, units) in GEOMETRIES.items()
        for condition in plan.some(CONDITIONS)
    }
    problem = quadratics(plan.steps(200), online=False)
    grid = grids(12, 3e-3, 1e-3, 1e-3, 3e-2, 3e-3)
    found = sweep(problem, CONTENDERS, settings, grid, plan, on_part)
    return {name: found.part(name) for name in GEOMETRIES}


def judge(found: Mapping[str, Sweep]) -> list[Statement]:
    """Returns one statement, with a criterion for each geometry and condition."""
    criteria = [
        criterion
        for name, swept in found.items()
        for criterion in better(
            f"{name}, at condition", swept.settings, swept.against(OURS, SGD)
        )
    ]
    return [Statement("it helps on ill-scaled problems", RULE, criteria)]


def draw(figure: Figure, found: Mapping[str, Sweep]) -> None:
    """Draws the distance against the condition number, a frame for each geometry."""
    every = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    for axes, (name, swept) in zip(every, found.items(), strict=True):
        picture.by_setting(axes, [float(x) for x in swept.settings], swept)
        axes.set_title(name, fontsize=10)
        axes.set_xscale("log")
    for axes in every[2:]:
        axes.set_xlabel("condition number")
    for axes in every[::2]:
        axes.set_ylabel("squared distance / start")
    pictures.legend_below(figure, every[0])


CLAIM = Claim(
    "scales",
    "the step adapts to every parameter's scale",
    measure, judge, draw, summary_of, size=(11, 7.6),
)  # fmt: skip
