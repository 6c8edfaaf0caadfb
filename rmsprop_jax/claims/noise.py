"""Claim 3: it is stable with noisy gradients and small batches."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..lab import pictures
from . import picture
from .claim import Claim, once, summary_of
from .contenders import CONTENDERS, OURS, SGD, grids
from .grid import OnPart, Plan, stretches, sweep
from .problems import TAILS, digits_net, quadratic, quadratics
from .sweep import WORKS, Sweep
from .verdict import Statement, as_good, within

BATCH_SIZES = (1, 4, 16, 64, 256)
DIGITS, HEAVY = "digits", "heavy tails"

LOSS_RULE = (
    "measure after the run at the tuned rate, RMSProp's over the better SGD's: the "
    "interval lies below 1.1, no more than a tenth worse"
)
WIDTH_RULE = (
    "range of rates that work (measure within a factor of "
    f"{WORKS:g} of the tuned one), RMSProp's less that of the SGD with the better "
    "tuned measure, in decades: the interval lies above 0"
)


@once
def measure(plan: Plan, on_part: OnPart) -> dict[str, Sweep]:
    """Returns one sweep for each batch size on the digits, and one over noises."""
    sizes = plan.some(BATCH_SIZES)
    parts = stretches(on_part, len(sizes) + 1)
    grid = grids(7, 1e-3, 1e-2, 1e-3, 1e-2, 1e-3)
    found = {
        f"{DIGITS}, batch {size}": sweep(
            digits_net(plan.steps(200), size),
            CONTENDERS, {str(size): {"none": 0.0}}, grid, plan, part,
        )
        for size, part in zip(sizes, parts[:-1], strict=True)
    }  # fmt: skip
    found[HEAVY] = sweep(
        quadratics(plan.steps(400), online=False),
        CONTENDERS,
        {
            name: quadratic(condition=100.0, noise=1.0, tails=code)
            for name, code in TAILS.items()
        },
        grids(9, 1e-3, 1e-4, 1e-5, 1e-2, 1e-3), plan, parts[-1],
    )  # fmt: skip
    return found


def group(name: str) -> str:
    """Returns what the settings of a sweep are."""
    return "noise of a quadratic" if name == HEAVY else "digits, batch size"


def judge(found: Mapping[str, Sweep]) -> list[Statement]:
    """Returns a statement on the loss and one on the range of rates."""
    losses, ranges = [], []
    for name, swept in found.items():
        losses += as_good(group(name), swept.settings, swept.against(OURS, SGD))
        wider = swept.wider(OURS, SGD)
        ranges += within(group(name), swept.settings, wider, low=0.0)
    return [
        Statement("under noise it reaches as low a loss as SGD", LOSS_RULE, losses),
        Statement("under noise more rates work than for SGD", WIDTH_RULE, ranges),
    ]


def draw(figure: Figure, found: Mapping[str, Sweep]) -> None:
    """Draws the losses against batch size and noise, and the ranges of rates."""
    left, middle, right = figure.subplots(1, 3)
    batches = {s.settings[0]: s for name, s in found.items() if name != HEAVY}
    picture.by_sweep(left, [int(size) for size in batches], list(batches.values()))
    left.set_xscale("log", base=2)
    left.set_xlabel("batch size")
    left.set_ylabel("test loss, nats")
    left.set_title("a small net on digits, 200 steps", fontsize=10)
    picture.by_category(middle, found[HEAVY])
    middle.set_xlabel("noise")
    middle.set_ylabel("squared distance / start")
    middle.set_title("a quadratic", fontsize=10)
    wider = {
        f"{at}" if name == HEAVY else f"batch {at}": row
        for name, swept in found.items()
        for at, row in zip(swept.settings, swept.wider(OURS, SGD), strict=True)
    }
    more_is_better = pictures.sides(pictures.BLUE, pictures.VERMILION)
    pictures.intervals(right, wider, more_is_better)
    right.axvline(0, color=pictures.GREY, linewidth=0.8)
    right.set_xlabel(
        "decades of rates that work, RMSProp − SGD\n(grey: the interval has 0)"
    )
    right.set_title(f"within a factor of {WORKS:g} of the tuned rate", fontsize=10)
    pictures.legend_below(figure, left)


CLAIM = Claim(
    "noise", "it is stable with noisy gradients and small batches",
    measure, judge, draw, summary_of, size=(13, 4.8),
)  # fmt: skip
