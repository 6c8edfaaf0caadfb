"""The JSON of a run: what was asked for, versions, machine, and what was measured."""

import argparse
import importlib.util
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rmsprop_jax

from .. import _files
from . import options

DIGITS = 5
"""Significant digits that numbers keep. Arrays keep all: they are paired, seed by seed.
"""

OTHERS = ("torch", "bitsandbytes", "keras", "libtpu", "jax_cuda13_plugin")
"""Packages whose versions matter where they are installed."""

_NO_OPTIONS = (
    "run", "run_benchmark", "command", "benchmark", "out", "quiet", "resume",
    "compare", "checkpoint_dir",
)  # fmt: skip
"""What a parser returns that changes no number."""


def content(
    benchmark: str, found: Any, arguments: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """Returns what was measured with what it was measured on."""
    asked = {k: v for k, v in vars(arguments).items() if k not in _NO_OPTIONS}
    return {
        "benchmark": benchmark,
        "quick": bool(asked.get("quick")),
        "options": asked,
        "seconds": seconds,
        "machine": machine(),
        **found,
    }


def machine() -> dict[str, Any]:
    """Returns the versions and the kind of machine, but nothing that names it."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "rmsprop_jax": rmsprop_jax.__version__,
        "machine": platform.machine(),
        "platform": device.platform,
        "device": device.device_kind,
        "cpu_count": os.cpu_count(),
        **{n: version(n) for n in OTHERS if importlib.util.find_spec(n)},
    }


def finish(
    command: str,
    arguments: argparse.Namespace,
    name: str,
    content: Mapping[str, Any],
    others: Mapping[str, bytes] | None = None,
) -> int:
    """Writes the files of a run, says where they are, and returns the exit status.

    Args:
      command: for the error.
      arguments: those of the command, with `out` and `quiet`.
      name: of the JSON.
      content: what goes into it.
      others: other files by name, such as pictures.
    """
    out = Path(arguments.out)
    try:
        kept = write(out, name, content, others)
    except OSError as error:
        return options.fail(command, f"could not write to {out}: {error}")
    if not arguments.quiet:
        if kept:
            print(f"earlier results of other options are now in {kept}")
        paths = ", ".join(str(out / file) for file in (f"{name}.json", *(others or ())))
        print(f"{paths}, after {content['seconds']:.0f} seconds")
    return 0


def write(
    folder: Path,
    name: str,
    content: Mapping[str, Any],
    others: Mapping[str, bytes] | None = None,
) -> Path | None:
    """Writes `name`.json and other files into a folder, whole or not at all.

    Results of other options that are there under these names are first copied into a
    folder beside, whose path it returns.
    """
    contents = {f"{name}.json": json_bytes(content), **(others or {})}
    kept = None
    if _asked(folder / f"{name}.json") not in (None, _asked(contents[f"{name}.json"])):
        numbers = (n for n in range(1, 10**6) if not (folder / f"earlier-{n}").exists())
        kept = folder / f"earlier-{next(numbers)}"
        there = [folder / file for file in contents if (folder / file).is_file()]
        _files.write(kept, {path.name: path.read_bytes() for path in there})
    _files.write(folder, contents)
    return kept


def _asked(source: Path | bytes) -> Any:
    """Returns the benchmark and options of results, None where there is no file."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        found = json.loads(data)
        return found.get("benchmark"), found.get("options")
    except OSError:
        return None
    except (ValueError, AttributeError):
        return "no results"


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
        raise ValueError(f"it is not from the {benchmark} part of `rmsprop-jax`")
    return found


def json_bytes(value: Any) -> bytes:
    """Returns JSON in UTF-8; a number that is not finite becomes null."""
    return (json.dumps(_plain(value), indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any, digits: int = DIGITS) -> Any:
    """Returns a value in the types that `json` knows."""
    match value:
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case np.ndarray():
            return _plain(value.tolist(), 17)
        case np.generic():
            return _plain(value.item(), digits)
        case list() | tuple():
            return [_plain(item, digits) for item in value]
        case float() if not math.isfinite(value):
            return None
        case float():
            return float(f"{value:.{digits}g}")
        case Path():
            return str(value)
        case _:
            return value


class Cells:
    """Parts of what takes long: each is written as soon as it is there.

    The file has the settings of the run: parts that were measured with others are
    refused, for they would be mixed without a trace.
    """

    def __init__(self, folder: Path | None, name: str, resume: bool) -> None:
        """Keeps nothing without a folder; forgets what there was without `resume`."""
        self._path = folder and folder / f"{name}-cells.json"
        self._name, self._resume = name, resume

    def begin(self, settings: dict[str, Any]) -> None:
        """Reads what there is.

        Args:
          settings: of the experiment, in the types of JSON.

        Raises:
          ValueError: if the file is not one of these, or has other settings.
        """
        self._settings, self._found = settings, {}
        if self._path is None or not self._resume or not self._path.exists():
            return
        kept = read(self._path, self._name)
        if kept["settings"] != json.loads(json.dumps(settings)):
            raise ValueError(
                f"{self._path} has parts of a run with other settings: name another "
                "--out, or leave --resume away to begin again"
            )
        self._found = kept["cells"]

    def of(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a part, measured only if it is not there yet."""
        if name not in self._found:
            self._found[name] = measure()
            if self._path is not None:
                content = {"settings": self._settings, "cells": self._found}
                data = json_bytes({"benchmark": self._name, **content})
                _files.write(self._path.parent, {self._path.name: data})
        return self._found[name]

    def done(self) -> None:
        """Removes the file: all parts stand in the results."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
