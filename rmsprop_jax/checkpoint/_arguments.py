"""Which folders, positions and settings a checkpoint accepts."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters: C:/ is a disk

MOST_STEPS = 2**63 - 1


def folder(given: Any) -> Path:
    """Returns the absolute path of a folder for checkpoints.

    Raises:
      TypeError: if it is no path.
      ValueError: if it is empty, or the address of something that is not mounted.
      NotADirectoryError: if it is a file.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"`folder` must be a path, got {given!r}.")
    text = os.fspath(given)
    if not isinstance(text, str) or not text:
        raise ValueError(f"`folder` must be the path of a folder, got {text!r}.")
    if _SCHEME.match(text):
        raise ValueError(
            f"`folder` must be a path, got {text!r}: mount the bucket. A checkpoint "
            "becomes complete by the renaming of its folder, which object stores do "
            "not do at once: after a kill there, half a checkpoint could pass as whole."
        )
    path = Path(text).absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"`folder` must be a folder; {text} is a file.")
    return path


def position(given: Any) -> Any:
    """Returns a position as JSON holds it; NumPy's and JAX's scalars become Python's.

    Raises:
      TypeError: if JSON cannot hold it, or would hold something else.
      ValueError: if it has a number that is not finite, for which JSON has no word.
    """
    _check_keys(given)
    try:
        return json.loads(json.dumps(given, default=_scalar, allow_nan=False))
    except TypeError as error:
        raise TypeError(f"`position` must be what JSON can hold: {error}.") from error
    except ValueError as error:
        raise ValueError(
            f"`position` must be what JSON can hold: {error}. Write None, or the "
            "number's text."
        ) from error


def settings(given: Any) -> dict[str, Any] | None:
    """Returns settings as they will be when they were read.

    Raises:
      TypeError: if they are no dictionary, or one has no text but its address.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`settings` must be a dictionary of names and values, got {given!r}."
        )
    return json.loads(json.dumps(dict(given), default=_text))


def _text(value: Any) -> str:
    """Returns the text of a setting, which a later run can compare."""
    if " at 0x" in (text := str(value)):
        raise TypeError(
            f"`settings` has {text}, which is another in every process: give its name, "
            "or its numbers."
        )
    return text


def _check_keys(given: Any) -> None:
    """Raises where a dictionary has keys that JSON would turn into text."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"`position` must be what JSON can hold: the key {key!r} is no "
                    f"text, and would come back as {str(key)!r}."
                )
            _check_keys(value)
    elif isinstance(given, list | tuple):
        for value in given:
            _check_keys(value)


def _scalar(value: Any) -> Any:
    """Returns the Python number of a NumPy or JAX scalar."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        return np.asarray(value).item()
    raise TypeError(f"{type(value).__name__} is not what JSON can hold")
