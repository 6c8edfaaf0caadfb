"""Which trees fit each other, and errors that name the leaves that do not."""

from functools import partial
from operator import is_
from typing import Any

import jax
import jax.numpy as jnp

# Whether a leaf is None; as `is_leaf` it keeps None in a tree.
is_none = partial(is_, None)


def same_tree(what: str, tree: Any, other: str, reference: Any) -> list[Any]:
    """Returns the leaves of `reference` in the places of those of `tree`.

    Raises unless both have the same leaves, of the same shapes. None in `tree` stands
    for a leaf without a value and fits anywhere.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_none)
    try:
        references = treedef.flatten_up_to(reference)
    except ValueError:
        ours = {jax.tree_util.keystr(path) or "an array" for path, _ in leaves}
        theirs = {
            jax.tree_util.keystr(path) or "an array"
            for path, _ in jax.tree_util.tree_leaves_with_path(reference)
        }
        differences = [
            f"{label} {', '.join(sorted(names)[:8])}"
            for label, names in (("missing:", theirs - ours), ("extra:", ours - theirs))
            if names
        ] or [f"{treedef} is not {jax.tree.structure(reference)}"]
        raise ValueError(
            f"The tree of the {what} is not that of the {other}: "
            f"{'; '.join(differences)}. Pass {what} for the parameters that `init` got."
        ) from None
    for (path, leaf), like in zip(leaves, references, strict=True):
        if leaf is not None and like is None:
            raise ValueError(
                f"{_where(what, path)} has shape {jnp.shape(leaf)}, but there is no "
                f"{other} there: it was None in `init`."
            )
        if leaf is not None and jnp.shape(leaf) != jnp.shape(like):
            raise ValueError(
                f"{_where(what, path)} has shape {jnp.shape(leaf)}, but the {other} "
                f"there has shape {jnp.shape(like)}. Pass {what} for the parameters "
                "that `init` got."
            )
    return references


def state_of(function: str, state: Any, kind: type) -> None:
    """Raises unless `state` is of the class that the function's `init` returns."""
    if not isinstance(state, kind):
        raise wrong_state(function, state, kind)


def wrong_state(function: str, state: Any, kind: type) -> TypeError:
    """Returns the error for a state of another class."""
    return TypeError(
        f"The state of `{function}` must be of the class {class_name(kind)}, got "
        f"{class_name(type(state))}: it comes from another transformation, or with "
        "other options (`momentum`, `centered`, `bias_correction`, `nu_dtype` or a "
        "schedule of `decay`). Use the state that this one's `init` returns; to go on "
        "with the other one, `rmsprop_jax.convert.migrate(state, tx, params, ...)` "
        "makes a state of it."
    )


def class_name(kind: type) -> str:
    """Returns a class by its package and name; modules in between may be renamed."""
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def wrong_centring(centered: bool) -> ValueError:
    """Returns the error for a state with a mean where there is none, or without."""
    return ValueError(
        f"`centered` is {centered}, but the state has {'no mu' if centered else 'a mu'}"
        ": it comes from another transformation. Use the state that this one's `init` "
        "returns, or `rmsprop_jax.convert.migrate(state, tx, params, ...)`."
    )


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array or a Python number."""
    return hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)


def array_leaves(what: str, tree: Any) -> None:
    """Raises for the first leaf of `tree` that is neither an array nor a number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_number(leaf):
            raise not_floating(what, path, leaf)


def not_floating(what: str, path: Any, leaf: Any) -> TypeError:
    """Returns the error for a leaf that no RMSProp can move."""
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return TypeError(
        f"{_where(what, path)} has dtype {dtype}; RMSProp accepts floating point and "
        "complex leaves. Leave others out: `eqx.filter(tree, eqx.is_inexact_array)` in "
        "Equinox, `wrt=nnx.Param` in Flax NNX, or optax.masked or optax.partition."
    )


def floating_leaves(what: str, tree: Any) -> None:
    """Raises for the first leaf of `tree` that is not floating point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        try:
            dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
            accepted = jnp.issubdtype(dtype, jnp.inexact)
        except TypeError:
            accepted = False
        if not accepted:
            raise not_floating(what, path, leaf)


def gradients(updates: Any, name: str, accumulators: Any, dtype: Any) -> None:
    """Raises unless gradients fit accumulators, and these are stored as expected.

    Args:
      updates: the gradients.
      name: that of the accumulators.
      accumulators: a tree of them.
      dtype: in which they are stored, or None for float32 or float64.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_none)
    what = f"state's {name}"
    try:
        like: list[Any] = treedef.flatten_up_to(accumulators)
    except ValueError:
        like = same_tree("gradients", updates, what, accumulators)
    for (path, g), stored in zip(leaves, like, strict=True):
        if g is None:
            continue
        if not jnp.issubdtype(jnp.result_type(g), jnp.inexact):
            raise not_floating("gradients", path, g)
        if jnp.shape(g) != getattr(stored, "shape", None):
            same_tree("gradients", updates, what, accumulators)
        wide = _REAL if name == "nu" else _WIDE
        if stored.dtype not in (wide if dtype is None else _of_precision(dtype)):
            raise wrong_dtype(path, name, stored, dtype)


def wrong_dtype(path: Any, name: str, stored: Any, dtype: Any) -> TypeError:
    """Returns the error for an accumulator that is stored in another dtype."""
    if dtype is None and jnp.issubdtype(stored.dtype, jnp.integer):
        return not_floating("params", path, stored)
    expected = "float32 or float64" if dtype is None else jnp.dtype(dtype).name
    where = _where(f"The state's {name}", path)
    return TypeError(
        f"{where} is {stored.dtype}, but this "
        f"transformation keeps it in {expected}: it comes from other options, or from "
        "Optax with narrow or complex parameters. Make a state of it with "
        "`rmsprop_jax.convert.migrate(state, tx, params, ...)`."
    )


_REAL = tuple(map(jnp.dtype, ("float32", "float64")))
_WIDE = (*_REAL, *map(jnp.dtype, ("complex64", "complex128")))


def _of_precision(dtype: Any) -> tuple[Any, ...]:
    """Returns a dtype, and the complex one of its precision."""
    dtype = jnp.dtype(dtype)
    wide = dtype == jnp.float64
    return dtype, jnp.dtype(jnp.complex128 if wide else jnp.complex64)


def fits(path: Any, leaf: Any, name: str, *numbers: Any) -> None:
    """Raises if a hyperparameter is an array that does not broadcast to a leaf."""
    for number in numbers:
        shape = () if number is None else jnp.shape(number)
        if not shape:
            continue
        try:
            fitting = jnp.broadcast_shapes(shape, leaf.shape) == leaf.shape
        except ValueError:
            fitting = False
        if not fitting:
            raise ValueError(
                f"`{name}` is an array of shape {shape}, which does not broadcast to "
                f"{_where('gradients', path)} of shape {leaf.shape}: use a number, or "
                "an array that broadcasts to every leaf."
            )


def _where(what: str, path: Any) -> str:
    return f"{what}{jax.tree_util.keystr(path)}"
