"""`Checkpoints`: what a user calls."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import _leaves
from ._reading import Restored, newest_whole, read, steps_in
from ._writing import Writer


class Checkpoints:
    """The last checkpoints of a run, in a folder of their own.

    Saving is asynchronous: `save` returns when the arrays are copied; they may then be
    donated or changed. A checkpoint is written under another name, digests last, and
    moved: after a kill at any moment it is complete or not there. An older one goes
    when the new one is complete, so a full disk leaves what was there. Digests tell
    any changed byte of the arrays and of the position. Of several processes, all call
    all methods, on one folder that they share; the first makes and checks the digests.

    Args:
      folder: where, on a disk or something mounted that renames atomically. The first
        `save` makes it.
      keep: how many checkpoints are kept, at least 1. Where one may be damaged, more.
      settings: what must stay the same in a run that goes on, such as its seed, batch
        size and hyperparameters: a dictionary of what JSON can hold (anything else
        counts by its text). None checks nothing.

    Raises:
      ValueError: if an argument is out of its range.
      NotADirectoryError: if `folder` is a file.

    Example:
      >>> import tempfile, jax.numpy as jnp, optax
      >>> from rmsprop_jax import rmsprop
      >>> from rmsprop_jax.checkpoint import Checkpoints
      >>> tx, folder = rmsprop(0.1), tempfile.mkdtemp()
      >>> def train(steps):
      ...     params = jnp.ones(3)
      ...     state, position, start = tx.init(params), {"batch": 0}, 0
      ...     with Checkpoints(folder, settings={"learning_rate": 0.1}) as checkpoints:
      ...         if restored := checkpoints.restore(params, state):
      ...             start, params, state, position = restored
      ...         for step in range(start + 1, steps + 1):
      ...             updates, state = tx.update(params, state)
      ...             params = optax.apply_updates(params, updates)
      ...             checkpoints.save(step, params, state, {"batch": step})
      ...     return start, position
      >>> train(2), train(5)
      ((0, {'batch': 0}), (2, {'batch': 2}))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if "://" in os.fspath(folder):
            raise ValueError(
                f"`folder` must be a path, got {os.fspath(folder)!r}: mount the bucket."
            )
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise ValueError(f"`keep` must be an integer of at least 1, got {keep!r}.")
        self._folder = Path(folder).absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"`folder` must be a folder; {folder} is a file.")
        self._keep = keep
        self._settings = None
        if settings is not None:  # as they will be when they were read
            self._settings = json.loads(json.dumps(dict(settings), default=str))
        self._writer: Writer | None = None
        self._damaged: list[int] = []

    @property
    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending, damaged ones included."""
        return steps_in(self._folder)

    def save(
        self, step: int, params: Any, opt_state: Any, position: Any = None
    ) -> None:
        """Begins to write a checkpoint, when the one before is complete.

        Args:
          step: a number greater than those of the checkpoints that there are.
          params: the parameters and all else that the run has in arrays: any tree, or
            an NNX model.
          opt_state: the optimizer's state: any tree, or an `nnx.Optimizer`.
          position: where the data are: what JSON can hold.

        Raises:
          OSError: if a checkpoint, this one or the last, could not be written. Those
            before are as they were; if it was the last, this one is not begun.
          ValueError: if there is a checkpoint of this step or a later one, or two
            leaves have one name.
          TypeError: if `position` is not what JSON can hold.
        """
        rest = {"position": position, "settings": self._settings}
        try:
            json.dumps(rest)
        except (TypeError, ValueError) as error:
            message = f"`position` must be what JSON can hold: {error}."
            raise TypeError(message) from error
        trees = {"params": params, "opt_state": opt_state}
        trees = {key: _leaves.state_of(tree) for key, tree in trees.items()}
        arrays = _leaves.to_write(_leaves.named(trees))
        if self._writer is None:
            self._writer = Writer(self._folder, self._keep, self._damaged)
            self._damaged = []
        self._writer.wait()
        newest = max(self.steps, default=-1)
        if step <= newest:
            raise ValueError(
                f"`step` must be more than {newest}, the newest in {self._folder}, got "
                f"{step!r}: go on with `restore`, or use another folder."
            )
        self._writer.save(step, arrays, rest)

    def restore(self, params: Any, opt_state: Any) -> Restored | None:
        """Returns the newest checkpoint that is whole, or None if there is none at all.

        Args:
          params: a tree like the one that was saved, of arrays or
            `jax.ShapeDtypeStruct`s, with the shardings that are wanted now, whatever
            they were; the values do not matter. An NNX model is changed in place.
          opt_state: likewise, usually `tx.init(params)` or an `nnx.Optimizer`.

        Warns:
          UserWarning: if a newer one is damaged. The next `save` renames it.

        Raises:
          ValueError: if none is whole, the run had other settings, or what was saved
            has other leaves, shapes or dtypes. Nothing is restored in part.
        """
        self.wait()
        step, self._damaged = newest_whole(self._folder)
        if step is None:
            return None
        return read(self._folder / str(step), params, opt_state, self._settings)

    def wait(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
          OSError: if it could not be written; those before are as they were.
        """
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Waits like `wait`, and ends the threads that write."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
