"""Claim 6: eps prevents division by zero; and what else it does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from .. import rmsprop, scale_by_rms
from ..lab import pictures
from ..lab.program import Contender
from . import picture
from .claim import Claim, summary_of
from .contenders import CONTENDERS
from .grid import OnPart, Plan, sweep
from .problems import digits_net
from .sweep import Sweep
from .verdict import Criterion, Statement, equal

VALUES = (1e-16, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
USUAL = "1e-08"
PLACES = {"inside": True, "outside": False}
LIBRARIES = {"Optax": optax.scale_by_rms, "this package": scale_by_rms}
SIZES = np.geomspace(1e-18, 1e6, 49)
"""Of constant gradients, to see how the step depends on their size."""

RATES = 1e-3 * 10 ** (0.5 * np.arange(10))


@dataclasses.dataclass(frozen=True)
class Found:
    """What eps does.

    Attributes:
      sweep: the digits, with eps as the setting: inside, outside, and SGD.
      updates: by place, [eps, sizes], the update for gradients of constant sizes.
      finite: by library and place, [eps + 1], whether the update for gradients of
        exact zeros is finite; the first is for an eps of 0.
    """

    sweep: Sweep
    updates: dict[str, np.ndarray]
    finite: dict[str, np.ndarray]


def _contender(place: str) -> Contender:
    def make(rate: Any, setting: Any) -> optax.GradientTransformation:
        return rmsprop(rate, eps=setting["eps"], eps_in_sqrt=PLACES[place])

    return Contender(make)


def measure(plan: Plan, on_part: OnPart) -> Found:
    """Trains the net with every eps and looks at single updates."""
    values = plan.some(VALUES) if not plan.quick else [1e-16, 1e-8, 1.0]
    contenders = {
        **{place: _contender(place) for place in PLACES}, "sgd": CONTENDERS["sgd"],
    }  # fmt: skip
    found = sweep(
        digits_net(plan.steps(200), batch_size=16),
        contenders,
        {f"{eps:g}": {"eps": eps} for eps in values},
        dict.fromkeys(contenders, RATES), plan, on_part,
    )  # fmt: skip
    updates, finite = {}, {}
    for place, inside in PLACES.items():
        rows = [_update(eps, inside, SIZES) for eps in values]
        updates[place] = np.stack(rows)
        for library, transform in LIBRARIES.items():
            zeros = [
                _update(eps, inside, np.zeros(1), transform) for eps in (0.0, *values)
            ]
            finite[f"{library}, {place}"] = np.isfinite(zeros).all(axis=1)
    return Found(found, updates, finite)


def _update(
    eps: float, inside: bool, sizes: np.ndarray, transform: Any = scale_by_rms
) -> np.ndarray:
    """Returns the update after 100 gradients of constant sizes, in float32."""
    tx = transform(0.9, eps, eps_in_sqrt=inside)
    grads = jnp.asarray(sizes, jnp.float32)

    @jax.jit
    def run() -> jax.Array:
        def step(_: Any, carry: Any) -> Any:
            return tx.update(grads, carry[1])

        return jax.lax.fori_loop(0, 100, step, (grads, tx.init(grads)))[0]

    return np.asarray(run(), np.float64)


ZERO_RULE = (
    "updates for gradients of exact zeros are finite with this eps, and are not with "
    "an eps of 0; nothing is random"
)
REST_RULE = (
    "test loss on digits at the rate tuned for each eps, over that with 1e-08 at the "
    "same place: the interval lies within a tenth of 1"
)
SGD_RULE = (
    "test loss at the rate tuned for each eps, over that of tuned SGD: the interval "
    "lies within a tenth of 1"
)


def judge(found: Found) -> list[Statement]:
    """Returns statements: on zeros, on all other effects, and on turning into SGD."""
    ats, usual = found.sweep.settings, found.sweep.settings.index(USUAL)
    zero, rest, last = [], [], []
    for name, (without, *others) in found.finite.items():
        for at, finite in zip(ats, others, strict=True):
            done = 1.0 if finite and not without else -1.0
            zero.append(
                Criterion(f"{name} the root, eps", at, np.full(2, done), low=0.0)
            )
    for place in PLACES:
        group = f"{place} the root, eps"
        tuned = found.sweep.tuned(place)
        keep = [i for i in range(len(ats)) if i != usual]
        rest += equal(group, [ats[i] for i in keep], (tuned - tuned[usual])[keep])
        sgd = tuned - found.sweep.tuned("sgd")
        last += equal(group, ats, sgd)
    return [
        Statement("eps prevents division by zero", ZERO_RULE, zero),
        Statement("and does nothing else: loss is as with 1e-8", REST_RULE, rest),
        Statement("a large eps turns RMSProp into SGD", SGD_RULE, last),
    ]


def turning(found: Found) -> dict[str, list[float | None]]:
    """Returns, by place and eps, the size of gradient below which a step is like SGD's.

    There the update is half of what it is for large gradients.
    """
    turns: dict[str, list[float | None]] = {}
    for place, rows in found.updates.items():
        turns[place] = []
        for row in rows:
            above = np.flatnonzero(row >= 0.5)
            at = above[0] if len(above) else 0
            turns[place].append(float(SIZES[at]) if at else None)
    return turns


def draw(figure: Figure, found: Found) -> None:
    """Draws the update against the gradient, and the loss against eps."""
    left, middle, right = figure.subplots(1, 3)
    values = [float(at) for at in found.sweep.settings]
    for axes, place in ((left, "inside"), (middle, "outside")):
        for i, row in enumerate(found.updates[place]):
            colour = str(0.85 - 0.85 * i / len(values))
            shown = np.where(row > 0, row, np.nan)
            axes.plot(SIZES, shown, color=colour, label=f"eps {values[i]:g}")
        axes.set(xscale="log", yscale="log", ylim=(1e-8, 10), xlabel="size of gradient")
        axes.set_title(f"eps {place} the root: size of the update", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    picture.line(
        right, values, found.sweep.tuned("sgd"), "SGD", pictures.GREY, "s", ":"
    )
    looks = (pictures.VERMILION, "o", "-"), (pictures.BLUE, "^", "--")
    for place, look in zip(PLACES, looks, strict=True):
        tuned = found.sweep.tuned(place)
        picture.line(right, values, tuned, f"RMSProp, eps {place}", *look)
    right.set(xscale="log", xlabel="eps", ylabel="test loss, nats")
    right.set_title("digits, at the rate tuned for each eps", fontsize=10)
    right.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=9)


def summary(found: Found) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    return summary_of({"digits": found.sweep}) | {
        "sizes_of_gradients": SIZES,
        "updates": found.updates,
        "zeros_are_finite_without_and_with_eps": found.finite,
        "like_sgd_below_gradients_of": turning(found),
    }


CLAIM = Claim(
    "eps", "eps prevents division by zero", measure, judge, draw, summary,
    size=(14, 4.8),
)  # fmt: skip
