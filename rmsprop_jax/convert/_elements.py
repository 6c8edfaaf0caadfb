"""What stands around RMSProp in a state: which leaves go on, start, or may go."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from .. import _leaves
from ._record import ACCUMULATING, is_kind, path_name, placed

Name = tuple[str, ...]

# Words of a path that only say where in a chain or a wrapper something stands.
_PLACES = ("inner_state", "inner_opt_state", "inner_states")
_COUNTS = ("count", "gradient_step", "hyperparams_states")  # of updates done
# What Optax and `watch` wrap around keeps beside counts. It starts as `init` makes it.
_STARTS = (
    "hyperparams", "notfinite_count", "last_finite", "total_notfinite", "diagnostics",
    "mini_step", "acc_grads", "skip_state",
)  # fmt: skip
_OF_LAST_STEP = ("diagnostics", "skip_state")


def nodes(state: Any) -> Iterator[tuple[str, Any]]:
    """Yields the states of RMSProp and its momentum, with paths like "0.inner.2"."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_kind):
        if is_kind(node):
            yield ".".join(_leaves.name_of(path)), node


def steps_done(state: Any) -> int | None:
    """Returns how many updates the counts in a state tell, or None if there are none.

    A count tells if what skips updates, MultiSteps or `apply_if_finite`, stands around
    it as it stands around RMSProp.
    """
    counts: dict[Name, int] = {}
    skipping: list[Name] = []
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_kind):
        place, field = tuple(_leaves.name_of(path)), _name(path)[0]
        if is_kind(node):
            if "count" in node._fields:
                counts[place] = int(node.count)
        elif field in ("mini_step", "notfinite_count"):
            skipping.append(place[:-1])
        elif field == "count":
            counts[place[:-1]] = int(node)
        elif field == "gradient_step":  # of what is inside
            counts[(*place[:-1], "inner_opt_state")] = int(node)
    averages = [tuple(path.split(".")) for path, x in nodes(state) if hasattr(x, "nu")]

    def around(name: Name) -> set[Name]:
        return {s for s in skipping if name[: len(s)] == s and len(name) > len(s)}

    wanted = around(averages[0]) if averages else set()
    told = [count for name, count in counts.items() if around(name) == wanted]
    return max(told, default=None)


def with_others(new: Any, state: Any, step: int | None) -> Any:
    """Returns a state with the leaves of the other elements of the chain.

    Args:
      new: the new state, whose states of RMSProp stay as they are.
      state: the old one.
      step: how many updates were done, None if `new` does not count.

    Raises:
      ValueError: if an element has to start, or has to go, that has values of its own;
        it is named.
    """
    old, taken = _others(state), {}

    def kept(path: Any, leaf: Any) -> Any:
        if is_kind(leaf):
            return leaf
        name = _name(path)
        index = taken[name] = taken.get(name, -1) + 1
        found = old.get(name, [])[index : index + 1]
        return _going_on(name, found[0], leaf) if found else _start(name, leaf, step)

    _check_accumulated(old, new)
    whole = jax.tree_util.tree_map_with_path(kept, new, is_leaf=is_kind)
    left = [
        name
        for name, leaves in old.items()
        if len(leaves) > taken.get(name, -1) + 1 and name[0] not in (*_STARTS, *_COUNTS)
    ]
    if any(name[0] == "remainder" for name in left):
        warnings.warn(
            "The remainders of the parameters are left out, which is what rounding has "
            "lost of each; `rounding.merge(params, state)` has them.",
            stacklevel=3,
        )
    left = [".".join(name) for name in left if name[0] != "remainder"]
    if left:
        raise ValueError(
            f"The state has {', '.join(left)}, which would be lost: `tx` has no place "
            "for that."
        )
    return whole


def has_counts(state: Any) -> bool:
    """Whether a state counts its updates."""
    return any("count" in node._fields for _, node in nodes(state)) or any(
        name[0] in _COUNTS for name in _others(state)
    )


def _going_on(name: Name, found: Any, leaf: Any) -> Any:
    """Returns a leaf of the old state in the place of a new one."""
    if np.shape(found) != np.shape(leaf):
        if name[0] in _OF_LAST_STEP:
            return leaf
        raise ValueError(
            f"{'.'.join(name)} has shape {np.shape(found)} in the state and "
            f"{np.shape(leaf)} in `tx`: `migrate` does not know what that means."
        )
    if name[0] == "hyperparams" and found.dtype != leaf.dtype:
        rounded = np.asarray(leaf).astype(found.dtype)
        if (rounded == np.asarray(found)).all():  # Optax rounds them to bfloat16, say
            return leaf
    return placed(found, leaf)


def _start(name: Name, leaf: Any, step: int | None) -> Any:
    """Returns what a leaf that the old state does not have starts as."""
    if name[0] in _COUNTS:
        return placed(0 if step is None else step, leaf)
    if name[0] in (*_STARTS, "remainder"):
        return leaf
    raise ValueError(
        f"`tx` has {'.'.join(name)} in its state, and the state does not: `migrate` "
        "knows RMSProp, momentum, counts, and what `watch`, `inject_hyperparams`, "
        "`apply_if_finite` and `MultiSteps` keep, not how that would start."
    )


def _check_accumulated(old: dict[Name, list[Any]], new: Any) -> None:
    """Raises if gradients that MultiSteps has gathered would be lost."""
    gathered = max((int(x) for x in old.get(("mini_step",), [])), default=0)
    if gathered and ("mini_step",) not in _others(new):
        raise ValueError(
            f"The state has acc_grads, the sum or mean of {gathered} gradients that "
            "optax.MultiSteps has gathered, which would be lost: `tx` has no place "
            "for that. Migrate when mini_step is 0."
        )


def _others(state: Any) -> dict[Name, list[Any]]:
    """Returns the leaves that are not RMSProp's, by name, in order."""
    found: dict[Name, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_kind):
        if not is_kind(leaf):
            found.setdefault(_name(path), []).append(leaf)
    return found


def _name(path: Any) -> Name:
    """Returns a path without places in chains and wrappers, which others move.

    Labels of `optax.partition` come last, so that a field comes first.
    """
    words, labels = list(_leaves.name_of(path)), []
    while words and (words[0].isdigit() or words[0] in _PLACES):
        if words.pop(0) == "inner_states" and words:
            labels.append(words.pop(0))
    return (*words, *labels) or ("",)


def map_accumulators(function: Callable[[str, Any], Any], state: Any) -> Any:
    """Returns a state with function(name, leaf) of each accumulator of a parameter."""

    def mapped(node: Any) -> Any:
        if not isinstance(node, ACCUMULATING):
            return node
        fields = [field for field in ("nu", "mu", "trace") if field in node._fields]
        return node._replace(
            **{
                field: jax.tree_util.tree_map_with_path(
                    lambda path, x: function(path_name(path), x),
                    getattr(node, field),
                )
                for field in fields
            }
        )

    return jax.tree.map(mapped, state, is_leaf=is_kind)
