"""Claim 2: it copes with objectives that change."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..lab import pictures
from . import picture
from .claim import Claim, once, summary_of
from .contenders import ADAGRAD, CONTENDERS, OURS, SGD, grids
from .grid import OnPart, Plan, stretches, sweep
from .problems import quadratic, quadratics, stream
from .sweep import Sweep
from .verdict import Statement, as_good, better

SPEEDS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PERIODS = (0.0, 400.0, 100.0, 25.0)

DRIFTING, JUMPING, STREAM = "drifting optimum", "and gradients that jump", "stream"

AGAINST_ADAGRAD = (
    "mean measure along the run, RMSProp's over Adagrad's: the interval lies below "
    "1 / 1.1"
)
AGAINST_SGD = (
    "the same over the better SGD's: the interval lies below 1.1, no more than a tenth "
    "worse"
)


@once
def measure(plan: Plan, on_part: OnPart) -> dict[str, Sweep]:
    """Returns sweeps over speeds, over speeds with jumps, and over shifts of a stream.

    Everything starts far from the optimum, rates are constant.
    """
    first, second = stretches(on_part, 2)
    settings = {
        f"{name}: {speed:g}": quadratic(
            condition=100.0, noise=0.3, speed=speed, period=period
        )
        for name, period in ((DRIFTING, 0.0), (JUMPING, 100.0))
        for speed in plan.some(SPEEDS)
    }
    tracked = sweep(
        quadratics(plan.steps(1000), online=True),
        CONTENDERS, settings, grids(9, 3e-3, 1e-3, 1e-4, 3e-2, 3e-3), plan, first,
    )  # fmt: skip
    found = {name: tracked.part(name) for name in (DRIFTING, JUMPING)}
    found[STREAM] = sweep(
        stream(plan.steps(800)),
        CONTENDERS,
        {_every(period): {"period": period} for period in plan.some(PERIODS)},
        grids(7, 3e-4, 1e-2, 1e-3, 1e-2, 3e-4), plan, second,
    )  # fmt: skip
    return found


def _every(period: float) -> str:
    return f"every {period:g} steps" if period else "never"


def changing(name: str, setting: str) -> bool:
    """Returns whether the objective changes at a setting."""
    return name == JUMPING or setting not in ("0", "never")


GROUPS = {
    DRIFTING: "optimum drifts, radians a step",
    JUMPING: "gradients jump × 100, drift",
    STREAM: "classes of a stream renamed",
}


def judge(found: Mapping[str, Sweep]) -> list[Statement]:
    """Returns a statement against Adagrad and one against SGD."""
    wins, copes = [], []
    for name, swept in found.items():
        keep = [i for i, s in enumerate(swept.settings) if changing(name, s)]
        ats = [swept.settings[i] for i in keep]
        wins += better(GROUPS[name], ats, swept.against(OURS, (ADAGRAD,))[keep])
        copes += as_good(GROUPS[name], ats, swept.against(OURS, SGD)[keep])
    return [
        Statement(
            "a moving average beats Adagrad's sum when things change",
            AGAINST_ADAGRAD, wins,
        ),
        Statement("it copes with change as well as SGD does", AGAINST_SGD, copes),
    ]  # fmt: skip


def draw(figure: Figure, found: Mapping[str, Sweep]) -> None:
    """Draws the measure against the speed of change."""
    every = figure.subplots(1, 3)
    for axes, (name, swept) in zip(every, found.items(), strict=True):
        picture.by_setting(axes, range(len(swept.settings)), swept)
        labels = [setting.removesuffix(" steps") for setting in swept.settings]
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(
            "renamed" if name == STREAM else "speed, radians a step", fontsize=9
        )
    every[0].set_ylabel("mean squared distance / start")
    every[2].set_ylabel("mean loss, nats")
    pictures.legend_below(figure, every[0])


CLAIM = Claim(
    "drift", "it copes with non-stationary objectives",
    measure, judge, draw, summary_of, size=(13, 4.8),
)  # fmt: skip
