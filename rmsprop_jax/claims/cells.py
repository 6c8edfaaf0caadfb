"""Parts of an experiment that takes long, kept in a file: it can go on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bench import results


class Cells:
    """What is measured part by part, each part written as soon as it is there.

    The file has the settings of the experiment: parts that were measured with others
    are refused, for they would be mixed without a trace.
    """

    def __init__(self, folder: Path | None, name: str, resume: bool) -> None:
        """Keeps nothing without a folder; forgets what there was without `resume`."""
        self._folder, self._name, self._resume = folder, name, resume

    def begin(self, settings: dict[str, Any]) -> None:
        """Reads what there is.

        Args:
          settings: of the experiment, in the types of JSON.

        Raises:
          ValueError: if the file is not one of these, or has other settings.
        """
        self._settings, self._found = settings, {}
        if self._folder is None or not self._resume or not self._path.exists():
            return
        kept = results.read(self._path, self._name)
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
            if self._folder is not None:
                content = {"settings": self._settings, "cells": self._found}
                results.write(
                    self._folder,
                    f"{self._name}-cells",
                    {"benchmark": self._name, **content},
                )
        return self._found[name]

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}-cells.json"
