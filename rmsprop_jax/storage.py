"""How an accumulator of a given dtype is made, read and written.

The arithmetic is in float32, or in float64 where the gradients or the accumulator are;
an accumulator is stored in the dtype that the caller asks for, by default that of the
arithmetic. Everything that depends on the stored form stands here. What is narrower
than float32 is rounded stochastically, so that the average keeps its mean.

`nu`, which is never negative, may be a code: the top bits of its float32 pattern, an
unsigned float without a sign bit. In uint16 it has float32's whole range and 8 bits of
mantissa (bfloat16 has 7), in uint8 64 octaves and 2 bits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _codes, _grid, _leaves
from ._codes import Format as Format
from ._codes import decode as decode
from ._codes import uint8 as uint8

_SIGNED = ("float32", "float64", "bfloat16")
_UNSIGNED = (*_SIGNED, "uint16", "uint8")


def as_format(name: str, dtype: Any, *, unsigned: bool = False) -> Format:
    """Returns the form that a user's dtype means; None is the arithmetic's own.

    Args:
      name: the argument's name, for the error.
      dtype: a dtype, a `Format` or None.
      unsigned: whether the accumulator is never negative.

    Raises:
      TypeError: for a dtype that no accumulator can have here.
      ValueError: for float64 while JAX has 64-bit types switched off.
    """
    if dtype is None:
        return Format()
    form = dtype if isinstance(dtype, Format) else None
    accepted = _UNSIGNED if unsigned else _SIGNED
    try:
        dtype = jnp.dtype(dtype if form is None else form.dtype)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a dtype ({', '.join(accepted)}) or None, got {dtype!r}."
        ) from None
    if dtype.name not in accepted:
        hint = ""
        if dtype.name in _UNSIGNED:
            hint = " It has a sign, for which these codes have no place: use bfloat16."
        raise TypeError(
            f"`{name}` is {dtype.name}; accepted are {', '.join(accepted)}.{hint}"
        )
    if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"`{name}` is float64, but JAX has 64-bit types switched off: call "
            'jax.config.update("jax_enable_x64", True) first, or use float32.'
        )
    return Format(dtype) if form is None else form


def is_narrow(form: Format) -> bool:
    """Whether what is stored in this form is rounded."""
    return form.dtype is not None and jnp.dtype(form.dtype).itemsize < 4


def full(leaf: Any, value: Any, form: Format, *, real: bool = False) -> jax.Array:
    """Returns an accumulator for `leaf`, of its shape and sharding, full of `value`.

    Args:
      leaf: an array, a scalar or a `jax.ShapeDtypeStruct`.
      value: what to fill it with.
      form: the form to store it in.
      real: whether the accumulator is real where `leaf` is complex.
    """
    if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
        return jnp.full_like(leaf, value)  # an integer buffer: as Optax does
    dtype = _leaves.arithmetic_dtype(leaf) if form.dtype is None else form.dtype
    if _codes.is_code(dtype):
        value = _codes.encode(jnp.asarray(value, jnp.float32), form)
    array = jnp.full_like(
        leaf, value, dtype=dtype if real else _leaves.like(leaf, dtype)
    )
    # A scalar full of an array is that array, which cannot be donated twice.
    return jnp.copy(array) if isinstance(value, jax.Array) else array


def nearest(value: Any, like: Any, form: Format = _codes.DEFAULT) -> jax.Array:
    """Returns a value in the form of the accumulator `like`, rounded to nearest.

    That is for a start, or from a file; an average would stall.
    """
    if _codes.is_code(like.dtype):
        value = jnp.asarray(value, jnp.float32)
        return _codes.encode(value, form._replace(dtype=like.dtype))
    return jnp.asarray(value).astype(like.dtype)


def read(stored: Any, dtype: Any, form: Format = _codes.DEFAULT) -> jax.Array:
    """Returns the value of an accumulator in the arithmetic's (real) `dtype`.

    Infinity, which is what too large a value was stored as, reads as the largest
    number: an infinite average would stay so for ever, and inf - inf is NaN.
    """
    most = float(jnp.finfo(dtype).max)
    if stored.dtype == dtype:
        return lax.clamp(np.asarray(-most, dtype), stored, np.asarray(most, dtype))
    value = decode(stored, form) if _codes.is_code(stored.dtype) else stored
    value = value.astype(_leaves.like(stored, dtype))
    if stored.dtype == jnp.uint8:  # which has no infinity
        return value
    return _leaves.on_parts(lambda part: _leaves.clamped(part, most), value)


def sizes(state: Any) -> dict[str, int]:
    """Returns the bytes of every array of an optimizer's state, by its path.

    Args:
      state: any tree of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape` of an
        `init` needs no memory).

    Returns:
      A dictionary; the sum of its values is what the optimizer costs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, storage
      >>> tx = rmsprop(0.1, nu_dtype="uint8")
      >>> storage.sizes(jax.eval_shape(tx.init, {"w": jnp.ones((10, 10))}))
      {'[0].count': 4, "[0].nu['w']": 100}
    """
    return {
        jax.tree_util.keystr(path): leaf.size * jnp.dtype(leaf.dtype).itemsize
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def write(
    value: jax.Array,
    stored: Any,
    bits: Any,
    form: Format = _codes.DEFAULT,
) -> jax.Array:
    """Returns `value` in the form of `stored`, the accumulator that it replaces.

    Args:
      value: the new value.
      stored: the old accumulator.
      bits: makes random bits for a value; None where `stored` has 32 bits or more.
      form: the form of `stored`.
    """
    if stored.dtype.itemsize >= 4:
        return value.astype(stored.dtype)
    if _codes.is_code(stored.dtype):
        value = value.astype(jnp.float32)
        form = form._replace(dtype=stored.dtype)
        return _codes.encoded(
            value, bits(value) >> (32 - _codes.shift(stored.dtype)), form, stored
        )
    if stored.dtype == jnp.bfloat16:
        return _grid.to_bfloat16(value.astype(jnp.float32), bits(value))
    raise AssertionError(stored.dtype)  # `as_format` accepts no others


def tied(u: jax.Array, *written: Any) -> jax.Array:
    """Returns `u`, which on TPUs waits for accumulators that were written.

    So XLA makes one kernel of all, also where parameters have 16 bits or accumulators
    are several. It would read gradients and accumulators twice.
    """
    written = tuple(x for x in written if x is not None)
    if len(written) == 1 and written[0].dtype.itemsize > 2:
        return u

    def waiting(u: jax.Array, *written: jax.Array) -> jax.Array:
        for x in written:
            x = jax.lax.stop_gradient(x.real).astype(u.real.dtype)
            zero = 0 * jnp.clip(x, -1, 1)  # which infinity by itself would not make
            u = _leaves.on_parts(partial(jnp.add, -zero), u)
        return u

    return jax.lax.platform_dependent(
        u, *written, tpu=waiting, default=lambda u, *written: u
    )
