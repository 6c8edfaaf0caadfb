"""Optimizer state of Optax in files, inside any chain.

It is Flax's msgpack of a state, or a .npz with the same paths.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import _files
from ._record import STATES, Group, Record, Slots


def read(
    content: Mapping[str, Any],
    names: Iterable[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Record:
    """Returns the record of a state of Optax.

    Args:
      content: what `load` or `nested` returns.
      names: the parameters to take; by default all.
      given: the hyperparameters of the call.
    """
    nodes = dict(_nodes(content))
    averages = [node for node in nodes.values() if "nu" in node]
    if len(averages) != 1:
        raise ValueError(
            f"It has {len(averages)} states with a `nu` where one is expected: RMSProp "
            f"in a chain. Found {', '.join(nodes)}."
        )
    (average,) = averages
    centered, corrected = "mu" in average, "count" in average
    old = list(average) == ["count", "nu", "mu"] or (centered and average["mu"] is None)
    if old or "lowest" in average:  # Optax has nu last, and no mu that is None
        raise ValueError(
            "This is a state of rmsprop_jax, not of Optax: restore it as what it is "
            "(flax.serialization.from_bytes), or keep it with convert.save."
        )
    square = dict(_leaves(average["nu"]))
    mean = dict(_leaves(average["mu"])) if centered else {}
    if any(np.any(square[k] < 0.9 * np.square(np.abs(mean[k]))) for k in mean):
        raise ValueError(
            "This is not RMSProp: its `nu` is smaller than the square of its `mu`, so "
            "they are not averages of the same length. It may be Adam's."
        )
    start = next(path for path, node in nodes.items() if node is average)
    traces = {path: node["trace"] for path, node in nodes.items() if "trace" in node}
    trace = {}
    for path, found in traces.items():
        if not follows_the_rate(path, start):
            raise ValueError(
                f"The momentum at {path} is not where optax.rmsprop has it, two places "
                f"after {start}, behind the learning rate: that is another rule."
            )
        trace = dict(_leaves(found))
    names = tuple(square if names is None else names)
    hyperparameters: dict[str, Any] = {
        "centered": centered,
        "bias_correction": corrected,
    }
    missing = ("learning_rate", "decay", "eps", *(("momentum",) if trace else ()))
    slots = {
        name: Slots(square[name], mean.get(name), -trace[name] if trace else None)
        for name in names
    }
    weights = dict(_leaves(content["params"])) if "params" in content else {}
    return Record(
        "optax",
        _step(nodes, start),
        (Group(hyperparameters, names),),
        slots,
        missing,
        {name: weights[name] for name in names if name in weights},
    )


def _step(nodes: Mapping[str, Mapping[str, Any]], start: str) -> int | None:
    """Returns the average's own count, or the next one to it, or None."""
    parent = start.rpartition(".")[0]
    near = [
        node
        for path, node in nodes.items()
        if "count" in node and path.rpartition(".")[0] == parent
    ]
    anywhere = [node for node in nodes.values() if "count" in node]
    counted = [nodes[start]] if "count" in nodes[start] else near or anywhere
    return max((int(node["count"]) for node in counted), default=None)


def follows_the_rate(trace: str, average: str) -> bool:
    """Whether a state is behind the next one after the average, as paths show."""
    ours, theirs = (path.split(".") for path in (average, trace))
    while ours and theirs and ours[0] == theirs[0]:
        ours, theirs = ours[1:], theirs[1:]
    if not all(path and path[0].isdigit() for path in (ours, theirs)):
        return False
    ahead = int(theirs[0]) - int(ours[0])
    inside = any(int(part) for part in theirs[1:] if part.isdigit())
    return ahead > 1 or (ahead == 1 and inside)


def load(path: Any) -> dict[str, Any]:
    """Returns the nested dictionaries in a file."""
    path = Path(path)
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
        if value is not None:
            yield from _leaves(value, f"{start}/{key}" if start else str(key))
