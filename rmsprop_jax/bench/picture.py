"""The picture: the time of a step, and how much of it the bytes alone would take."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..lab import pictures
from .speed_tables import milliseconds

WIDEST = 3.0
"""Times of `optax.rmsprop` that fit into the frame; longer bars are cut."""

_COLOURS = {"ours": pictures.VERMILION, "optax": pictures.BLUE}
_OTHER = "#777777"


def figure(content: dict[str, Any]) -> Figure:
    """Returns the figure of what `rmsprop-jax bench` measured, a frame for a shape."""
    shapes = {n: s for n, s in content["shapes"].items() if s.get("rows")}
    columns = min(3, max(1, len(shapes)))
    lines = max(1, math.ceil(len(shapes) / columns))
    most = max((len(shape["rows"]) for shape in shapes.values()), default=1)
    size = 5.2 * columns, (0.24 * most + 1.0) * lines + 0.8
    machine = content["machine"]
    whole = pictures.figure(
        size,
        f"a step, in place, on {machine['device']} ({machine['cpu_count']} cores), "
        f"jax {machine['jax']}, optax {machine['optax']}",
    )
    every = whole.subplots(lines, columns, squeeze=False).ravel()
    for axes in every[len(shapes) :]:
        axes.set_axis_off()
    for axes, (name, shape) in zip(every, shapes.items(), strict=False):
        _draw(axes, name, shape)
        axes.set_ylim(most - 0.4, -0.6)
    handles = [
        Patch(color="#444444", label="what moving the bytes takes, at x + 1's rate"),
        Patch(color="#444444", alpha=0.4, label="the rest"),
    ]
    whole.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return whole


def _draw(axes: Axes, name: str, shape: dict[str, Any]) -> None:
    rows = shape["rows"]
    base = rows["optax.rmsprop"]["milliseconds"]
    limit = WIDEST * base
    for place, (row, cell) in enumerate(rows.items()):
        colour = _COLOURS.get(row.replace(".", "-").split("-")[0], _OTHER)
        time = cell["milliseconds"]
        bytes_alone = time * min(1.0, cell["percent_of_in_place"] / 100)
        axes.barh(place, min(time, limit), color=colour, alpha=0.4, height=0.72)
        axes.barh(place, min(bytes_alone, limit), color=colour, height=0.72)
        label = f"{milliseconds(time)} ms"
        if time > limit:
            label = f"{label} →"
        inside = time > 0.7 * limit
        axes.text(
            min(time, limit) + limit * (-0.01 if inside else 0.01), place, label,
            va="center", ha="right" if inside else "left", fontsize=8,
            bbox={"color": "white", "alpha": 0 if inside else 0.8, "pad": 0.5},
        )  # fmt: skip
    axes.axvline(base, color=_COLOURS["optax"], linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_xlim(0, limit)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("milliseconds", fontsize=8)
    leaves = f"{shape['leaves']:,} lea{'f' if shape['leaves'] == 1 else 'ves'}"
    axes.set_title(
        f"{name}: {shape['parameters']:,} parameters, {leaves}", fontsize=9, loc="left"
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
