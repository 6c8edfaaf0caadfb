"""The optimizer that goes on: the dialect's, and what its arguments cannot say.

A leaf that is the sum of two of the source's parameters moves twice as far, since both
get its gradient. And a parameter without state stays as it is, without decay, until it
gets a gradient: torch skips what has none, where JAX has zeros.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._record import (
    ACCUMULATING,
    STATES,
    Group,
    Record,
    arguments_of,
    maker,
    names_of,
    path_name,
)

# What goes by whole parameters, so that a sum or a part of them changes it.
_WHOLE = {
    "clipnorm": "clips by the norm of whole parameters",
    "global_clipnorm": "clips by the norm of all parameters",
    "caution": "scales by how much of a whole parameter it leaves out",
}


def made(record: Record, params: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a record; of several groups a partition by path.

    Args:
      record: one with the names of `params`.
      params: the parameters, or their shapes.

    Raises:
      TypeError, ValueError: if the hyperparameters are not valid, or a sum cannot go on
        exactly under them.
    """
    optimizers = [maker(record.dialect)(**g.hyperparameters) for g in record.groups]
    optimizer = optimizers[0]
    if len(record.groups) > 1:
        label_of = {n: str(i) for i, g in enumerate(record.groups) for n in g.names}
        parts: dict[Any, Any] = {str(i): made for i, made in enumerate(optimizers)}

        def labels(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: label_of[path_name(path)], params
            )

        optimizer = optax.partition(parts, labels)
    joined: dict[str, Any] = {}
    for group in record.groups:
        _check(record, group)
        joined |= group.joined
    waiting = {name for group in record.groups for name in group.waiting}
    if not joined and not waiting:
        return optimizer
    initial = {
        name: np.asarray(nu).flat[0]
        for node in _averages(optimizer.init(params) if waiting else ())
        for name, nu in names_of(node.nu).items()
        if name in waiting and nu.size
    }
    return _wrapped(optimizer, joined, initial)


def _check(record: Record, group: Group) -> None:
    arguments = arguments_of(record.dialect, group.hyperparameters)
    norms = [name for name in _WHOLE if group.hyperparameters.get(name)]
    parts = [*group.joined, *(p for p in record.parts if p in group.names)]
    if group.joined and arguments.get("weight_decay") is not None:
        decay = arguments["weight_decay"]
        if callable(decay) or np.any(np.asarray(decay) != 0):
            raise ValueError(
                f"{', '.join(group.joined)} is a sum of two parameters of the source. "
                f"Under weight_decay {decay!r} these do not move alike, so the sum has "
                "no state that goes on exactly: use a module that has both, or give "
                "weight_decay=0."
            )
    for name in norms:
        if group.joined if name == "global_clipnorm" else parts:
            raise ValueError(
                f"`{name}` {_WHOLE[name]}, and {', '.join(dict.fromkeys(parts))} is a "
                "sum or a part of some, which would give another number: use a tree "
                "that has them whole."
            )


def _wrapped(
    optimizer: optax.GradientTransformationExtraArgs,
    joined: Mapping[str, np.ndarray],
    initial: Mapping[str, Any],
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer with the same state that minds sums, and what has no state.

    Args:
      optimizer: the dialect's.
      joined: how many times as far each element moves, by the names of the sums.
      initial: how each element of nu starts, by the names of what has no state.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        begun = {
            name: jnp.any(gradient != 0)
            for name, gradient in names_of(updates).items()
            if name in initial
        }
        for node in _averages(state):
            for name, nu in names_of(node.nu).items():
                if name in begun:
                    begun[name] |= jnp.any(nu != initial[name])

        def moved(path: Any, leaf: Any) -> Any:
            name = path_name(path)
            if name in joined:
                leaf = leaf * jnp.asarray(joined[name], leaf.dtype)
            return jnp.where(begun[name], leaf, 0) if name in begun else leaf

        def kept(new: Any, old: Any) -> Any:
            def chosen(path: Any, leaf: Any, before: Any) -> Any:
                name = path_name(path[1:])  # without the field's name
                return jnp.where(begun[name], leaf, before) if name in begun else leaf

            if not isinstance(new, ACCUMULATING):
                return new
            return jax.tree_util.tree_map_with_path(chosen, new, old)

        new, new_state = optimizer.update(updates, state, params, **extra)
        new = jax.tree_util.tree_map_with_path(moved, new)
        return new, jax.tree.map(kept, new_state, state, is_leaf=_is_kind)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _averages(state: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=_is_kind)
    return [node for node in nodes if isinstance(node, STATES)]


def _is_kind(node: Any) -> bool:
    return isinstance(node, ACCUMULATING)
