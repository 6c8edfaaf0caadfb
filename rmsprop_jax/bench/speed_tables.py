"""The tables of `rmsprop-jax bench`."""

from typing import Any

from rich.table import Table

from ..lab import tables as terminal
from ..lab.tables import table
from .rows import BASE
from .shapes import SHORT
from .training_step import ALONE

MOST = 7
"""Shapes in a table, which is to fit into 80 columns."""


def show(found: dict[str, Any]) -> None:
    """Prints a table for each shape, one of the training step, and all ratios."""
    for name, shape in found["shapes"].items():
        if "rows" not in shape:
            terminal.findings(f"{title(name, shape)}: {shape['skipped']}")
            continue
        terminal.findings(title(name, shape))
        terminal.show(_shape_table(shape["rows"]))
        for row, reason in shape["skipped"].items():
            terminal.notes(f"{row} left out: {reason}")
        print()
    if "training_step" in found:
        terminal.show(_training_table(found["training_step"]))
    shapes = {name: s["rows"] for name, s in found["shapes"].items() if "rows" in s}
    if len(shapes) > 1:
        for rows in ratio_tables(f"time / time of {BASE}", _ratios(shapes)):
            terminal.show(rows)
    absent = found.get("settings", {}).get("not_installed", {})
    for row, packages in absent.items():
        terminal.notes(f"{row} left out: {packages} not installed")
    terminal.notes(
        "ms: median of a step, update and application, in place; spread: half the "
        "range that half of the rounds are in",
        f"ratio: to {BASE}, the median of the ratios in each round; twin: to Optax's "
        "row with the same options, likewise",
        "% of x + 1: bytes that must move (parameters, gradients, state; each once) / "
        "time, over that of one array that is as large",
        "to trace: seconds to trace and lower, nothing cached, and the ratio to the "
        "twin's; in brackets to trace and compile, in a process that is warm",
    )


def title(name: str, shape: dict[str, Any]) -> str:
    """Returns a line about a shape."""
    leaves = f"{shape['leaves']} lea{'f' if shape['leaves'] == 1 else 'ves'}"
    line = f"{name}: {shape['parameters']:,} parameters, {leaves}"
    if "in_place_gb_per_s" in shape:
        line += f", x + 1 in place: {shape['in_place_gb_per_s']:.1f} GB/s"
    return line


def ratio_tables(title: str, ratios: dict[str, dict[str, float]]) -> list[Table]:
    """Returns tables of ratios by row and shape, each with a few of the shapes."""
    columns = list(dict.fromkeys(shape for row in ratios.values() for shape in row))
    tables = []
    for first in range(0, len(columns), MOST):
        some = columns[first : first + MOST]
        rows = table(title, [""], (SHORT.get(name, name) for name in some), gap=2)
        for name, row in ratios.items():
            if not row.keys().isdisjoint(some):
                cells = (
                    "" if shape not in row else f"{row[shape]:.2f}" for shape in some
                )
                rows.add_row(name, *cells, style=_style(name))
        tables.append(rows)
    return tables


def milliseconds(value: float) -> str:
    """Returns two or three significant digits of a time."""
    if value < 0.1:
        return f"{value:.2g}"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _shape_table(rows: dict[str, Any]) -> Table:
    shown = table(
        None, [""],
        ["ms", "spread", "ratio", "twin", "% of\nx + 1", "state,\nbytes",
         "to trace,\ns", "twin"],
    )  # fmt: skip
    for name, row in rows.items():
        spread = (row["high"] - row["low"]) / 2
        traced, compilation = row.get("trace_seconds"), row["compile_seconds"]
        seconds = f"({compilation:.2f})" if compilation else ""
        shown.add_row(
            name, milliseconds(row["milliseconds"]), milliseconds(spread),
            f"{row['ratio']:.2f}", _to_twin(row, "ratio"),
            f"{row['percent_of_in_place']:.0f}",
            f"{row['state_bytes_per_parameter']:.2f}",
            seconds if traced is None else f"{traced:.2f}",
            _to_twin(row, "trace_ratio"),
            style=_style(name),
        )  # fmt: skip
    return shown


def _to_twin(row: dict[str, Any], name: str) -> str:
    ratio = row.get(f"{name}_to_twin")
    return "–" if ratio is None else f"{ratio:.2f}"


def _training_table(step: dict[str, Any]) -> Table:
    title = f"training step: {step['title']}, batch size {step['batch_size']}"
    columns = "ms", "spread", "optimizer, %\nof the step", "to com-\npile, s"
    shown = table(title, [""], columns, gap=2)
    for name, row in step["rows"].items():
        shown.add_row(
            name, milliseconds(row["milliseconds"]),
            milliseconds((row["high"] - row["low"]) / 2),
            "" if name == ALONE else f"{row['optimizer_percent']:.1f}",
            f"{row['compile_seconds']:.2f}",
            style=_style(name),
        )  # fmt: skip
    return shown


def _ratios(shapes: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for rows in shapes.values() for name in rows)
    return {
        name: {
            shape: rows[name]["ratio"] for shape, rows in shapes.items() if name in rows
        }
        for name in names
        if name != BASE
    }


def _style(name: str) -> str | None:
    return "bold" if name.startswith("ours") else None
