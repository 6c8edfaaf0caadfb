"""Finds the newest checkpoint that is whole, and reads it if it fits."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from . import _digests, _leaves

ARRAYS, REST = "state", "position"  # the two folders of a checkpoint

_NONE, _ALL_DAMAGED = -1, -2


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
      step: the number that it was saved under.
      params: the parameters, in the tree and on the devices of those that were given.
      opt_state: the optimizer's state, likewise.
      position: where the data were, as it was saved.
    """

    step: int
    params: Any
    opt_state: Any
    position: Any


def steps_in(folder: Path) -> list[int]:
    """Returns the steps that a folder has checkpoints of, ascending."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def newest_whole(folder: Path) -> tuple[int | None, list[int]]:
    """Returns the step of the newest checkpoint that is whole, and those damaged.

    The first process of several looks; all return the same step, the others no more.

    Raises:
      ValueError: if there are checkpoints, and none is whole.
    """
    damaged: dict[int, str] = {}
    chosen = _NONE
    if jax.process_index() == 0:
        for step in reversed(steps_in(folder)):
            reason = _digests.damage(folder / str(step))
            chosen = _ALL_DAMAGED if reason else step
            if reason is None:
                break
            damaged[step] = reason
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    said = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    if chosen == _ALL_DAMAGED:
        raise ValueError(f"No checkpoint in {folder} is whole. {said}.")
    if damaged:
        warnings.warn(
            f"Damaged checkpoint in {folder} ({said}): that of step {chosen} is used.",
            stacklevel=3,
        )
    return (None if chosen == _NONE else chosen), list(damaged)


def read(path: Path, params: Any, opt_state: Any, settings: Any) -> Restored:
    """Returns the checkpoint in a folder, in the form of the trees that are given.

    Raises:
      ValueError: if it does not fit these, or is of other settings.
    """
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        rest = reader.restore(path / REST)
    _check_settings(path, rest["settings"], settings)
    given = {"params": params, "opt_state": opt_state}
    trees = {key: _leaves.state_of(tree) for key, tree in given.items()}
    wanted = _leaves.to_read(_leaves.named(trees))
    handler = ocp.StandardCheckpointHandler()
    _check_fit(path, handler.metadata(epath.Path(path / ARRAYS)).tree, wanted)
    with ocp.Checkpointer(handler) as reader:
        arguments = ocp.args.StandardRestore(wanted)
        found = reader.restore(path / ARRAYS, args=arguments)
    trees = _leaves.replaced(trees, found)
    for key, tree in given.items():
        if isinstance(tree, nnx.Pytree):
            nnx.update(tree, trees[key])
            trees[key] = tree
    return Restored(int(path.name), **trees, position=rest["position"])


def _check_settings(path: Path, saved: Any, settings: Any) -> None:
    if settings is None or saved == settings:
        return
    saved = saved or {}
    differing = "; ".join(
        f"`{name}` was {saved.get(name)!r}, is {settings.get(name)!r}"
        for name in dict.fromkeys((*settings, *saved))
        if saved.get(name) != settings.get(name)
    )
    raise ValueError(
        f"The run in {path.parent} had other settings: {differing}. Use those, or "
        "another folder."
    )


def _check_fit(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    names = _leaves.differences(saved, wanted)
    if not names:
        return
    advice = (
        "If that is the state of another RMSProp, restore it as it was saved, `old = "
        "checkpoints.restore(params, old_tx.init(params))`, and call "
        "`rmsprop_jax.convert.migrate(old.opt_state, tx, params)`."
    )
    if any(name[0] == "params" for name in names):
        advice = "Give parameters like those that were saved."
    raise ValueError(
        f"The checkpoint of step {path.name} in {path.parent} does not fit: "
        f"{_leaves.in_words(names, saved, wanted)}. {advice}"
    )
