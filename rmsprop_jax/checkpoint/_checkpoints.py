"""`Checkpoints`: what a user calls."""

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from .. import _checks
from . import _arguments, _leaves, _manifest
from ._reading import Restored, newest, steps_in
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
      TypeError: if an argument is of the wrong kind.
      ValueError: if an argument is out of its range, or `folder` is the address of a
        bucket: what is mounted renames a folder at once, and object stores do not.
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
        self._folder = _arguments.folder(folder)
        self._keep = _checks.integer("keep", keep, 1, _arguments.MOST_STEPS)
        self._settings = _arguments.settings(settings)
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
          step: an integer, at least 0 and greater than those of the checkpoints that
            there are; NumPy's and JAX's integers are accepted.
          params: the parameters and all else that the run has in arrays: any tree, or
            an NNX model.
          opt_state: the optimizer's state: any tree, or an `nnx.Optimizer`.
          position: where the data are: what JSON can hold, and NumPy's and JAX's
            scalars, which come back as Python's; tuples come back as lists.

        Raises:
          OSError: if a checkpoint, this one or the last, could not be written. Those
            before are as they were; if it was the last, this one is not begun.
          ValueError: if there is a checkpoint of this step or a later one, `step` is
            negative, or two leaves have one name.
          TypeError: if `step` is no integer, `position` is not what JSON can hold, or
            a leaf is no array and no number; the error names it, and nothing is
            written.
        """
        step = _checks.integer("step", step, 0, _arguments.MOST_STEPS)
        rest = {"position": _arguments.position(position), "settings": self._settings}
        trees = {"params": params, "opt_state": opt_state}
        leaves = _leaves.named({k: _leaves.state_of(tree) for k, tree in trees.items()})
        _leaves.check(leaves)
        arrays = _leaves.to_write(leaves)
        manifest = _manifest.of(step, leaves, opt_state)
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
        self._writer.save(step, arrays, rest, manifest)

    def restore(self, params: Any, opt_state: Any) -> Restored | None:
        """Returns the newest checkpoint that is whole, or None if there is none at all.

        Args:
          params: a tree like the one that was saved, of arrays or
            `jax.ShapeDtypeStruct`s, with the shardings that are wanted now, whatever
            they were; the values do not matter. An NNX model is changed in place.
          opt_state: likewise, usually `tx.init(params)` or an `nnx.Optimizer`.

        Beside a process that writes, a folder may go while it is read, because a newer
        one is complete: that one is then read.

        Warns:
          UserWarning: if a newer one is damaged. The next `save` renames it.

        Raises:
          ValueError: if none is whole, the run had other settings, or what was saved
            has other leaves, shapes or dtypes. Nothing is restored in part.
        """
        self.wait()
        restored, self._damaged = newest(
            self._folder, params, opt_state, self._settings
        )
        return restored

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
