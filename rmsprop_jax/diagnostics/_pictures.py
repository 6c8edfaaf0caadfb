"""Diagnostics and sweeps as pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from .._files import needed
from ._finder import Sweep, tail
from ._show import labels_of, leaf_names
from ._values import QUANTILES, Diagnostics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 8
"""Leaves that one frame can tell apart as lines; more are a map of colours."""

# Of Okabe and Ito, which colour-blind people can tell apart: all pictures have these.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444",
    "#8C6BB1",
)  # fmt: skip


def picture(
    state: Any,
    history: Diagnostics | Sequence[Diagnostics],
    *,
    steps: Sequence[int] | None = None,
    quantiles: Sequence[float] = QUANTILES,
) -> "Figure":
    """Returns a picture of the effective step sizes by leaf over time.

    Up to eight leaves are lines, the quantile in the middle with a band between the
    neighbours on both sides (by default 5 and 95 %); more are rows of colours.

    Args:
      state: what names the leaves, as for `table`.
      history: the values of every step: a list, or as `jax.lax.scan` stacks them.
      steps: the number of each step; by default 1, 2, and so on.
      quantiles: those that the values were made with.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: without matplotlib.
      ValueError: if the history is empty, or not of this state.
    """
    whole = needed("matplotlib.figure", "A picture of diagnostics", extra="demo").Figure
    if isinstance(history, Diagnostics):
        rates = history.leaves.effective_rate
    elif history:
        _checks.instance("history", history, Sequence, "the values of several steps")
        for values in history:
            _checks.instance("history", values, Diagnostics, "`Diagnostics`")
        rates = np.stack([values.leaves.effective_rate for values in history])
    else:
        raise ValueError("`history` is empty: it needs the values of a step.")
    rates = np.asarray(rates, float)  # [steps, leaves, quantiles]
    leaves = leaf_names(state)
    if rates.ndim != 3 or rates.shape[1] != len(leaves):
        raise ValueError(
            f"`history` has effective rates of shape {rates.shape}; of this state they "
            f"are [steps, {len(leaves)} leaves, quantiles]."
        )
    labels = labels_of(quantiles, rates[0, 0])
    order = np.argsort(np.asarray(quantiles))
    centre = len(order) // 2
    low, middle, high = (
        rates[..., order[max(0, min(len(order) - 1, centre + i))]] for i in (-1, 0, 1)
    )
    at = np.arange(1, len(rates) + 1) if steps is None else np.asarray(steps)
    if at.shape != rates.shape[:1] or at.dtype.kind not in "iuf":
        raise ValueError(
            f"`steps` must be {len(rates)} numbers, one for each of `history`, got "
            f"{steps!r:.80}."
        )
    tall = 4.5 if len(leaves) <= LINES else min(12.0, 1.5 + 0.18 * len(leaves))
    figure = whole(figsize=(8.5, tall), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    title = f"effective learning rate α/(√ν + ε): {labels[order[centre]]}"
    if len(leaves) <= LINES:
        for i, name in enumerate(leaves):
            colour = COLOURS[i]
            axes.plot(at, middle[:, i], color=colour, label=name, linewidth=1.8)
            axes.fill_between(
                at, low[:, i], high[:, i], color=colour, alpha=0.15, linewidth=0
            )
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.margins(x=0)
        if len(order) > 1:
            below, above = (labels[order[max(0, centre + i)]] for i in (-1, 1))
            title += f", band {below} to {above}"
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    else:
        with np.errstate(divide="ignore"):
            colours = np.log10(np.maximum(middle.T, np.finfo(np.float32).tiny))
        edges = np.append(at, at[-1] + (at[-1] - at[-2] if len(at) > 1 else 1)) - 0.5
        mesh = axes.pcolormesh(edges, np.arange(len(leaves) + 1) - 0.5, colours)
        figure.colorbar(mesh, label="log10 of it")
        axes.set_yticks(range(len(leaves)), leaves, fontsize=6)
        axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def rate_picture(sweep: Sweep) -> "Figure":
    """Returns a picture of the loss against the learning rate, and of every run.

    On the left, the loss of every rate after a quarter and half of the steps and at
    the end, with a ring around the suggestion and a cross on the upper edge for a run
    that diverged. On the right, the losses over the steps.

    Args:
      sweep: what `sweep_rates` returned.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      ImportError: without matplotlib.
    """
    _checks.instance("sweep", sweep, Sweep, "what `sweep_rates` returned")
    figure_module = needed("matplotlib.figure", "A picture of a sweep", extra="demo")
    colours = needed("matplotlib", "A picture of a sweep", extra="demo").colormaps[
        "viridis"
    ]
    figure = figure_module.Figure(figsize=(10.5, 4.3), dpi=130, layout="constrained")
    by_rate, by_step = figure.subplots(1, 2, sharey=True)
    order = np.argsort(sweep.rates)
    rates, losses = sweep.rates[order], sweep.losses[order]
    diverged, final = sweep.diverged[order], sweep.final[order]
    steps = losses.shape[1]
    for part, alpha in ((0.25, 0.35), (0.5, 0.6)):
        early = tail(losses[:, : max(1, round(part * steps))])
        shown = np.where(np.isfinite(early), early, np.nan)
        label = f"after {part:.0%} of the steps"
        by_rate.plot(rates, shown, color="#0072B2", alpha=alpha, label=label)
    shown = np.where(diverged, np.nan, final)
    by_rate.plot(rates, shown, "o-", color="#D55E00", label="the last tenth")
    top, bottom = _frame(losses, final[~diverged])
    if diverged.any():
        by_rate.plot(
            rates[diverged], np.full(diverged.sum(), top), "x", color="#444444",
            markersize=9, markeredgewidth=2, clip_on=False, label="diverged", zorder=5,
        )  # fmt: skip
    if np.isfinite(sweep.suggestion):
        by_rate.plot(
            sweep.suggestion, final[rates == sweep.suggestion][0], "o", markersize=13,
            color="#D55E00", markerfacecolor="none", markeredgewidth=1.5,
            label=f"suggestion: {sweep.suggestion:.3g}",
        )  # fmt: skip
    by_rate.set_xscale("log")
    by_rate.set_xlabel("learning rate")
    by_rate.set_ylabel("loss")
    by_rate.legend(frameon=False, fontsize=8)
    for i, (rate, run) in enumerate(zip(rates, losses, strict=True)):
        shown = np.where(np.isfinite(run), run, np.nan)
        by_step.plot(
            np.arange(steps), shown, ":" if diverged[i] else "-", label=f"{rate:.3g}",
            color=colours(i / max(1, len(rates) - 1)), linewidth=1.2,
        )  # fmt: skip
    by_step.set_xlabel("step (dotted: diverged)")
    by_step.xaxis.get_major_locator().set_params(integer=True)
    by_step.margins(x=0)
    if bottom > 0 and top > 5 * bottom:
        by_rate.set_yscale("log")
        by_rate.set_ylim(0.8 * bottom, top)
    else:
        by_rate.set_ylim(bottom - 0.05 * (top - bottom), top)
    for axes in (by_rate, by_step):
        axes.grid(alpha=0.25)
    if len(rates) <= 12:
        figure.legend(
            *by_step.get_legend_handles_labels(), loc="outside right upper",
            title="rate", frameon=False, fontsize=8,
        )  # fmt: skip
    return figure


def _frame(losses: np.ndarray, final: np.ndarray) -> tuple[float, float]:
    """Returns the limits of what is shown: what is worse than the start leaves it."""
    first = float(np.max(losses[:, 0][np.isfinite(losses[:, 0])], initial=1e-30))
    lowest = float(np.min(final, initial=first))
    return first + 0.1 * abs(first), lowest
