"""The picture: learning curves, and how the loss depends on the learning rate."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..lab import pictures
from ..lab.contenders import LABELS
from ..lab.pictures import STYLES
from ..lab.statistics import half_width, mean
from .sweeps import Outcome, Tried


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Returns the figure; its left axes are learning curves, its right ones rates."""
    whole = pictures.figure((11, 4.6 * len(outcomes)))
    rows = whole.subfigures(len(outcomes), 1, squeeze=False, hspace=0.02)[:, 0]
    for row, outcome in zip(rows, outcomes, strict=True):
        row.suptitle(outcome.title, fontsize=12)
        curves, rates = row.subplots(1, 2, sharey=True)
        _draw_curves(curves, outcome)
        _draw_rates(rates, outcome)
        top = _scale_losses(curves, outcome)
        _mark_above(rates, outcome, top)
    return whole


def _draw_curves(axes: Axes, outcome: Outcome) -> None:
    for name, tried in outcome.tried.items():
        colour, _, dash = STYLES[name]
        losses = tried.validation_loss[:, tried.best]
        centre, width = mean(losses), half_width(losses)
        label = f"{LABELS[name]}, rate {tried.learning_rates[tried.best]:g}"
        steps = tried.evaluated_at
        axes.plot(steps, centre, dash, color=colour, label=label, linewidth=2)
        axes.fill_between(
            steps, centre - width, centre + width, color=colour, alpha=0.2, linewidth=0
        )
    band = " (band: 95 % interval)" if outcome.seeds > 1 else ""
    axes.set_title(f"learning curves at the best rates{band}", fontsize=10, pad=9)
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation loss, nats per {outcome.task.unit}")
    axes.set_xlim(0, next(iter(outcome.tried.values())).evaluated_at[-1])
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _draw_rates(axes: Axes, outcome: Outcome) -> None:
    for name, tried in outcome.tried.items():
        colour, marker, dash = STYLES[name]
        losses = tried.validation_loss[-1]
        centre = mean(losses)
        axes.errorbar(
            tried.learning_rates, centre, half_width(losses), fmt=marker + dash,
            color=colour, label=LABELS[name], markersize=5, linewidth=1.5, capsize=2,
        )  # fmt: skip
        best = tried.best
        axes.plot(
            tried.learning_rates[best], centre[best], marker, color=colour,
            markersize=11, markerfacecolor="none", markeredgewidth=1.5,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_title(
        "after the last step (ring: best; ×: above the frame)", fontsize=10, pad=9
    )
    axes.set_xlabel("learning rate")
    axes.grid(alpha=0.25)


def _mark_above(axes: Axes, outcome: Outcome, top: float) -> None:
    """Marks on the upper edge the rates whose loss is above it, or not finite."""
    for name, tried in outcome.tried.items():
        above = tried.learning_rates[~(mean(tried.validation_loss[-1]) <= top)]
        (marks,) = axes.plot(
            above, np.full(len(above), top), "x", color=STYLES[name][0],
            markersize=9, markeredgewidth=2, clip_on=False, zorder=5,
        )  # fmt: skip
        marks.set_in_layout(False)


def _scale_losses(axes: Axes, outcome: Outcome) -> float:
    """Limits the losses to what learning reaches, and returns the upper limit.

    What is worse than before the training, as a run that diverged, leaves the frame.
    """
    every = outcome.tried.values()
    top = 1.1 * max(_finite_max(tried.validation_loss[0]) for tried in every)
    bottom = min(_lowest(tried) for tried in every)
    if top > 5 * bottom:
        pictures.plain_logarithms(axes)
        axes.set_ylim(0.8 * bottom, top)
    else:
        axes.set_ylim(bottom - 0.1 * (top - bottom), top)
    return top


def _finite_max(values: np.ndarray) -> float:
    return float(np.max(values[np.isfinite(values)], initial=1e-3))


def _lowest(tried: Tried) -> float:
    means = mean(tried.validation_loss)
    return float(np.min(means[np.isfinite(means)], initial=np.inf))
