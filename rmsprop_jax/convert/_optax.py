"""Optimizer state of Optax, inside any chain."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._optax_files import folder_of as folder_of
from ._optax_files import load as load
from ._optax_files import nested as nested
from ._optax_files import numbered
from ._record import Group, Record, Slots

# What stands around a state in a `TrainState`, an `nnx.Optimizer` or a wrapper of Optax
# and is taken into account.
_KNOWN = ("params", "step", "count", "gradient_step")
_NUMBERS = ("learning_rate", "decay", "eps", "momentum")


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
    content = numbered(content)
    nodes = dict(_nodes(content))
    averages = [node for node in nodes.values() if "nu" in node]
    if len(averages) != 1:
        raise ValueError(
            f"`source` has {len(averages)} states with a `nu`, not one: RMSProp "
            "in a chain. Of a partition pass each label's, with its part of the tree. "
            f"Found {', '.join(nodes)}."
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
    absent = [name for name in names if name not in square]
    if absent:
        raise ValueError(f"It has no {', '.join(absent)}; it has {', '.join(square)}.")
    hyperparameters = {"centered": centered, "bias_correction": corrected}
    hyperparameters |= _injected(nodes, start)
    missing = ("learning_rate", "decay", "eps", *(("momentum",) if trace else ()))
    unseen = {"eps_in_sqrt": True} | ({"nesterov": False} if trace else {})
    masked = [name for name, leaf in _leaves(average["nu"], none=True) if leaf is None]
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
        left_out=(
            *(f"{name}, which is masked out" for name in masked),
            *_entries(content, start),
        ),
        assumed=(
            *_beside(content, start),
            *(
                f"`{name}` is {value}, by default: a state of Optax does not show it"
                for name, value in unseen.items()
                if name not in (given or {})
            ),
        ),
    )


def _injected(
    nodes: Mapping[str, Mapping[str, Any]], start: str
) -> dict[str, float | bool]:
    """Returns the numbers that `inject_hyperparams` keeps and does not schedule."""
    found = {}
    for path, node in nodes.items():
        if "hyperparams" in node and start.startswith(path):
            changing = node.get("hyperparams_states") or {}
            for name, value in node["hyperparams"].items():
                if name in _NUMBERS and name not in changing and np.ndim(value) == 0:
                    found[name] = float(np.asarray(value))
    return found


def _beside(content: Mapping[str, Any], start: str) -> Iterable[str]:
    """Says which other members of a chain, or wrappers, have no place here."""
    found, node, keys = [], content, start.split(".")[1:]
    if _is_around(keys):
        node, keys = content[keys[0]], keys[1:]
    for depth, own in enumerate(keys):
        for key, child in node.items():
            fields = dict.fromkeys(_fields(child)) if isinstance(child, Mapping) else ()
            offset = int(key) - int(own) if f"{key}{own}".isdigit() else 0
            follows = depth == len(keys) - 1 and offset in (1, 2)  # rate and momentum
            known = str(key) in (own, *_KNOWN) or str(key).startswith("hyperparams")
            if known or (follows and {*fields} <= {"count", "trace"}):
                continue
            what = f" ({', '.join(fields) or 'no state'})" if offset else ""
            found.append(".".join([*keys[:depth], str(key)]) + what)
        node = next(child for key, child in node.items() if str(key) == own)
    if found:
        yield (
            f"{', '.join(found)}: members or wrappers of the chain without a place in "
            "`optimizer`, such as clipping or weight decay: chain them around it"
        )


def _entries(content: Mapping[str, Any], start: str) -> Iterable[str]:
    """Says what stands beside the state in a `TrainState`, or in a user's own."""
    keys = start.split(".")[1:]
    if _is_around(keys):
        for key in content:
            if str(key) not in (keys[0], *_KNOWN):
                yield f"the entry {key!r}"


def _is_around(keys: list[str]) -> bool:
    """Whether the outermost entry is no member of a chain and no wrapper's own."""
    return bool(keys) and not keys[0].isdigit() and not keys[0].startswith("inner")


def _fields(tree: Mapping[str, Any]) -> Iterable[str]:
    """Yields the names of the fields of states, behind the numbers in a chain."""
    for key, value in tree.items():
        if not str(key).isdigit():
            yield str(key)
        elif isinstance(value, Mapping):
            yield from _fields(value)


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
    counts = [node["count"] for node in counted]
    for key in ("gradient_step", "step"):  # of MultiSteps; of a TrainState
        around = [
            node[key]
            for path, node in nodes.items()
            if start.startswith(path) and key in node
        ]
        counts = counts or around
    return max((int(np.asarray(count)) for count in counts), default=None)


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


def _leaves(
    tree: Any, start: str = "", none: bool = False
) -> Iterable[tuple[str, Any]]:
    """Yields the arrays in a tree by path, and None for what has `none`, if asked."""
    if tree is None or (start and isinstance(tree, Mapping) and not tree):
        if none:
            yield start, None
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{start}/{key}" if start else str(key), none)
    else:
        yield start, np.asarray(tree)
