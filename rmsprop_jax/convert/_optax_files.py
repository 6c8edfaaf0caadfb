"""States of Optax as nested dictionaries, in memory and in files.

These are Flax's msgpack, a .npz with the same paths, and folders of Orbax.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import _files
from ._record import STATES


def load(path: Any) -> dict[str, Any]:
    """Returns the nested dictionaries in a file."""
    path = Path(path)
    if path.is_dir():
        return _orbax(path)
    _files.check_zip(path)
    try:
        return _nested_in(path)
    except ValueError as error:
        raise ValueError(
            f"{path.name} is damaged, or is not what its name says, or holds pickled "
            "objects, which would execute what is in them."
        ) from error


def _nested_in(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        content: dict[str, Any] = {}
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            for key in file.files:
                _files.nest(content, key.split("/"), file[key])
        return content
    import flax.serialization  # here, because it takes a second

    restored: Any = flax.serialization.msgpack_restore(path.read_bytes())
    return restored


def folder_of(path: Path) -> Path | None:
    """Returns the folder of Orbax's that a path is or has in it, None if there is none.

    Raises:
      ValueError: if there are several.
    """
    for pattern in ("_METADATA", "*/_METADATA", "*/*/_METADATA"):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{path.name} has several checkpoints of Orbax: pass one of "
                f"{', '.join(str(file.parent) for file in found)}."
            )
        if found:
            return found[0].parent
    return None


def _orbax(path: Path) -> dict[str, Any]:
    ocp = _files.needed("orbax.checkpoint", f"Reading {path.name}", "orbax-checkpoint")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        sizes = [
            leaf.dtype.itemsize * int(np.prod(leaf.shape))
            for leaf in jax.tree.leaves(tree)
            if hasattr(leaf, "dtype")
        ]
        _files.check_growth(path.name, stored, sum(sizes))
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        content = reader.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
    return content


def numbered(content: Any) -> Any:
    """Returns nested lists as dictionaries by number, as Flax has them."""
    if isinstance(content, list | tuple):
        content = {str(i): value for i, value in enumerate(content)}
    if isinstance(content, Mapping):
        return {key: numbered(value) for key, value in content.items()}
    return content


def nested(state: Any) -> dict[str, Any]:
    """Returns a state of Optax in memory as nested dictionaries.

    Raises:
      TypeError: if it is no such state.
      ValueError: if it is the state of another optimizer.
    """
    import flax.serialization  # here, because it takes a second

    content: Any = flax.serialization.to_state_dict(state)
    if not isinstance(content, Mapping):
        raise TypeError(
            "`source` must be a path, the content of a file or a state of Optax, got "
            f"{type(state).__name__}."
        )
    found = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu"))
    for node in found:
        if hasattr(node, "nu") and not isinstance(node, STATES):
            raise ValueError(f"This is not RMSProp: it has a {type(node).__name__}.")
    return dict(content)
