"""Optimizer state of Optax in files, inside any chain.

It is Flax's msgpack of a state, or a .npz with the same paths.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _files
from ._record import Group, Record, Slots


def read(
    source: Any, framework: str | None = None, names: Iterable[str] | None = None
) -> Record:
    """Returns the record of a .msgpack or .npz file of a state of Optax.

    Args:
      source: the path, or what `flax.serialization.to_state_dict` returns.
      framework: "optax".
      names: the parameters to take; by default all.
    """
    del framework
    content = source if isinstance(source, Mapping) else load(source)
    nodes = dict(_nodes(content))
    averages = [node for node in nodes.values() if "nu" in node]
    if len(averages) != 1:
        raise ValueError(
            f"It has {len(averages)} states with a `nu` where one is expected: RMSProp "
            f"in a chain. Found {', '.join(nodes)}."
        )
    (average,) = averages
    if list(average) == ["count", "nu", "mu"]:  # Optax has nu last
        raise ValueError(
            "This is a state of rmsprop_jax, not of Optax: restore it as what it is "
            "(flax.serialization.from_bytes), or keep it with convert.save."
        )
    square = dict(_leaves(average["nu"]))
    mean = dict(_leaves(average["mu"])) if "mu" in average else {}
    trace = [dict(_leaves(node["trace"])) for node in nodes.values() if "trace" in node]
    names = tuple(square if names is None else names)
    counts = [int(node["count"]) for node in nodes.values() if "count" in node]
    hyperparameters: dict[str, Any] = {
        "centered": bool(mean),
        "bias_correction": "count" in average,
    }
    missing = ("learning_rate", "decay", "eps", *(("momentum",) if trace else ()))
    slots = {
        name: Slots(square[name], mean.get(name), -trace[0][name] if trace else None)
        for name in names
    }
    weights = dict(_leaves(content["params"])) if "params" in content else {}
    return Record(
        "optax",
        max(counts, default=0),
        (Group(hyperparameters, names),),
        slots,
        missing,
        {name: weights[name] for name in names if name in weights},
    )


def load(path: Any) -> dict[str, Any]:
    """Returns the nested dictionaries in a file."""
    path = Path(path)
    if path.suffix == ".npz":
        content: dict[str, Any] = {}
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                _files.nest(content, key.split("/"), file[key])
        return content
    import flax.serialization  # here, because it takes a second

    restored: Any = flax.serialization.msgpack_restore(path.read_bytes())
    return restored


def _nodes(
    content: Any, start: str = "state"
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields the states in a chain."""
    if not isinstance(content, Mapping):
        return
    yield start, content
    if not {"nu", "trace"} & set(content):
        for key, value in content.items():
            yield from _nodes(value, f"{start}.{key}")


def _leaves(tree: Any, start: str = "") -> Iterable[tuple[str, np.ndarray]]:
    if not isinstance(tree, Mapping):
        yield start, np.asarray(tree)
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{start}/{key}" if start else str(key))
