"""What holds for one leaf: its arithmetic, and its parts where it is complex."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _matching


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


def wider(one: Any, other: Any) -> jnp.dtype:
    """Returns the dtype that holds the values of both, complex if either is.

    float32 for two of 16 bits that differ. JAX's own promotion is an error for float8,
    and for all that differ while it is strict.
    """
    one, other = jnp.dtype(one), jnp.dtype(other)
    if one == other:
        return one
    kinds = [jnp.issubdtype(dtype, jnp.complexfloating) for dtype in (one, other)]
    bits = [jnp.finfo(dtype).bits for dtype in (one, other)]
    if bits[0] == bits[1] and bits[0] < 32:
        return jnp.dtype(jnp.float32)
    real = jnp.finfo(one if bits[0] >= bits[1] else other).dtype
    if not any(kinds):
        return jnp.dtype(real)
    return jnp.dtype(jnp.complex128 if real == jnp.float64 else jnp.complex64)


def update_dtype(path: Any, g: Any, p: Any, stored: Any) -> jnp.dtype:
    """Returns the dtype of an update: that of gradient or parameter, the wider one.

    Without the parameter a state in float64 tells that it is that wide.

    Args:
      path: of the leaf, for the error.
      g: the gradient.
      p: the parameter; what is no number, as None, tells nothing.
      stored: an array of the state whose dtype follows the parameter's, or `g`.
    """
    if p is None or not (hasattr(p, "dtype") or _matching.is_number(p)):
        is_wide = jnp.finfo(stored.dtype).bits == 64
        return wider(g.dtype, stored.dtype) if is_wide else g.dtype
    dtype = p.dtype if hasattr(p, "dtype") else jnp.result_type(p)
    if dtype == g.dtype or not jnp.issubdtype(dtype, jnp.inexact):
        return g.dtype
    same_kind(path, "gradient", g, "parameter", p)
    return wider(g.dtype, dtype)


def same_kind(path: Any, what: str, value: Any, other: str, counterpart: Any) -> None:
    """Raises for a complex value where its counterpart is real."""
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(counterpart):
        raise TypeError(
            f"The {what}{jax.tree_util.keystr(path)} is {jnp.result_type(value)}, but "
            f"its {other} is {jnp.result_type(counterpart)}: a complex {what} needs a "
            f"complex {other}. Take the gradient of a real function of real parameters."
        )


def widened(updates: Any, *, negate: bool) -> Any:
    """Returns updates in float32, or wider where they are; None stays None."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        updates, is_leaf=_matching.is_none
    )
    wide = []
    for path, g in leaves:
        if g is not None:
            known = hasattr(g, "dtype") or _matching.is_number(g)
            g = jnp.asarray(g) if known else g
            if not (known and jnp.issubdtype(g.dtype, jnp.inexact)):
                raise _matching.not_floating("gradients", path, g)
            real = arithmetic_dtype(g)
            g = g if g.dtype == real else g.astype(like(g, real))
            g = -g if negate else g
        wide.append(g)
    return treedef.unflatten(wide)


def returned(path: Any, g: Any, p: Any, step: Any, *, follows: bool) -> Any:
    """Returns a step in the dtype that its update has for the caller, and the step.

    Args:
      path: of the leaf.
      g: the gradient.
      p: the parameter, or None where it is not known.
      step: what came of the gradient, in a wide dtype.
      follows: whether steps are in float64 only where parameters or gradients are.
    """
    dtype = update_dtype(path, g, p, step if follows else g)
    if step.dtype == dtype:
        return step, step
    if step.dtype.itemsize < 4:
        dtype = step.dtype  # `round_params` has rounded it
    elif not jnp.issubdtype(dtype, jnp.complexfloating):
        dtype = like(step, dtype)  # complex where the momentum is
    return saturated(step, dtype), step


def saturated(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns x in another dtype; what is too large for it becomes its largest number.

    float8_e4m3fn has no infinity, so that it would be NaN.
    """
    if x.dtype == dtype:
        return x
    to, of = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if to.bits < of.bits:
        most = float(to.max)
        x = on_parts(lambda part: clamped(part, most), x)
    return x.astype(dtype)


def clamped(x: jax.Array, most: float) -> jax.Array:
    """Returns x between -most and most; NaN stays."""
    return lax.clamp(np.asarray(-most, x.dtype), x, np.asarray(most, x.dtype))


def at_least(least: Any, x: jax.Array) -> jax.Array:
    """jnp.maximum, which is five instructions on CPUs where this is one; NaN stays."""
    return jnp.where(x < least, least, x)


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
    if jnp.iscomplexobj(x):
        return lax.square(x.real) + lax.square(x.imag)
    return lax.square(x)


def each(
    function: Callable[..., Any], updates: Any, params: Any, *trees: Any
) -> tuple[Any, ...]:
    """Returns trees of what function(path, u, p, *others) returns of each leaf.

    None, a parameter without a gradient, stays None and leaves the others as they are.

    Args:
      function: returns an update, and a value for each of `trees`.
      updates: a tree of gradients or updates.
      params: the parameters, if they are known.
      trees: with the leaves of `updates`; or None, which is None for each.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        updates, is_leaf=_matching.is_none
    )
    known = none = [None] * len(leaves)
    if params is not None:
        # Optax does not look at the parameters, so whatever is not a tree like that of
        # the gradients passes and tells nothing.
        with contextlib.suppress(ValueError, TypeError):
            known = treedef.flatten_up_to(params)
    others = [none if t is None else treedef.flatten_up_to(t) for t in trees]
    found = [
        (u, *rest) if u is None else function(path, jnp.asarray(u), p, *rest)
        for (path, u), p, *rest in zip(leaves, known, *others, strict=True)
    ]
    columns = zip(*found, strict=True) if found else [()] * (1 + len(trees))
    return tuple(map(treedef.unflatten, columns))
