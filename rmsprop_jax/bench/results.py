"""The JSON of a benchmark: settings, versions, machine, and what was measured."""

import importlib.util
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..demo import files

DIGITS = 5
"""Significant digits that are kept."""


def write(folder: Path, part: str, found: Any, quick: bool, seconds: float) -> Path:
    """Writes `part`.json into a folder, whole or not at all; returns its path."""
    path = Path(folder) / f"{part}.json"
    content = {
        "benchmark": f"storage {part}",
        "quick": quick,
        "seconds": seconds,
        "machine": _machine(),
        **found,
    }
    files.write(path.parent, {path.name: files.json_bytes(_rounded(content))})
    return path


def _machine() -> dict[str, Any]:
    """Returns the versions and the kind of machine, but nothing that names it."""
    machine = files._versions() | {"machine": platform.machine()}
    for name in ("torch", "bitsandbytes"):
        if importlib.util.find_spec(name):
            machine[name] = version(name)
    return machine


def _rounded(value: Any) -> Any:
    match value:
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case float() if math.isfinite(value):
            return float(f"{value:.{DIGITS}g}")
        case _:
            return value
