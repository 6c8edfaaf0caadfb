"""What `zero` does on each device: it runs a transformation on parts of the arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._placement import map_with_owner
from . import _parts, _pieces
from ._pieces import Piece
from ._program import NotSplitError, Program


def init_inside(
    tx: optax.GradientTransformation, params: optax.Params, axes: tuple[str, ...]
) -> optax.OptState:
    """Returns this device's part of the state.

    Raises:
      NotSplitError: if an update of `tx` would not work in parts.
    """
    shapes = shapes_of(params)
    closed, shape = jax.make_jaxpr(tx.init, return_shape=True)(shapes)
    owned = map_with_owner(lambda path, leaf, owner: owner is not None, shape, shapes)
    parts = jax.tree.map(lambda p: _parts.own(axes, jnp.asarray(p)), params)
    given = _given(parts, shapes)
    program = Program(axes, _naming(shapes))
    found = program.run(closed, given)
    leaves = _placed(program, found, jax.tree.leaves(owned))
    state = jax.tree.unflatten(jax.tree.structure(shape), leaves)

    def varying(path: Any, leaf: jax.Array, owner: Any) -> jax.Array:
        # As it will be after an update, or lax.scan would find that its type changes.
        del path
        return leaf if owner is None else _parts.all_varying([leaf, owner])[0]

    state = map_with_owner(varying, state, parts)
    try:
        jax.eval_shape(
            lambda s: update_inside(tx, axes, parts, shapes, s, params), state
        )
    except NotSplitError:
        raise
    except Exception:  # it may need arguments that `init` does not have
        pass
    return state


def update_inside(
    tx: Any,
    axes: tuple[str, ...],
    parts: Any,
    likes: Any,
    state: optax.OptState,
    params: optax.Params | None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """Returns this device's part of the updates, and of the state.

    Args:
      tx: the transformation, with support for extra arguments.
      axes: the axes of the mesh over which arrays are in parts.
      parts: of the mean gradients.
      likes: the shapes and dtypes of the whole gradients.
      state: this device's part.
      params: whole, or None.
      extra_args: for the transformation, whole.
    """
    own = params
    if params is not None:
        own = jax.tree.map(lambda p: _parts.own(axes, jnp.asarray(p)), params)
    shapes = likes if params is None else shapes_of(params)
    by_part = _parts_with_shape(parts if params is None else own, shapes)
    states = map_with_owner(
        lambda path, leaf, owner: (
            leaf if owner is None else Piece(leaf, owner.whole_shape)
        ),
        state,
        by_part,
    )
    state_leaves, treedef = jax.tree.flatten(
        states, is_leaf=lambda x: isinstance(x, Piece)
    )
    whole_state = treedef.unflatten([_aval(x) for x in state_leaves])
    closed, out = jax.make_jaxpr(
        lambda g, s, p: tx.update(g, s, p, **extra_args), return_shape=True
    )(likes, whole_state, None if params is None else shapes)
    given = [*_given(parts, likes), *state_leaves]
    given += [] if params is None else _given(own, shapes)
    program = Program(axes, _naming(shapes))
    found = program.run(closed, given)
    steps, new = jax.tree.leaves(out[0]), jax.tree.leaves(out[1])
    updates = [
        _parts.varying(axes, _pieces.part_of(axes, x, like.shape))
        for x, like in zip(found[: len(steps)], steps, strict=True)
    ]
    owned = [isinstance(x, Piece) for x in state_leaves]
    if len(owned) != len(new):
        raise ValueError(
            f"The update returned a state of {len(new)} arrays for one of {len(owned)}:"
            " `zero` needs states whose structure stays."
        )
    leaves = _placed(program, found[len(steps) :], owned)
    return (
        jax.tree.unflatten(jax.tree.structure(out[0]), updates),
        jax.tree.unflatten(jax.tree.structure(out[1]), leaves),
    )


def shapes_of(tree: Any) -> Any:
    """Returns the shapes and dtypes of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """The shape of a part of an array, and of the whole."""

    shape: tuple[int, ...]
    whole_shape: tuple[int, ...]


def _parts_with_shape(parts: Any, shapes: Any) -> Any:
    return jax.tree.map(lambda x, like: _Part(x.shape, like.shape), parts, shapes)


def _given(parts: Any, shapes: Any) -> list[Piece]:
    """Returns parts as what they are parts of."""
    leaves = zip(jax.tree.leaves(parts), jax.tree.leaves(shapes), strict=True)
    return [Piece(part, like.shape) for part, like in leaves]


def _placed(program: Program, found: list[Any], owned: list[bool]) -> list[jax.Array]:
    """Returns results as a state keeps them: as a part, or whole on every device."""
    whole = program.whole(
        [x for x, is_part in zip(found, owned, strict=True) if not is_part]
    )
    rest = iter(whole)
    return [
        _parts.varying(
            program.axes, _pieces.part_of(program.axes, x, _pieces.shape_of(x))
        )
        if is_part
        else next(rest)
        for x, is_part in zip(found, owned, strict=True)
    ]


def _aval(value: Any) -> jax.ShapeDtypeStruct:
    if isinstance(value, Piece):
        return jax.ShapeDtypeStruct(value.shape, value.data.dtype)
    kind = jax.typeof(value)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def _naming(shapes: Any) -> Any:
    def name_of(shape: tuple[int, ...]) -> str:
        paths = [
            jax.tree_util.keystr(path)
            for path, like in jax.tree_util.tree_leaves_with_path(shapes)
            if like.shape == shape
        ]
        return f" (as of {', '.join(paths[:3])})" if any(paths) else ""

    return name_of
