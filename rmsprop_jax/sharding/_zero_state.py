"""How the state of `zero` lies on a mesh, and how each device makes its part."""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .. import _checks
from .._placement import axes_of, map_with_owner, sharding_of, spec_of
from . import _parts
from ._inside import init_inside


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
    _checks.transformation("tx", tx)
    axes = names(axis_name)
    return _state(tx, params, axes, _mesh(params, axes))


def names(axis_name: Any) -> tuple[str, ...]:
    """Returns the names of mesh axes, checked."""
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not (
        axes and isinstance(axes, tuple) and all(a and isinstance(a, str) for a in axes)
    ):
        raise TypeError(
            "`axis_name` must be the name of a mesh axis, or a tuple of names, got "
            f"{axis_name!r}."
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"`axis_name` names an axis twice: {axis_name!r}.")
    return axes


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


@dataclasses.dataclass(frozen=True)
class _Local:
    """A parameter inside of `shard_map`, and how its state lies on the mesh."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: NamedSharding


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
            f"`axis_name` is {axes}, but the mesh has the axes {mesh.axis_names}: "
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

    def used(leaf: Any) -> list[tuple[str, ...]]:
        return axes_of(spec_of(leaf), jnp.ndim(leaf))

    def local(path: Any, leaf: Any) -> _Local:
        """Returns the shape that a leaf has inside of `shard_map`."""
        split = used(leaf)
        if set(itertools.chain(*split)) & set(axes):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is itself split over {axes}, and "
                "so is its state: `zero` is for parameters that are whole there."
            )
        shape = tuple(
            size // math.prod(mesh.shape[name] for name in each)
            for size, each in zip(jnp.shape(leaf), split, strict=True)
        )
        at = NamedSharding(mesh, PartitionSpec((*itertools.chain(*split), *axes)))
        return _Local(shape, jnp.result_type(leaf), at)

    def placed(path: Any, leaf: Any, owner: Any) -> jax.ShapeDtypeStruct:
        del path
        if owner is None:
            at = NamedSharding(mesh, PartitionSpec())
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
        (over,) = axes_of(owner.sharding.spec, 1)
        parts = math.prod(mesh.shape[name] for name in over)
        part = _parts.part_size(math.prod(leaf.shape), devices)
        return jax.ShapeDtypeStruct(
            (parts * part,), leaf.dtype, sharding=owner.sharding
        )

    locals_ = jax.tree_util.tree_map_with_path(local, params)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), locals_)
    return map_with_owner(placed, jax.eval_shape(tx.init, shapes), locals_)
