"""Writes checkpoints in the background, one at a time, each with its digests."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from . import _digests, _manifest
from ._reading import ARRAYS, REST, steps_in

_UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax adds to a name until it is complete


class Writer:
    """Orbax's manager of a folder, with digests and errors of our own.

    Args:
      folder: where; made if need be. What a killed process left unfinished goes.
      keep: how many checkpoints stay.
      damaged: steps whose checkpoints must make room; they are renamed.
    """

    def __init__(self, folder: Path, keep: int, damaged: Iterable[int]) -> None:
        self._folder = folder
        self._step: int | None = None  # what is being written
        self._manifest: dict[str, Any] = {}
        if jax.process_index() == 0:
            for step in damaged:
                aside = folder / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder / str(step), aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("rmsprop_jax.checkpoint.damaged")
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=checkpoint_managers.LatestN(keep),
                # It runs when all files are there, just before the folder's move.
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._complete
                ),
            ),
        )

    def save(
        self,
        step: int,
        arrays: dict[str, Any],
        rest: dict[str, Any],
        manifest: dict[str, Any],
    ) -> None:
        """Begins to write a checkpoint, when the one before is complete.

        Raises:
          OSError: if one of the two could not be written.
        """
        self.wait()
        self._step, self._manifest = step, manifest
        items: dict[str, Any] = {
            ARRAYS: ocp.args.StandardSave(arrays),
            REST: ocp.args.JsonSave(rest),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
          OSError: if it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, and ends the threads.

        Raises:
          OSError: if the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def _complete(self) -> None:
        folder = self._folder / f"{self._step}{_UNFINISHED}"
        _manifest.write(folder, self._manifest)
        _digests.write(folder)

    def _failed(self, error: Exception) -> OSError:
        """Returns the error that says so; what was written of it makes room."""
        if jax.process_index() == 0:
            unfinished = self._folder / f"{self._step}{_UNFINISHED}"
            shutil.rmtree(unfinished, ignore_errors=True)
        self._manager.reload()  # it counts as gone what it meant to remove
        before = [step for step in steps_in(self._folder) if step != self._step]
        stays = f"that of step {before[-1]} is as it was" if before else "there is none"
        reason = " ".join(str(error).split())[:300]
        return OSError(
            f"The checkpoint of step {self._step} could not be written to "
            f"{self._folder}; {stays}. {type(error).__name__}: {reason}"
        )
