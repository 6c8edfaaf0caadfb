"""The manifest of a checkpoint: what is in it, for people and for `restore`.

`manifest.json` has the versions that wrote it, the step, every leaf's dtype, shape and
stored form, and of every element of the optimizer what its state tells: its class, its
counts and hyperparameters, the dtypes of its accumulators. Names alone do not tell an
average of squares from a variance: Adam's state has the leaves of a centred RMSProp's.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import __version__
from .._leaves import name_of
from .._matching import class_name
from ._leaves import Name, is_key, key_implementation

NAME = "manifest.json"
_FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint")
_CODES = {
    "uint8": "unsigned float: 6 bits of exponent, 2 of mantissa, from 2**lowest",
    "uint16": "unsigned float: 8 bits of exponent, 8 of mantissa",
}


def of(step: int, leaves: Mapping[Name, Any], opt_state: Any) -> dict[str, Any]:
    """Returns the manifest of a checkpoint.

    Args:
      step: its step.
      leaves: all leaves by name.
      opt_state: the optimizer's state, in its own classes.
    """
    codes = {
        (*name, *name_of(path))
        for name, node in _elements(opt_state)
        if "nu" in node._fields
        for path, _ in jax.tree_util.tree_leaves_with_path({"nu": node.nu})
    }
    return {
        "format": _FORMAT,
        "step": step,
        "versions": _versions(),
        "leaves": {
            ".".join(name): _described(leaf, name in codes)
            for name, leaf in leaves.items()
        },
        "elements": {
            ".".join(name): {"class": class_name(type(node)), **_told(node)}
            for name, node in _elements(opt_state)
        },
    }


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest into the folder of a checkpoint."""
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a checkpoint, None for one of version 0.1.

    Raises:
      ValueError: if a later version wrote it.
    """
    path = folder / NAME
    if not path.exists():
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format"] > _FORMAT:
        raise ValueError(
            f"{path} was written by rmsprop-jax {manifest['versions']['rmsprop-jax']}, "
            f"in a form that this version, {__version__}, does not "
            "know: install that one."
        )
    return manifest


def differences(
    manifest: Mapping[str, Any], leaves: Mapping[Name, Any], opt_state: Any
) -> list[str]:
    """Returns in words what dtypes and shapes do not show.

    That is an element of another class under the same names, a random key of another
    generator, and arrays without elements.
    """
    saved = manifest["leaves"]
    words = []
    for name, node in _elements(opt_state):
        old, new = manifest["elements"].get(".".join(name)), class_name(type(node))
        if old is not None and old["class"] != new and jax.tree.leaves(node):
            words.append(
                f"{'.'.join(name)} was saved as {old['class']}, expected is {new}"
            )
    for name, leaf in leaves.items():
        found, wanted = saved.get(".".join(name)), _described(leaf, False)
        if found is None or (0 not in wanted["shape"] and not is_key(leaf)):
            continue  # Orbax's own metadata tell these
        keys = ("dtype", "shape") if 0 in wanted["shape"] else ("stored",)
        if found["stored"] == "array" and is_key(leaf):  # data of a key, as such
            keys = ()
        words.extend(
            f"{'.'.join(name)} was saved with {key} {found[key]}, expected is "
            f"{wanted[key]}"
            for key in keys
            if found[key] != wanted[key]
        )
    return words


def _elements(tree: Any, name: Name = ("opt_state",)) -> Iterator[tuple[Name, Any]]:
    """Yields the states that an optimizer's state is made of, outer ones first."""
    if tree is None or isinstance(tree, jax.Array | np.ndarray):
        return
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        yield name, tree
    below = jax.tree_util.tree_leaves_with_path
    children = below(tree, is_leaf=lambda x: x is not tree)
    for path, child in children:
        if path:
            yield from _elements(child, (*name, *name_of(path)))


def _told(node: Any) -> dict[str, Any]:
    """Returns what the fields of a state tell: numbers, and dtypes of accumulators."""
    return {field: _summary(value) for field, value in node._asdict().items()}


def _summary(value: Any) -> Any:
    leaves = jax.tree.leaves(value)
    if isinstance(value, dict) and all(jnp.shape(x) == () for x in leaves):
        return {str(key): _summary(x) for key, x in value.items()}
    if len(leaves) == 1 and leaves[0] is value and jnp.shape(leaves[0]) == ():
        return _number(leaves[0])
    dtypes = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
    return ", ".join(dtypes) or None


def _number(value: Any) -> Any:
    """Returns a scalar as JSON has it; the dtype of one whose value is not here."""
    if is_key(value) or not getattr(value, "is_fully_replicated", True):
        return str(value.dtype)
    number = np.asarray(value).item()
    return number if np.isreal(number) and np.isfinite(number) else str(number)


def _described(leaf: Any, is_code: bool) -> dict[str, Any]:
    dtype = str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
    stored = "array"
    if is_key(leaf):
        stored = f"random key of {key_implementation(leaf)}"
    elif is_code:
        stored = _CODES.get(dtype, stored)
    elif not hasattr(leaf, "dtype"):
        stored = f"Python {type(leaf).__name__}"
    return {"dtype": dtype, "shape": list(np.shape(leaf)), "stored": stored}


def _versions() -> dict[str, str]:
    found = {"rmsprop-jax": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, say
            found[package] = "unknown"
    return found
