"""Two runs beside each other: `--compare`."""

import math
from typing import Any

from ..lab import tables as terminal
from ..lab.results import machine
from .speed_tables import ratio_tables

TRAINING = "step"


def show(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Prints new / old for every time that both have, and the geometric means."""
    found = ratios(new, old)
    if not found:
        terminal.notes("nothing to compare: no row and shape is in both runs")
        return
    by_row = {
        name: row | {"mean": geometric_mean(list(row.values()))}
        for name, row in found.items()
    }
    for table in ratio_tables("time / time of the earlier run", by_row):
        terminal.show(table)
    every = [ratio for row in found.values() for ratio in row.values()]
    mean = geometric_mean(every)
    terminal.findings(f"geometric mean of {len(every)}: {mean:.3f}")
    terminal.notes(*differences(old.get("machine", {})))


def ratios(new: dict[str, Any], old: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns new / old by row and shape, where both runs have it."""
    after, before = times(new), times(old)
    found: dict[str, dict[str, float]] = {}
    for (name, shape), milliseconds in after.items():
        if (name, shape) in before:
            ratio = milliseconds / before[name, shape]
            found.setdefault(name, {})[shape] = ratio
    return found


def geometric_mean(values: list[float]) -> float:
    """Returns exp of the mean of the logarithms."""
    return math.exp(sum(map(math.log, values)) / len(values))


def differences(old: dict[str, Any]) -> list[str]:
    """Returns a line for each version, or kind of device, that is another now."""
    return [
        f"{key}: {old[key]} then, {value} now"
        for key, value in machine().items()
        if key in old and old[key] != value
    ]


def times(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Returns the milliseconds of every row and shape.

    Raises:
      AttributeError, KeyError or TypeError: if it is nothing that was measured.
    """
    tables = {name: shape.get("rows", {}) for name, shape in found["shapes"].items()}
    tables[TRAINING] = found.get("training_step", {}).get("rows", {})
    return {
        (name, shape): row["milliseconds"]
        for shape, rows in tables.items()
        for name, row in rows.items()
    }
