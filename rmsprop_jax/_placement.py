"""Which parameter an array of a state belongs to, and where arrays are, or go."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding


def map_with_owner(
    function: Callable[[Any, Any, Any], Any], state: Any, params: Any
) -> Any:
    """Returns function(path, leaf, owner) for every array of an optimizer's state.

    The owner of an array is the parameter whose path is the end of the array's, if
    their shapes are equal; None for all else, counts for example. That holds for the
    state of any Optax transformation, whatever it is wrapped in.
    """
    by_path = dict(jax.tree_util.tree_leaves_with_path(params))

    def applied(path: Any, leaf: Any) -> Any:
        ends = (path[start:] for start in range(len(path) + 1))
        owner = next((by_path[end] for end in ends if end in by_path), None)
        same = owner is not None and jnp.shape(owner) == jnp.shape(leaf)
        return function(path, leaf, owner if same else None)

    return jax.tree_util.tree_map_with_path(applied, state)


def sharding_of(leaf: Any) -> NamedSharding | None:
    """Returns how an array, or a shape, is sharded over a mesh, if that is known.

    Traced arrays tell on meshes of Explicit axes only.
    """
    found = getattr(
        jax.typeof(leaf) if isinstance(leaf, Tracer) else leaf, "sharding", None
    )
    if not isinstance(found, NamedSharding) or found.mesh.empty:
        return None
    hidden = isinstance(leaf, Tracer) and not found.mesh.are_all_axes_explicit
    return None if hidden else found


def spec_of(leaf: Any) -> PartitionSpec:
    """Returns the partition spec of an array; replicated, if none is known."""
    found = sharding_of(leaf)
    return PartitionSpec() if found is None else found.spec


def axes_of(spec: PartitionSpec, dimensions: int) -> list[tuple[str, ...]]:
    """Returns the mesh axes over which each dimension is split."""
    entries = (*spec, *[None] * (dimensions - len(spec)))
    return [
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for entry in entries
    ]


def placed(init: optax.TransformInitFn) -> optax.TransformInitFn:
    """Returns `init` that puts what it makes anew where the parameters are.

    A count, say, would be there only after the first update, whose second call would
    then compile again.
    """

    def placed_init(params: optax.Params) -> optax.OptState:
        shardings = [
            leaf.sharding
            for leaf in jax.tree.leaves(params)
            if not isinstance(leaf, Tracer) and getattr(leaf, "committed", False)
        ]
        state = init(params)
        if len({frozenset(s.device_set) for s in shardings}) != 1:
            return state
        whole = shardings[0]
        if isinstance(whole, NamedSharding):
            whole = NamedSharding(whole.mesh, PartitionSpec())
        else:
            (device, *others) = whole.device_set
            if others:
                return state
            whole = SingleDeviceSharding(device)

        def place(leaf: Any) -> Any:
            is_new = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
            return (
                jax.device_put(leaf, whole) if is_new and not leaf.committed else leaf
            )

        return jax.tree.map(place, state)

    return placed_init
