"""Codes for numbers that are never negative: the top bits of float32's pattern.

They are unsigned floats without a sign bit. In uint16 there is float32's whole range
with 8 bits of mantissa (bfloat16 has 7), in uint8 64 octaves with 2 bits.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_BIAS = 127  # float32 has 2^e as e + 127, above 23 bits of mantissa


class Format(NamedTuple):
    """The form that an accumulator is stored in.

    Attributes:
      dtype: that of the array, or None for that of the arithmetic.
      lowest: for uint8, the exponent of the smallest number.
    """

    dtype: Any = None
    lowest: int = -44


DEFAULT = Format()


def uint8(lowest: float = 2.0**-44) -> Format:
    r"""One byte for `nu`, whose range can be moved: a value for `nu_dtype`.

    A code k stands for lowest · 2^⌊k/4⌋ · (1 + (k mod 4)/4): 64 octaves in steps of a
    quarter. A smaller nu, zero included, is stored as `lowest`, so steps are smaller
    than they should be, never larger; a larger one as the largest, 0.875 · 2^64 times
    that. By default that covers gradients from 2.4e-7 to 950; move it to where yours
    are.

    Args:
      lowest: the smallest nu, in units of the squared gradient; rounded down to a
        power of 2 between 2^-126 and 2^64.

    Returns:
      The form, for `nu_dtype`.

    Raises:
      ValueError: if `lowest` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, storage
      >>> tx = rmsprop(0.1, nu_dtype=storage.uint8(lowest=1e-20))
      >>> tx.init(jnp.ones(4))[0].nu.dtype
      dtype('uint8')
    """
    if not isinstance(lowest, int | float) or not 2.0**-126 <= lowest <= 2.0**64:
        raise ValueError(
            f"`lowest` must be a number from 2**-126 to 2**64, got {lowest!r}."
        )
    return Format(jnp.dtype(jnp.uint8), math.frexp(lowest)[1] - 1)


def decode(stored: jax.Array, form: Format = DEFAULT) -> jax.Array:
    """Returns the float32 values of a `nu` in uint16 or uint8; another one as it is.

    Args:
      stored: a leaf of `ScaleByRmsState.nu`.
      form: the `uint8(...)` that was its `nu_dtype`, if that was not the default.

    Returns:
      An array of the same shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rmsprop_jax import scale_by_rms, storage
      >>> tx = scale_by_rms(initial_scale=0.01, nu_dtype="uint16")
      >>> state = tx.init({"w": jnp.ones(2)})
      >>> jax.tree.map(storage.decode, state.nu)
      {'w': Array([0.01000977, 0.01000977], dtype=float32)}
    """
    if not is_code(stored.dtype):
        return stored
    code = stored.astype(jnp.uint32) + jnp.uint32(_offset(stored.dtype, form))
    return jax.lax.bitcast_convert_type(code << shift(stored.dtype), jnp.float32)


def encode(value: jax.Array, form: Format) -> jax.Array:
    """Returns the nearest codes of float32 values: for a start, not for an average."""
    return encoded(value, jnp.uint32(1 << (shift(form.dtype) - 1)), form)


def encoded(value: jax.Array, below: Any, form: Format, old: Any = None) -> jax.Array:
    """Returns the code of a float32, with `below` added under the bits that it keeps.

    NaN, which one byte has no code for, leaves the old one.
    """
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32) + below
    code = (pattern >> shift(form.dtype)).astype(jnp.int32) - _offset(form.dtype, form)
    if old is not None and form.dtype == jnp.uint8:
        code = jnp.where(jnp.isnan(value), old.astype(jnp.int32), code)
    return jax.lax.platform_dependent(
        code,
        tpu=partial(_narrowed_as_float, form.dtype),
        default=partial(_narrowed, form.dtype),
    )


def is_code(dtype: Any) -> bool:
    return jnp.dtype(dtype).name in ("uint16", "uint8")


def shift(dtype: Any) -> int:
    """Returns how many bits of float32's pattern a code leaves out."""
    return 15 if jnp.dtype(dtype) == jnp.uint16 else 21


def _offset(dtype: Any, form: Format) -> int:
    """Returns the top bits of float32's pattern that are code 0."""
    return 0 if jnp.dtype(dtype) == jnp.uint16 else 4 * (form.lowest + _BIAS)


def _narrowed(dtype: Any, code: jax.Array) -> jax.Array:
    """Returns codes in a dtype, clipped to it."""
    return jnp.clip(code, 0, int(jnp.iinfo(dtype).max)).astype(dtype)


def _narrowed_as_float(dtype: Any, code: jax.Array) -> jax.Array:
    """The same; but of this XLA makes one kernel on TPUs, of integers two."""
    return jnp.clip(code.astype(jnp.float32), 0, float(jnp.iinfo(dtype).max)).astype(
        dtype
    )
