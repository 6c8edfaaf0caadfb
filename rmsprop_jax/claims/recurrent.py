"""Claim 4: it is designed for the vanishing and exploding gradients of RNNs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ..lab import pictures
from . import picture
from .claim import Claim, summary_of
from .contenders import CONTENDERS, OURS, SGD, clipped, grids
from .grid import OnPart, Plan, stretches, sweep
from .recurrence import CELLS, CHANCE, instruments, remembering
from .sweep import Sweep
from .verdict import Criterion, Statement, as_good, better, within

PLANTED = "planted weight"
LENGTHS = {"plain RNN": (50, 150, 500), "GRU": (50, 150, 500), PLANTED: (50, 500)}
MEASURED_LENGTHS = (50, 100, 200, 500)
STEPS = {"plain RNN": 80, "GRU": 60, PLANTED: 80}
CLIP = 1.0
CLIPPED, FREE = "clipped", "free"
SETTINGS = {FREE: {"clip": 1e30}, CLIPPED: {"clip": CLIP}}
TWICE = float(np.log10(2))


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
      sweeps: by cell and length, with and without clipping as settings.
      lengths: those of what follows, which is by cell, [lengths, seeds], log10, in
        nets that are not trained.
      signal: norm of the loss's gradient with respect to the first hidden state, over
        that with respect to the last.
      gradient: norm of the gradient.
      step: norm of RMSProp's step, at a learning rate of 1.
    """

    sweeps: dict[str, Sweep]
    lengths: tuple[int, ...]
    signal: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    step: dict[str, np.ndarray]


def measure(plan: Plan, on_part: OnPart) -> Found:
    """Trains every cell at every length and looks at gradients and steps."""
    contenders = {name: clipped(inner) for name, inner in CONTENDERS.items()}
    usual = grids(6, 1e-2, 1e-2, 1e-2, 1e-1, 1e-2)
    # Gradients are of any size: two decades from one rate of SGD to the next.
    wide = grids(6, 1e-3, 1e-2, 1e-2, 1e-2, 1e-3)
    wide |= {name: 1e-14 * 100.0 ** np.arange(1, 7) for name in SGD}
    lengths = {name: plan.some(LENGTHS[name]) for name in CELLS}
    if plan.quick:
        lengths = dict.fromkeys(CELLS, (5, 10))
    jobs = [(cell, length) for cell in CELLS for length in lengths[cell]]
    sweeps = {}
    for (cell, length), part in zip(jobs, stretches(on_part, len(jobs)), strict=True):
        sweeps[_name(cell, length)] = sweep(
            remembering(cell, length, plan.steps(STEPS[cell])), contenders, SETTINGS,
            wide if cell == PLANTED else usual, plan, part, extensions=0,
        )  # fmt: skip
    measured = (5, 10) if plan.quick else MEASURED_LENGTHS
    keys = jax.vmap(jax.random.key)(jnp.arange(plan.tuning, plan.tuning + plan.seeds))
    found: dict[str, dict[str, np.ndarray]] = {}
    for cell in CELLS:
        rows = [instruments(cell, length, keys) for length in measured]
        for key in rows[0]:
            values = np.stack([np.asarray(row[key], np.float64) for row in rows])
            found.setdefault(key, {})[cell] = np.log10(np.maximum(values, 1e-38))
    return Found(sweeps, tuple(measured), **found)


def _name(cell: str, length: int) -> str:
    return f"{cell}, {length}"


STEP_RULE = (
    "norm of RMSProp's step in an untrained net after 10 gradients, over that at the "
    "shortest length: the interval lies within a factor of 2 of 1"
)
EXPLODING_RULE = (
    "loss after training without clipping, RMSProp's over the better SGD's: the "
    "interval lies below 1 / 1.1; and over its own with clipping: below 1.1"
)
VANISHING_RULE = (
    "gradient of the loss with respect to the first hidden state over that to the "
    "last, which no optimizer changes: the interval lies in 1 / 10 to 10"
)
LEARNING_RULE = (
    "loss after training with clipping: RMSProp's over the better SGD's lies below "
    "1 / 1.1, and over that of the best constant below 1 / 2"
)


def judge(found: Found) -> list[Statement]:
    """Returns statements on step, explosion, signal and learning."""
    step, signal, exploding, learning = [], [], [], []
    for cell in CELLS:
        ats = [str(length) for length in found.lengths]
        rows = found.step[cell] - found.step[cell][:1]
        group = f"{cell}, length"
        step += within(group, ats[1:], rows[1:], low=-TWICE, high=TWICE)
        signal += within(group, ats, found.signal[cell], low=-1.0, high=1.0)
    for name, swept in found.sweeps.items():
        cell, at = name.rsplit(", ", 1)
        free, held = swept.settings.index(FREE), swept.settings.index(CLIPPED)
        ours, ratio = swept.tuned(OURS), swept.against(OURS, SGD)
        if cell == PLANTED:
            exploding += better(f"{cell} against SGD, length", [at], ratio[[free]])
        itself = ours[[free]] - ours[[held]]
        exploding += as_good(f"{cell} against itself clipped, length", [at], itself)
        if cell != PLANTED:
            chance = ours[held] - np.log10(CHANCE)
            learning += better(f"{cell} against SGD, length", [at], ratio[[held]])
            learning.append(
                Criterion(f"{cell} against a guess, length", at, chance, high=-TWICE)
            )
    return [
        Statement("the step is normalised", STEP_RULE, step),
        Statement("exploding gradients need no clipping", EXPLODING_RULE, exploding),
        Statement("the signal through time is normalised", VANISHING_RULE, signal),
        Statement("long memory is learnt, better than by SGD", LEARNING_RULE, learning),
    ]  # fmt: skip


def draw(figure: Figure, found: Found) -> None:
    """Draws gradient, step and signal against length, and the losses."""
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    left, middle, right = above.subplots(1, 3)
    lengths = found.lengths
    for colour, marker, cell in zip(pictures.COLOURS, "os^", CELLS, strict=False):
        for axes, values in (
            (left, found.gradient), (middle, found.step), (right, found.signal),
        ):  # fmt: skip
            picture.line(axes, lengths, values[cell], cell, colour, marker)
    left.set_title("norm of the gradient", fontsize=10)
    middle.set_title("norm of RMSProp's step / learning rate", fontsize=10)
    right.set_title("gradient at the first state / at the last", fontsize=10)
    middle.set_ylim(1e-2, 1e3)
    for axes in (left, middle, right):
        axes.set(xscale="log", yscale="log", xlabel="length")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25)
    left.legend(frameon=False)
    lower_is_better = pictures.sides(pictures.VERMILION, pictures.BLUE)
    against, itself, guess = below.subplots(1, 3)
    rows: list[dict[str, np.ndarray]] = [{}, {}, {}]
    for name, swept in found.sweeps.items():
        free, held = swept.settings.index(FREE), swept.settings.index(CLIPPED)
        ours, ratio = swept.tuned(OURS), swept.against(OURS, SGD)
        rows[0][f"{name}, free"] = ratio[free]
        rows[0][f"{name}, clipped"] = ratio[held]
        rows[1][name] = ours[free] - ours[held]
        rows[2][name] = ours[held] - np.log10(CHANCE)
    for axes, row, title in zip(
        (against, itself, guess), rows,
        ("RMSProp / the better SGD", "without clipping / with it", "clipped / a guess"),
        strict=True,
    ):  # fmt: skip
        pictures.intervals(axes, row, lower_is_better)
        axes.axvline(0, color=pictures.GREY, linewidth=0.8)
        axes.set_title(f"loss after training, {title}", fontsize=10)
        axes.set_xlabel("log10 of the ratio")
    below.supxlabel(
        "orange: lower; blue: higher; grey: the 95 % interval has 0", fontsize=9
    )


def summary(found: Found) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    return summary_of(found.sweeps) | {
        "lengths": found.lengths,
        "log10_signal": found.signal,
        "log10_gradient": found.gradient,
        "log10_step": found.step,
    }


CLAIM = Claim(
    "rnn", "it is designed for vanishing and exploding gradients, RNNs above all",
    measure, judge, draw, summary, size=(14, 8.4),
)  # fmt: skip
