"""What holds for one leaf: its arithmetic, and its parts where it is complex."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import _checks


def arithmetic_dtype(*leaves: Any) -> jnp.dtype:
    """Returns the real dtype to compute in: float64 if any leaf has it, else float32.

    Complex leaves count by their parts.
    """
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    wide = any(
        jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits == 64
        for dtype in dtypes
    )
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def like(leaf: Any, dtype: Any) -> jnp.dtype:
    """Returns `dtype`, or the complex dtype of that precision for a complex `leaf`."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
        wide = jnp.dtype(dtype) == jnp.float64
        return jnp.dtype(jnp.complex128 if wide else jnp.complex64)
    return jnp.dtype(dtype)


def same_kind(what: str, value: Any, other: str, counterpart: Any) -> None:
    """Raises unless both are complex, or neither."""
    if jnp.iscomplexobj(value) != jnp.iscomplexobj(counterpart):
        raise TypeError(
            f"A {what} is {jnp.result_type(value)}, but its {other} is "
            f"{jnp.result_type(counterpart)}: parameters, gradients and state must all "
            "be complex, or none of them."
        )


def at_least(least: Any, x: jax.Array) -> jax.Array:
    """jnp.maximum, which is five instructions on CPUs where this is one; NaN stays."""
    return jnp.where(x < least, least, x)


def at_most(most: Any, x: jax.Array) -> jax.Array:
    """jnp.minimum, in the same way."""
    return jnp.where(x > most, most, x)


def name_of(path: Any) -> tuple[str, ...]:
    """Returns a path in words; the `value` of an NNX variable is not part of it."""
    name = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
        for key in path
    ]
    if len(name) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey):
        name = name[:-1] if name[-1] == "value" else name
    return tuple(name)


def on_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns function(x), or for complex x the function of each of its two parts.

    Complex arithmetic would multiply a part with the other's zero, and inf by 0 is NaN.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(function(x.real), function(x.imag))
    return function(x)


def square(x: jax.Array) -> jax.Array:
    """|x|², real also where x is complex."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else x * x


def each(function: Callable[..., Any], updates: Any, *trees: Any) -> tuple[Any, ...]:
    """Returns trees of what function(path, u, *others) returns of each leaf.

    None, a parameter without a gradient, stays None and leaves the others as they are.

    Args:
      function: returns as many values as there are trees.
      updates: a tree of gradients or updates.
      trees: with the leaves of `updates`; or None, which is None for each.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        updates, is_leaf=_checks.is_none
    )
    none = [None] * len(leaves)
    others = [none if t is None else treedef.flatten_up_to(t) for t in trees]
    found = [
        (u, *rest) if u is None else function(path, u, *rest)
        for (path, u), *rest in zip(leaves, *others, strict=True)
    ]
    columns = zip(*found, strict=True) if found else [()] * (1 + len(trees))
    return tuple(map(treedef.unflatten, columns))
