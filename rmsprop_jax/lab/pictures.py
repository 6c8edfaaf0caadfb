"""What all pictures share: colours, marks, axes, legends, and the bytes of a PNG."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..diagnostics._pictures import COLOURS as COLOURS
from .statistics import interval

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY, _ = COLOURS

# Of each optimizer: a colour, and for those who see none a marker and a dash.
STYLES: dict[str, tuple[str, str, Any]] = {
    "rmsprop": (VERMILION, "o", "-"),
    "sgd": (GREY, "s", ":"),
    "sgd momentum": (PURPLE, "v", (0, (5, 1, 1, 1))),
    "adagrad": (GREEN, "^", "-."),
    "adam": (BLUE, "D", "--"),
}


def figure(size: tuple[float, float], title: str = "") -> Figure:
    """Returns an empty figure of a size in inches."""
    whole = Figure(figsize=size, dpi=130, layout="constrained")
    if title:
        whole.suptitle(title, fontsize=12)
    return whole


def png(figure: Figure) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def plain_logarithms(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, with numbers such as 0.2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def interval_at(
    axes: Axes, place: float, ends: tuple[float, float], colour: str, marker: str = "o"
) -> None:
    """Draws a mean with its interval, level, at a height."""
    low, high = ends
    axes.errorbar(
        (low + high) / 2, place, xerr=(high - low) / 2, fmt=marker, color=colour,
        capsize=3, markersize=5,
    )  # fmt: skip


def intervals(
    axes: Axes,
    rows: Mapping[str, np.ndarray],
    colour: Callable[[float, float], str],
) -> None:
    """Draws the means of samples [seeds] with their 95 % intervals, a row for each.

    Args:
      axes: where.
      rows: by the name that stands at the left.
      colour: from the two ends of an interval.
    """
    for place, samples in enumerate(rows.values()):
        ends = interval(samples)
        interval_at(axes, place, ends, colour(*ends))
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(alpha=0.25)


def sides(less: str, more: str) -> Callable[[float, float], str]:
    """Returns colours for intervals below 0, above it, and around it (grey)."""
    return lambda low, high: less if high < 0 else more if low > 0 else "#999999"


def legend_below(figure: FigureBase, axes: Axes, columns: int = 6) -> None:
    """Puts what the marks of one frame mean under all frames."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )
