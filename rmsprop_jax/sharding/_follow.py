"""The state of any transformation follows the parameters, under `jax.jit`."""

import math
from typing import Any

import jax
import optax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .. import _checks, _matching
from .._placement import axes_of, map_with_owner, sharding_of, spec_of


def state_sharding(
    tx: optax.GradientTransformation,
    params: optax.Params,
    shardings: Any = None,
    *,
    zero_axis: str | None = None,
) -> Any:
    """Returns the shardings of the state of `tx`, which follow the parameters'.

    An array of the state that belongs to a parameter, which is to say that the path of
    the parameter is the end of its own and their shapes are equal, gets the sharding of
    the parameter, its `memory_kind` included. Everything else, counts for example, is
    replicated, in the memory of the devices.

    Args:
      tx: any Optax transformation, of ours or not, or a chain.
      params: the parameters, arrays or `jax.ShapeDtypeStruct`s: any tree, boxes of
        Flax Linen and `nnx.State` included.
      shardings: the parameters' `jax.sharding.NamedSharding`s, a tree or a prefix of
        one, as from `flax.linen.get_sharding` or `flax.nnx.get_named_sharding`. By
        default those that the parameters have.
      zero_axis: the name of a mesh axis over which accumulators are also split, along
        their first dimension that divides; where none does they stay as they are
        (`left_whole` lists them). XLA then reduces gradients, updates a part on each
        device and gathers the updates.

    Returns:
      A tree of `jax.sharding.NamedSharding`s like the state, for `jax.jit`'s
      `in_shardings` and `out_shardings`, and for restoring a checkpoint.

    Raises:
      ValueError: if a parameter's sharding is not known or not on a mesh with
        `zero_axis`, or the parameters are on several meshes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
      >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
      >>> replicated = NamedSharding(mesh, PartitionSpec())
      >>> tx = rmsprop(0.1, nu_dtype="uint8")
      >>> state = sharding.state_sharding(tx, params, replicated, zero_axis="data")
      >>> state[0].nu["w"].spec, state[0].count.spec
      (P('data', None), P())
    """
    return _sharded(tx, params, shardings, zero_axis)[0]


def left_whole(
    tx: optax.GradientTransformation,
    params: optax.Params,
    shardings: Any = None,
    *,
    zero_axis: str,
) -> list[str]:
    """Returns the paths of the accumulators that `zero_axis` could not split.

    No dimension of theirs, or of the part of it that a device has, divides by the
    size of the axis. The arguments are those of `state_sharding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
      >>> params = {"w": jnp.ones((8, 4)), "scale": jnp.ones(())}
      >>> replicated = NamedSharding(mesh, PartitionSpec())
      >>> sharding.left_whole(rmsprop(0.1), params, replicated, zero_axis="data")
      ["[0].nu['scale']"]
    """
    _checks.instance("zero_axis", zero_axis, str, "the name of a mesh axis")
    return _sharded(tx, params, shardings, zero_axis)[1]


def init(
    tx: optax.GradientTransformation,
    params: optax.Params,
    shardings: Any = None,
    *,
    zero_axis: str | None = None,
) -> optax.OptState:
    """Returns `tx.init(params)`, sharded as `state_sharding` says, also under `jit`.

    `jax.jit(tx.init)(params)` leaves the state on one device or replicates it, because
    zeros depend on no parameter. Here every device makes its own part.

    Args:
      tx: any Optax transformation.
      params: the parameters.
      shardings: as for `state_sharding`; inside `jit` needed on a mesh of Auto axes,
        where arrays do not tell (on one of Explicit axes, use `jax.set_mesh`).
      zero_axis: as for `state_sharding`.

    Returns:
      The state.

    Raises:
      ValueError: as `state_sharding` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
      >>> rows = NamedSharding(mesh, PartitionSpec("data"))
      >>> params = {"w": jax.device_put(jnp.ones((8, 4)), rows)}
      >>> sharding.init(rmsprop(0.1), params)[0].nu["w"].sharding.spec
      P('data',)
    """
    target = state_sharding(tx, params, shardings, zero_axis=zero_axis)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        return jax.tree.map(_constrained, tx.init(params), target)
    return jax.jit(tx.init, out_shardings=target)(params)


def specs(tree: Any) -> Any:
    """Returns the partition specs of arrays, for the arguments of `jax.shard_map`.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct`s with a sharding; those on one device
        count as replicated.

    Returns:
      A tree of `jax.sharding.PartitionSpec`s.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import sharding
      >>> sharding.specs({"w": jnp.ones(3)})
      {'w': P()}
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _matching.is_number(leaf):
            raise TypeError(
                f"`tree` must be a tree of arrays, got {leaf!r:.80} at "
                f"{jax.tree_util.keystr(path) or 'its root'}."
            )
    return jax.tree.map(spec_of, tree)


def _sharded(
    tx: optax.GradientTransformation,
    params: optax.Params,
    shardings: Any,
    zero_axis: str | None,
) -> tuple[Any, list[str]]:
    """Returns the shardings of the state, and the paths of what was not split."""
    _checks.transformation("tx", tx)
    if shardings is not None:
        try:
            shardings = jax.tree.broadcast(shardings, params)
        except ValueError as error:
            raise ValueError(
                "`shardings` must be a sharding, or a tree of them like the parameters "
                f"or a prefix of one: {error}"
            ) from error
    placed = jax.tree_util.tree_map_with_path(
        _placed, params, *([] if shardings is None else [shardings])
    )
    leaves = jax.tree.leaves(placed)
    if not leaves:
        raise ValueError("`params` has no array, so there is no mesh to shard on.")
    mesh = leaves[0].sharding.mesh
    if any(leaf.sharding.mesh != mesh for leaf in leaves):
        raise ValueError("The parameters are on several meshes; they must be on one.")
    if zero_axis is not None and zero_axis not in mesh.shape:
        raise ValueError(
            f"`zero_axis` is {zero_axis!r}, but the mesh has the axes "
            f"{mesh.axis_names}."
        )
    whole = []

    def follow(path: Any, leaf: Any, owner: Any) -> NamedSharding:
        if owner is None:
            return NamedSharding(mesh, PartitionSpec())
        if zero_axis is None:
            return owner.sharding
        spec = _split(leaf.shape, owner.sharding, zero_axis)
        if spec is None:
            whole.append(jax.tree_util.keystr(path))
            return owner.sharding
        return owner.sharding.update(spec=spec)

    state = jax.eval_shape(tx.init, params)
    return map_with_owner(follow, state, placed), whole


def _placed(path: Any, leaf: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """Returns the shape of a parameter with its sharding."""
    if sharding is None:
        sharding = sharding_of(leaf)
    if not hasattr(leaf, "shape"):
        raise TypeError(
            f"params{jax.tree_util.keystr(path)} is {leaf!r}; needed is an array, or a "
            "`jax.ShapeDtypeStruct`."
        )
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"The sharding of params{jax.tree_util.keystr(path)} is {sharding}; needed "
            "is a `jax.sharding.NamedSharding`. Put the parameters on a mesh with "
            "`jax.device_put`, or give `shardings` (inside `jit`, on a mesh of Auto "
            "axes, arrays do not tell)."
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _split(
    shape: tuple[int, ...], sharding: NamedSharding, axis: str
) -> PartitionSpec | None:
    """Returns a spec that also splits the first dimension that divides, if any does."""
    sizes = sharding.mesh.shape
    names = axes_of(sharding.spec, len(shape))
    if axis in (name for entry in names for name in entry):
        return sharding.spec  # as in fully sharded data parallelism
    # Whole dimensions come first: splitting one twice makes strided parts.
    for index in sorted(range(len(shape)), key=lambda i: len(names[i])):
        parts = math.prod(sizes[name] for name in names[index])
        if shape[index] and shape[index] % (parts * sizes[axis]) == 0:
            names[index] += (axis,)
            return PartitionSpec(*(e[0] if len(e) == 1 else e or None for e in names))
    return None


def _constrained(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns a traced array with a sharding, on meshes of either kind."""
    if AxisType.Explicit in sharding.mesh.axis_types:
        leaf = jax.sharding.reshard(leaf, sharding)
    else:
        leaf = jax.lax.with_sharding_constraint(leaf, sharding)
    # Neither of them moves an array to another kind of memory (jax 0.10.2).
    at_home = sharding.memory_kind in (None, "device")
    return leaf if at_home else jax.device_put(leaf, sharding)
