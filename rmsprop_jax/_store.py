"""How an accumulator of a given dtype is made, read and written.

The arithmetic is in float32, or in float64 where the gradients or the accumulator are;
an accumulator is stored in the dtype that the caller asks for, by default that of the
arithmetic. Everything that depends on the stored form stands here. What is narrower
than float32 is rounded stochastically, so that the average keeps its mean.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _codes, _format, _grid, _leaves
from ._codes import lowest_of as lowest_of
from ._codes import moved as moved
from ._codes import range_of as range_of
from ._format import Format as Format
from ._format import as_format as as_format
from ._format import is_narrow as is_narrow
from ._format import same as same


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
    if _format.is_code(dtype):
        value = _codes.nearest(value, form)
    array = jnp.full_like(
        leaf, value, dtype=dtype if real else _leaves.like(leaf, dtype)
    )
    # A scalar full of an array is that array, which cannot be donated twice.
    return jnp.copy(array) if isinstance(value, jax.Array) else array


def nearest(value: Any, like: Any, form: Format = _format.DEFAULT) -> jax.Array:
    """Returns a value in the form of the accumulator `like`, rounded to nearest.

    That is for a start, or from a file; an average would stall.

    Args:
      value: an array or a number.
      like: an array of the dtype that the value gets: float32, bfloat16, uint16, uint8.
      form: for uint8 the range of the codes, `storage.uint8(...)`.

    Returns:
      An array of the shape of `value`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import storage
      >>> code = storage.nearest(0.01, like=jnp.zeros(1, jnp.uint8))
      >>> round(float(storage.decode(code)), 5)
      0.00977
    """
    return _codes.nearest(value, form._replace(dtype=like.dtype))


def read(stored: Any, dtype: Any, lowest: Any = _format.LOWEST) -> jax.Array:
    """Returns the value of an accumulator in the arithmetic's (real) `dtype`.

    Codes of one byte are in the range that begins at 2^`lowest`.

    Infinity, which is what too large a value was stored as, reads as the largest
    number: an infinite average would stay so for ever, and inf - inf is NaN.
    """
    most = float(jnp.finfo(dtype).max)
    if stored.dtype == dtype:
        return lax.clamp(np.asarray(-most, dtype), stored, np.asarray(most, dtype))
    value = _codes.values(stored, lowest)
    value = value.astype(_leaves.like(stored, dtype))
    if stored.dtype == jnp.uint8:  # which has no infinity
        return value
    return _leaves.on_parts(lambda part: _leaves.clamped(part, most), value)


def inflation(keep: jax.Array) -> jax.Array:
    """Returns what an average in uint8 is multiplied with before its root divides.

    Its codes walk at random around the exact average. They are right in their mean, so
    1 / sqrt(nu) is not: its mean is too large by 3/8 of the walk's relative variance,
    at decay 0.9, 0.99 and 0.999 by 1.0, 2.9 and 3.4 % (measured with normal gradients,
    and with those of four nets). This makes up for it, and never enlarges a step.

    Args:
      keep: what a step keeps of the average: where that is 0, none of the codes.
    """
    return 1 + 0.071 * keep * keep / (1 + 19 * (1 - keep))


def write(
    value: jax.Array,
    stored: Any,
    bits: Any,
    form: Format = _format.DEFAULT,
    lowest: Any = None,
) -> jax.Array:
    """Returns `value` in the form of `stored`, the accumulator that it replaces.

    Args:
      value: the new value.
      stored: the old accumulator.
      bits: makes random bits for a value; None where `stored` has 32 bits or more.
      form: the form that it gets.
      lowest: for uint8 where the range of `stored` began, if not where that of `form`
        does.
    """
    if stored.dtype.itemsize >= 4:
        return value if value.dtype == stored.dtype else value.astype(stored.dtype)
    if _format.is_code(stored.dtype):
        value = value.astype(jnp.float32)
        form = form._replace(dtype=stored.dtype)
        below = bits(value) >> (32 - _codes.shift(stored.dtype))
        if stored.dtype == jnp.uint8:  # which has no code for NaN
            old = _codes.values(stored, form.lowest if lowest is None else lowest)
            value = jnp.where(jnp.isnan(value), old, value)
        return _codes.encoded(value, below, form)
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
