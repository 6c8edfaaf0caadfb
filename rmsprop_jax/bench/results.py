"""The JSON of a benchmark: settings, versions, machine, and what was measured."""

import importlib.util
import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..demo import files

DIGITS = 5
"""Significant digits that are kept."""

OTHERS = ("torch", "bitsandbytes", "keras", "libtpu", "jax_cuda13_plugin")
"""Packages whose versions matter where they are installed."""


def content(benchmark: str, found: Any, quick: bool, seconds: float) -> dict[str, Any]:
    """Returns what was measured with what it was measured on."""
    return {
        "benchmark": benchmark,
        "quick": quick,
        "seconds": seconds,
        "machine": _machine(),
        **found,
    }


def write(
    folder: Path, name: str, content: Any, others: Mapping[str, bytes] | None = None
) -> Path:
    """Writes `name`.json into a folder, with other files, whole or not at all.

    Returns the path of the JSON.
    """
    path = Path(folder) / f"{name}.json"
    data = files.json_bytes(_rounded(content))
    files.write(path.parent, {path.name: data, **(others or {})})
    return path


def read(path: Path, benchmark: str) -> dict[str, Any]:
    """Returns what a run of a benchmark wrote.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError:  # of JSON or of UTF-8
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict) or found.get("benchmark") != benchmark:
        raise ValueError(f"it is not from `rmsprop-jax bench`'s {benchmark} part")
    return found


def _machine() -> dict[str, Any]:
    """Returns the versions and the kind of machine, but nothing that names it."""
    machine = files.versions() | {"machine": platform.machine()}
    for name in OTHERS:
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
