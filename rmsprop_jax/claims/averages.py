"""Claim 5: a higher decay remembers longer and smooths more, a lower reacts faster."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from .. import scale_by_rms
from ..lab import pictures
from . import picture
from .claim import Claim
from .grid import OnPart, Plan
from .verdict import MARGIN, Criterion, Statement, equal

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
COORDINATES = 64
SLOPE = 0.1
"""By how much of its start E[g²] grows in a step, while it grows."""

JUMP = 100.0
"""How much smaller gradients suddenly are: E[g²] by its square."""

STRETCH = 20
"""Steps of each stretch, in units of 1 / (1 − the largest decay): it has settled."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What nu does, by decay and seed.

    Attributes:
      decays: [decays].
      lag: [decays, seeds] steps by which nu, before a step, is behind a ramp of E[g²].
      variance: [decays, seeds], of nu over that of g², both stationary.
      recovery: [decays, seeds] steps until steps are back to half their size when
        gradients become 100 times smaller.
      overshoot: [decays, seeds], the largest step when they become larger again.
    """

    decays: np.ndarray
    lag: np.ndarray
    variance: np.ndarray
    recovery: np.ndarray
    overshoot: np.ndarray


def lag_in_theory(decay: Any) -> Any:
    """Returns the mean age of what is averaged, the present one being of age 1."""
    return 1 / (1 - decay)


def variance_in_theory(decay: Any) -> Any:
    """Returns the variance of an exponential average over that of its terms."""
    return (1 - decay) / (1 + decay)


def measure(plan: Plan, on_part: OnPart) -> Found:
    """Feeds `scale_by_rms` gradients of known size, and looks at nu and the updates."""
    decays = np.asarray(plan.some(DECAYS))
    steps = int((5 if plan.quick else STRETCH) / (1 - decays.max()))
    program = jax.jit(
        jax.vmap(jax.vmap(partial(_run, steps), in_axes=(None, 0)), in_axes=(0, None))
    )
    keys = jax.vmap(jax.random.key)(jnp.arange(plan.seeds))
    found = program(jnp.asarray(decays, jnp.float32), keys)
    on_part(1.0)
    return Found(decays, *(np.asarray(x, np.float64) for x in found))


def _run(steps: int, decay: jax.Array, key: jax.Array) -> Any:
    """Returns lag, variance, recovery and overshoot of one decay and seed."""
    tx = scale_by_rms(decay, eps=0.0)
    first = tx.init(jnp.zeros(COORDINATES))

    def follow(state: Any, grads: jax.Array) -> Any:
        """Returns the last state, and nu before and after each step, and updates."""

        def step(state: Any, grads: jax.Array) -> Any:
            before = state.nu
            updates, state = tx.update(grads, state)
            return state, (before, state.nu, updates)

        return jax.lax.scan(step, state, grads)

    shape = (steps, COORDINATES)
    parts = jax.random.split(key, 3)
    normal = jax.random.normal(parts[0], shape)
    settled, (_, nu, _) = follow(first, normal)
    half = steps // 2
    variance = jnp.var(nu[half:]) / jnp.var(normal[half:] ** 2)
    ramp = 1 + SLOPE * jnp.arange(steps, dtype=jnp.float32)[:, None]
    noise = jax.random.uniform(parts[1], shape, minval=-1.0)
    _, (before, *_) = follow(settled, jnp.sqrt(ramp + noise))
    lag = jnp.mean((ramp - before)[half:]) / SLOPE
    sizes = jnp.where(jnp.arange(steps) < half, 1 / JUMP, 1.0)[:, None]
    last = sizes * jax.random.normal(parts[2], shape)
    _, (_, after, updates) = follow(settled, last)
    # In the mean over coordinates, so that chance plays no part.
    root = jnp.sqrt(jnp.mean(after, axis=1))
    recovery = jnp.sum((root > 2 / JUMP) & (jnp.arange(steps) < half)) + 1.0
    return lag, variance, recovery, jnp.max(jnp.abs(updates[half:]))


LAG_RULE = (
    "lag behind a ramp of E[g²] over 1 / (1 − β), and variance of nu over (1 − β) / "
    "(1 + β) that of g²: the interval lies within a tenth of 1"
)
ORDER_RULE = (
    "each decay against the next lower one: its lag, and its number of steps until "
    "updates recover from gradients 100 times smaller, are longer, its variance lower, "
    "by more than a tenth"
)


def judge(found: Found) -> list[Statement]:
    """Returns a statement on the order of decays and one on the theory."""
    ats = [f"{decay:g}" for decay in found.decays]
    lag, variance = np.log10(np.maximum(found.lag, 1e-9)), np.log10(found.variance)
    column = found.decays[:, None]
    theory = [
        *equal("lag at", ats, lag - np.log10(lag_in_theory(column))),
        *equal("variance at", ats, variance - np.log10(variance_in_theory(column))),
    ]
    order = [
        Criterion(group, at, row, low=MARGIN)
        for group, values in (
            ("longer lag at", lag),
            ("lower variance at", -variance),
            ("later recovery at", np.log10(found.recovery)),
        )
        for at, row in zip(ats[1:], np.diff(values, axis=0), strict=True)
    ]
    return [
        Statement("higher decay: longer memory, smoother, slower", ORDER_RULE, order),
        Statement("by 1 / (1 − β) and (1 − β) / (1 + β)", LAG_RULE, theory),
    ]


def draw(figure: Figure, found: Found) -> None:
    """Draws lag, variance and recovery against 1 / (1 − decay), over the theory."""
    every = figure.subplots(1, 3)
    x = 1 / (1 - found.decays)
    fine = 1 - 1 / np.geomspace(x[0], x[-1], 100)
    theories = (lag_in_theory(fine), variance_in_theory(fine), None)
    measured = (found.lag, found.variance, found.recovery)
    titles = (
        "lag of nu behind a ramp, steps",
        "variance of nu / variance of g²",
        "steps until updates recover from\ngradients 100 times smaller (to one half)",
    )
    formulas = ("1 / (1 − β)", "(1 − β) / (1 + β)", "")
    for axes, values, theory, title, formula in zip(
        every, measured, theories, titles, formulas, strict=True
    ):
        if theory is not None:
            axes.plot(1 / (1 - fine), theory, "-", color=pictures.GREY, label=formula)
        decades = np.log10(np.maximum(values, 1e-9))
        picture.line(axes, x, decades, "measured", pictures.COLOURS[0], dash="none")
        axes.set(xscale="log", yscale="log", title=title)
        axes.set_xticks(x, [f"{decay:g}" for decay in found.decays], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("decay β")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)


CLAIM = Claim(
    "decay", "a higher decay remembers longer and smooths more, a lower reacts faster",
    measure, judge, draw, lambda found: {"notes": [], **dataclasses.asdict(found)},
    size=(13, 4.4),
)  # fmt: skip
