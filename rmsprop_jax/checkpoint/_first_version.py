"""What version 0.1 wrote: no manifest, and one class of state for all options."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _leaves
from ._leaves import Name


def fitted(
    path: Path,
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    leaves: Mapping[Name, Any],
) -> dict[str, Any]:
    """Returns what is wanted of a checkpoint without a manifest.

    Its states have a `count` where Optax's class, which now stands there, has none: it
    is read and left out. They lack `lowest`, the range of one-byte codes: that of the
    state that was given stays.

    Args:
      path: the folder of the checkpoint.
      saved: what it holds, by Orbax's metadata.
      wanted: what Orbax shall read.
      leaves: the leaves that were given, by name.

    Warns:
      UserWarning: if a count is left out.
    """
    found, asked = _leaves.flat(saved), dict(_leaves.flat(wanted))
    for name in list(asked):
        is_given = not _leaves.is_abstract(leaves[name])
        if name[-1] == "lowest" and name not in found and is_given:
            del asked[name]
    counts = [
        name
        for name in found.keys() - asked.keys()
        if name[-1] == "count" and _fields(found, name[:-1]) == {"count", "nu"}
    ]
    counts = [name for name in counts if _fields(asked, name[:-1]) == {"nu"}]
    for name in counts:
        asked[name] = np.zeros((), np.int32)
    if counts:
        warnings.warn(
            f"{path} has no manifest, so rmsprop_jax 0.1 wrote it: "
            f"{', '.join('.'.join(name) for name in sorted(counts))} is left out, "
            "because the same options need no count now. If Optax with "
            "`bias_correction` made that state, restore it as such and call "
            "`rmsprop_jax.convert.migrate` instead.",
            stacklevel=5,
        )
    return _leaves.nested(asked)


def _fields(leaves: Mapping[Name, Any], parent: Name) -> set[str]:
    """Returns the names that follow a path."""
    depth = len(parent)
    return {name[depth] for name in leaves if name[:depth] == parent and name[depth:]}
