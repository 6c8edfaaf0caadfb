"""What the pictures of the claims share."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

from ..bench.statistics import interval
from ..demo import picture as demo
from ..demo.optimizers import LABELS as DEMO_LABELS
from .sweep import Sweep

STYLES = {**demo.STYLES, "sgd momentum": ("#CC79A7", "v", (0, (5, 1, 1, 1)))}
LABELS = {**DEMO_LABELS, "sgd momentum": "SGD, momentum 0.9"}

# For curves that are no optimizers: colours of Okabe and Ito.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def png(
    draw: Callable[[Figure, Any], None], found: Any, title: str, size: Any
) -> bytes:
    """Returns the picture of a claim as the bytes of a PNG file."""
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    draw(figure, found)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def by_setting(axes: Axes, places: Iterable[float], sweep: Sweep) -> None:
    """Draws the tuned measure of every optimizer at the settings of a sweep."""
    for name in sweep.runs:
        _line(axes, list(places), sweep.tuned(name), name)
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


def legend(figure: FigureBase, axes: Axes) -> None:
    """Puts what the lines of one frame mean under all frames."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
