"""What the pictures of the claims share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..lab.contenders import LABELS
from ..lab.pictures import STYLES
from ..lab.statistics import half_width, interval
from .sweep import Sweep


def by_setting(axes: Axes, places: Iterable[float], sweep: Sweep) -> None:
    """Draws the tuned measure of every optimizer at the settings of a sweep."""
    for name in sweep.runs:
        _line(axes, list(places), sweep.tuned(name), name)
    axes.set_yscale("log")
    axes.grid(alpha=0.25)


def by_category(axes: Axes, sweep: Sweep) -> None:
    """Draws the tuned measures at settings that have no order: marks without lines."""
    for i, name in enumerate(sweep.runs):
        colour, marker, _ = STYLES[name]
        decades = sweep.tuned(name)
        centre, width = decades.mean(axis=1), half_width(decades)
        low, high = 10 ** (centre - width), 10 ** (centre + width)
        places = np.arange(len(centre)) + 0.12 * (i - (len(sweep.runs) - 1) / 2)
        axes.errorbar(
            places, 10**centre, (10**centre - low, high - 10**centre), fmt=marker,
            color=colour, label=LABELS[name], markersize=5, capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(sweep.settings)), sweep.settings)
    axes.set_yscale("log")
    axes.grid(alpha=0.25)


def by_sweep(
    axes: Axes, places: Sequence[float], sweeps: Sequence[Sweep], setting: int = 0
) -> None:
    """Draws the tuned measure of every optimizer at one setting of several sweeps."""
    for name in sweeps[0].runs:
        rows = np.stack([sweep.tuned(name)[setting] for sweep in sweeps])
        _line(axes, places, rows, name)
    axes.set_yscale("log")
    axes.grid(alpha=0.25)


def _line(axes: Axes, places: Any, decades: np.ndarray, name: str) -> None:
    colour, marker, dash = STYLES[name]
    line(axes, places, decades, LABELS[name], colour, marker, dash)


def line(
    axes: Axes, places: Any, decades: np.ndarray, label: str, colour: str,
    marker: str = "o", dash: Any = "-",
) -> None:  # fmt: skip
    """Draws the mean and 95 % interval of log10 values [places, seeds]."""
    low, high = np.transpose([interval(row) for row in decades])
    mean = decades.mean(axis=1)
    axes.plot(
        places, 10**mean, marker=marker, linestyle=dash, color=colour, label=label,
        markersize=5, linewidth=1.6,
    )  # fmt: skip
    axes.fill_between(places, 10**low, 10**high, color=colour, alpha=0.15, linewidth=0)
