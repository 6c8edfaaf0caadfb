"""The picture: learning curves, and how the loss depends on the learning rate."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .optimizers import LABELS
from .report import Outcome
from .train import Sweep

# Colours of Okabe and Ito, which colour-blind people can tell apart, with a marker and
# a dash each for those who see or print no colours.
STYLES = {
    "rmsprop": ("#D55E00", "o", "-"),
    "sgd": ("#444444", "s", ":"),
    "adagrad": ("#009E73", "^", "-."),
    "adam": ("#0072B2", "D", "--"),
}


def png(outcomes: Sequence[Outcome]) -> bytes:
    """Returns the picture, one row for each task, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure(outcomes)).print_png(buffer)
    return buffer.getvalue()


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Returns the figure; its left axes are learning curves, its right ones rates."""
    whole = Figure(figsize=(11, 4.6 * len(outcomes)), dpi=150, layout="constrained")
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
    for name, sweep in outcome.sweeps.items():
        colour, _, dash = STYLES[name]
        mean, error = _mean_and_error(sweep.validation_loss[:, sweep.best])
        label = f"{LABELS[name]}, rate {sweep.learning_rates[sweep.best]:g}"
        steps = sweep.evaluated_at
        axes.plot(steps, mean, dash, color=colour, label=label, linewidth=2)
        axes.fill_between(
            steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
        )
    seeds = outcome.seeds
    band = " (± standard error)" if seeds > 1 else ""
    axes.set_title(f"learning curves at the best rates{band}", fontsize=10, pad=9)
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation loss, nats per {outcome.task.unit}")
    axes.set_xlim(0, next(iter(outcome.sweeps.values())).evaluated_at[-1])
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _draw_rates(axes: Axes, outcome: Outcome) -> None:
    for name, sweep in outcome.sweeps.items():
        colour, marker, dash = STYLES[name]
        mean, error = _mean_and_error(sweep.validation_loss[-1])
        axes.errorbar(
            sweep.learning_rates, mean, error, fmt=marker + dash, color=colour,
            label=LABELS[name], markersize=5, linewidth=1.5, capsize=2,
        )  # fmt: skip
        best = sweep.best
        axes.plot(
            sweep.learning_rates[best], mean[best], marker, color=colour,
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
    for name, sweep in outcome.sweeps.items():
        mean, _ = _mean_and_error(sweep.validation_loss[-1])
        above = sweep.learning_rates[~(mean <= top)]
        (marks,) = axes.plot(
            above, np.full(len(above), top), "x", color=STYLES[name][0],
            markersize=9, markeredgewidth=2, clip_on=False, zorder=5,
        )  # fmt: skip
        marks.set_in_layout(False)


def _scale_losses(axes: Axes, outcome: Outcome) -> float:
    """Limits the losses to what learning reaches, and returns the upper limit.

    What is worse than before the training, as a run that diverged, leaves the frame.
    """
    sweeps = outcome.sweeps.values()
    top = 1.1 * max(_finite_max(sweep.validation_loss[0]) for sweep in sweeps)
    bottom = min(_lowest(sweep) for sweep in sweeps)
    if top > 5 * bottom:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.8 * bottom, top)
    else:
        axes.set_ylim(bottom - 0.1 * (top - bottom), top)
    return top


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard error over the last axis, seeds; 0 for one seed."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.mean(axis=-1)
        seeds = values.shape[-1]
        if seeds == 1:
            return mean, np.zeros_like(mean)
        return mean, values.std(axis=-1, ddof=1) / np.sqrt(seeds)


def _finite_max(values: np.ndarray) -> float:
    return float(np.max(values[np.isfinite(values)], initial=1e-3))


def _lowest(sweep: Sweep) -> float:
    mean, _ = _mean_and_error(sweep.validation_loss)
    return float(np.min(mean[np.isfinite(mean)], initial=np.inf))
