"""How the state of `zero` lies on a mesh, and how each device makes its part."""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .._placement import axes_of, map_with_owner, sharding_of, spec_of
from . import _parts


def zero_state(
    tx: optax.GradientTransformation,
    params: optax.Params,
    axis_name: str | tuple[str, ...],
) -> Any:
    """Returns what the state of `zero(tx, axis_name)` will be, without making it.

    Args:
      tx: the transformation that is split.
      params: the parameters, arrays or `jax.ShapeDtypeStruct`s, on a mesh or under
        `jax.set_mesh`.
      axis_name: as for `zero`.

    Returns:
      A tree of `jax.ShapeDtypeStruct`s with shardings: for `specs`, for restoring a
      checkpoint, for compiling ahead of time.

    Raises:
      ValueError: if no mesh with these axes is known.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, sharding
      >>> with jax.set_mesh(jax.make_mesh((1,), ("data",))):
      ...     state = sharding.zero_state(rmsprop(0.1), {"w": jnp.ones((5, 5))}, "data")
      >>> state[0].nu["w"].shape, sharding.specs(state)[0].nu["w"]
      ((1024,), P('data',))
    """
    axes = names(axis_name)
    return _state(tx, params, axes, _mesh(params, axes))


def names(axis_name: Any) -> tuple[str, ...]:
    """Returns the names of mesh axes, checked."""
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not (axes and isinstance(axes, tuple) and all(isinstance(a, str) for a in axes)):
        raise TypeError(
            "`axis_name` must be the name of a mesh axis, or a tuple of names, got "
            f"{axis_name!r}."
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis_name` names an axis twice: {axis_name!r}.")
    return axes


def varying_over(x: Any) -> frozenset[str]:
    """Returns the axes over which an array varies, where `shard_map` checks that."""
    return jax.typeof(x).manual_axis_type.varying


def init_inside(
    tx: optax.GradientTransformation, params: optax.Params, axes: tuple[str, ...]
) -> optax.OptState:
    """Returns this device's part of the state."""
    parts = jax.tree.map(partial(_parts.own, axes), params)

    def varying(path: Any, leaf: jax.Array, owner: Any) -> jax.Array:
        # As it will be after an update, or lax.scan would find that its type changes.
        del path
        missing = () if owner is None else varying_over(owner) - varying_over(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return map_with_owner(varying, tx.init(parts), parts)


def init_outside(
    tx: optax.GradientTransformation, params: optax.Params, axes: tuple[str, ...]
) -> optax.OptState:
    """Returns the whole state, each part made by the device that keeps it."""
    mesh = _mesh(params, axes)
    state = _state(tx, params, axes, mesh)
    mapped = jax.shard_map(
        partial(init_inside, tx, axes=axes),
        mesh=mesh,
        in_specs=(jax.tree.map(spec_of, params),),
        out_specs=jax.tree.map(spec_of, state),
    )
    # Or arrays that are empty, or on one device, would lose their specs.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(mapped, out_shardings=shardings)(params)


def _mesh(params: optax.Params, axes: tuple[str, ...]) -> Mesh | AbstractMesh:
    """Returns the mesh of `jax.set_mesh`, or else of the parameters."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside `jit`
        mesh = jax.sharding.get_abstract_mesh()
    known = filter(None, map(sharding_of, jax.tree.leaves(params)))
    if mesh.empty:
        mesh = next((sharding.mesh for sharding in known), mesh)
    if not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"`zero` splits over {axes}, but the mesh has the axes {mesh.axis_names}: "
            "call `init` inside `jax.shard_map`, under `jax.set_mesh(mesh)`, or with "
            "parameters that are on the mesh."
        )
    return mesh


def _state(
    tx: optax.GradientTransformation,
    params: optax.Params,
    axes: tuple[str, ...],
    mesh: Mesh | AbstractMesh,
) -> Any:
    """Returns the shapes, dtypes and shardings of the whole state."""
    devices = math.prod(mesh.shape[name] for name in axes)

    def flat(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        used = tuple(itertools.chain(*axes_of(spec_of(leaf), jnp.ndim(leaf))))
        if set(used) & set(axes):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is itself split over {axes}, and "
                "so is its state: `zero` is for parameters that are whole there."
            )
        others = math.prod(mesh.shape[name] for name in used)
        return jax.ShapeDtypeStruct(
            (
                others
                * devices
                * _parts.part_size(math.prod(jnp.shape(leaf)) // others, devices),
            ),
            jnp.result_type(leaf),
            sharding=NamedSharding(mesh, PartitionSpec((*used, *axes))),
        )

    def placed(path: Any, leaf: Any, owner: Any) -> jax.ShapeDtypeStruct:
        del path
        spec = PartitionSpec() if owner is None else owner.sharding.spec
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    flats = jax.tree_util.tree_map_with_path(flat, params)
    return map_with_owner(placed, jax.eval_shape(tx.init, flats), flats)
