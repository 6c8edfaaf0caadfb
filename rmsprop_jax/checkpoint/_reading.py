"""Finds the newest checkpoint that is whole, and reads it if it fits."""

import json
import re
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

from . import _digests, _first_version, _leaves, _manifest

ARRAYS, REST = "state", "position"  # the two folders of a checkpoint

_NONE, _ALL_DAMAGED = -1, -2
_STEP = re.compile("0|[1-9][0-9]*")  # as they are written; 007 is not ours
_LOOKS = 100  # at a folder whose checkpoints go away while they are read


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
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def newest(
    folder: Path, params: Any, opt_state: Any, settings: Any
) -> tuple[Restored | None, list[int]]:
    """Returns the newest checkpoint that is whole, and the steps of those damaged.

    A writer beside this process removes a checkpoint when a newer one is complete.
    So where something is amiss and the steps are others than before, it looks again.

    Raises:
      ValueError: if there are checkpoints, and none is whole or the newest that is
        whole does not fit.
    """
    for _ in range(_LOOKS):
        steps = steps_in(folder)
        try:
            step, damaged = _newest_whole(folder, steps)
            if step is None:
                return None, []
            path = folder / str(step)
            found = read(path, params, opt_state, settings)
            if _digests.missing(path):  # removed while it was read
                raise FileNotFoundError(path)
        except Exception:
            if jax.process_count() > 1 or steps_in(folder) == steps:
                raise
            continue
        if damaged and jax.process_count() == 1 and steps_in(folder) != steps:
            continue
        _warn(folder, step, damaged)
        return placed(found, params, opt_state), list(damaged)
    raise ValueError(
        f"The checkpoints in {folder} went away {_LOOKS} times while they were read, "
        "because newer ones were complete: keep more than one, or save less often."
    )


def _newest_whole(folder: Path, steps: list[int]) -> tuple[int | None, dict[int, str]]:
    """Returns the newest step that is whole, and what is wrong with those after it.

    The first process of several looks; all return the same step, the others no more.

    Raises:
      ValueError: if there are checkpoints, and none is whole.
    """
    damaged: dict[int, str] = {}
    chosen = _NONE
    if jax.process_index() == 0:
        for step in reversed(steps):
            reason = _digests.damage(folder / str(step))
            chosen = _ALL_DAMAGED if reason else step
            if reason is None:
                break
            damaged[step] = reason
    if jax.process_count() > 1:
        bits = np.frombuffer(np.int64(chosen).tobytes(), np.uint8)  # JAX has no int64
        bits = np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint8)
        chosen = int(np.frombuffer(bits.tobytes(), np.int64)[0])
    if chosen == _ALL_DAMAGED:
        raise ValueError(f"No checkpoint in {folder} is whole. {_said(damaged)}.")
    return (None if chosen == _NONE else chosen), damaged


def _said(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())


def _warn(folder: Path, step: int, damaged: Mapping[int, str]) -> None:
    if damaged:
        warnings.warn(
            f"Damaged checkpoint in {folder} ({_said(damaged)}): that of step {step} "
            "is used.",
            stacklevel=4,
        )


def read(path: Path, params: Any, opt_state: Any, settings: Any) -> Restored:
    """Returns the checkpoint in a folder, in the trees of those that are given.

    Raises:
      ValueError: if it does not fit these, or is of other settings.
    """
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        rest = reader.restore(path / REST)
    _check_settings(path, rest["settings"], settings)
    given = {"params": params, "opt_state": opt_state}
    trees = {key: _leaves.state_of(tree) for key, tree in given.items()}
    leaves = _leaves.named(trees)
    _leaves.check(leaves, with_values=False)
    wanted = _leaves.to_read(leaves)
    handler = ocp.StandardCheckpointHandler()
    saved = handler.metadata(epath.Path(path / ARRAYS)).tree
    manifest = _manifest.read(path)
    if manifest is None:
        wanted = _first_version.fitted(path, saved, wanted, leaves)
        words = []
    else:
        words = _manifest.differences(manifest, leaves, opt_state)
    _check_fit(path, saved, wanted, words)
    with ocp.Checkpointer(handler) as reader:
        arguments = ocp.args.StandardRestore(wanted)
        found = reader.restore(path / ARRAYS, args=arguments)
    trees = _leaves.replaced(trees, found)
    return Restored(int(path.name), **trees, position=rest["position"])


def placed(found: Restored, params: Any, opt_state: Any) -> Restored:
    """Returns what was read, with NNX objects changed in place and in its place."""
    for name, tree in {"params": params, "opt_state": opt_state}.items():
        if isinstance(tree, nnx.Pytree):
            nnx.update(tree, getattr(found, name))
            found = found._replace(**{name: tree})
    return found


def _check_settings(path: Path, saved: Any, settings: Any) -> None:
    texts = [json.dumps(x, sort_keys=True) for x in (saved, settings)]  # NaN is NaN
    if settings is None or texts[0] == texts[1]:
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


def _check_fit(
    path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any], words: list[str]
) -> None:
    """Raises if the leaves differ; `words` are differences that were found before."""
    names = _leaves.differences(saved, wanted)
    if not names and not words:
        return
    advice = (
        "If that is the state of another transformation, restore it as it was saved, "
        "`old = checkpoints.restore(params, old_tx.init(params))`, and call "
        "`rmsprop_jax.convert.migrate(old.opt_state, tx, params)`."
    )
    starts = {name[0] for name in names} | {word.split(".")[0] for word in words}
    if any(start.startswith("params") for start in starts):
        advice = "Give parameters like those that were saved."
    said = "; ".join([*words, *_leaves.in_words(names, saved, wanted)])
    raise ValueError(
        f"The checkpoint of step {path.name} in {path.parent} does not fit: "
        f"{said}. {advice}"
    )
