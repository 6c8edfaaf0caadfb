"""How an accumulator of a given dtype is made, read and written.

The arithmetic is in float32, or in float64 where the gradients or the accumulator are;
an accumulator is stored in the dtype that the caller asks for, by default that of the
arithmetic. Everything that depends on the stored form stands here. What is narrower
than float32 is rounded stochastically, so that the average keeps its mean.

`nu`, which is never negative, may be a code: the top bits of its float32 pattern, an
unsigned float without a sign bit. In uint16 it has float32's whole range and 8 bits of
mantissa (bfloat16 has 7), in uint8 64 octaves and 2 bits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from . import _leaves, rounding

_SIGNED = ("float32", "float64", "bfloat16")
_UNSIGNED = (*_SIGNED, "uint16", "uint8")
_OCTAVES = 64  # of the one-byte code
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


def full(leaf: Any, value: Any, form: Format, *, real: bool = False) -> jax.Array:
    """Returns an accumulator for `leaf`, of its shape and sharding, full of `value`.

    Args:
      leaf: an array, a scalar or a `jax.ShapeDtypeStruct`.
      value: what to fill it with.
      form: the form to store it in.
      real: whether the accumulator is real where `leaf` is complex.
    """
    dtype = _leaves.arithmetic_dtype(leaf) if form.dtype is None else form.dtype
    if _is_code(dtype):
        half = jnp.uint32(1 << (_shift(dtype) - 1))
        value = _encoded(
            jnp.asarray(value, jnp.float32), half, form._replace(dtype=dtype)
        )
    array = jnp.full_like(
        leaf, value, dtype=dtype if real else _leaves.like(leaf, dtype)
    )
    # A scalar full of an array is that array, which cannot be donated twice.
    return jnp.copy(array) if isinstance(value, jax.Array) else array


def placed(init: optax.TransformInitFn) -> optax.TransformInitFn:
    """Returns `init` that makes scalars on the devices of the parameters, replicated.

    They would move there in the first update, which would then compile twice.
    """

    def placed_init(params: optax.Params) -> optax.OptState:
        shardings = [
            leaf.sharding
            for leaf in jax.tree.leaves(params)
            if not isinstance(leaf, Tracer) and getattr(leaf, "committed", False)
        ]
        if len({frozenset(s.device_set) for s in shardings}) != 1:
            return init(params)
        sharding = shardings[0]
        if not isinstance(sharding, NamedSharding):
            with jax.default_device(min(sharding.device_set, key=lambda d: d.id)):
                return init(params)

        def place(leaf: jax.Array) -> jax.Array:
            if isinstance(leaf, Tracer) or leaf.committed:
                return leaf
            return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec()))

        return jax.tree.map(place, init(params))

    return placed_init


def read(stored: Any, dtype: Any, form: Format = DEFAULT) -> jax.Array:
    """Returns the value of an accumulator in the arithmetic's (real) `dtype`.

    Infinity, which is what too large a value was stored as, reads as the largest
    number: an infinite average would stay so for ever, and inf - inf is NaN.
    """
    if _is_code(stored.dtype):
        stored = decode(stored, form)
    most = float(jnp.finfo(dtype).max)
    value = stored.astype(_leaves.like(stored, dtype))
    return _leaves.on_parts(lambda x: jnp.clip(x, -most, most), value)


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
    if not _is_code(stored.dtype):
        return stored
    code = stored.astype(jnp.uint32) + jnp.uint32(_offset(stored.dtype, form))
    return jax.lax.bitcast_convert_type(code << _shift(stored.dtype), jnp.float32)


def write(
    value: jax.Array,
    stored: Any,
    bits: Callable[[tuple[int, ...]], jax.Array],
    form: Format = DEFAULT,
) -> jax.Array:
    """Returns `value` in the form of `stored`, the accumulator that it replaces.

    Args:
      value: the new value.
      stored: the old accumulator.
      bits: makes random bits for a shape, if it is narrow.
      form: the form of `stored`.

    Raises:
      ValueError: if a hyperparameter was an array too large for the leaf.
    """
    if value.shape != stored.shape:
        raise ValueError(
            f"A hyperparameter is an array that makes {value.shape} of an accumulator "
            f"of shape {stored.shape}: use numbers, or arrays that broadcast to every "
            "leaf."
        )
    if _is_code(stored.dtype):
        value = value.astype(jnp.float32)
        form = form._replace(dtype=stored.dtype)
        return _encoded(
            value, bits(value.shape) >> (32 - _shift(stored.dtype)), form, stored
        )
    if stored.dtype == jnp.bfloat16:
        return rounding.to_bfloat16(value.astype(jnp.float32), bits(value.shape))
    return value.astype(stored.dtype)


def tied(u: jax.Array, written: jax.Array) -> jax.Array:
    """Returns `u`, which on TPUs waits for a narrow accumulator.

    So XLA makes one kernel of both also where parameters have 16 bits. It would read
    gradients and accumulator twice: 14 bytes per parameter, not 10.
    """
    if written.dtype.itemsize > 2:
        return u

    def waiting(u: jax.Array, written: jax.Array) -> jax.Array:
        zero = 0 * jax.lax.stop_gradient(written).astype(u.real.dtype)
        return _leaves.on_parts(lambda part: part - zero, u)

    return jax.lax.platform_dependent(
        u, written, tpu=waiting, default=lambda u, written: u
    )


def _is_code(dtype: Any) -> bool:
    return jnp.dtype(dtype).name in ("uint16", "uint8")


def _shift(dtype: Any) -> int:
    """Returns how many bits of float32's pattern a code leaves out."""
    return 15 if jnp.dtype(dtype) == jnp.uint16 else 21


def _offset(dtype: Any, form: Format) -> int:
    """Returns the top bits of float32's pattern that are code 0."""
    return 0 if jnp.dtype(dtype) == jnp.uint16 else 4 * (form.lowest + _BIAS)


def _encoded(value: jax.Array, below: Any, form: Format, old: Any = None) -> jax.Array:
    """Returns the code of a float32, with `below` added under the bits that it keeps.

    NaN, which one byte has no code for, leaves the old one.
    """
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32) + below
    code = (pattern >> _shift(form.dtype)).astype(jnp.int32) - _offset(form.dtype, form)
    keeps = old is not None and form.dtype == jnp.uint8
    kept = (jnp.isnan(value), old) if keeps else ()
    return jax.lax.platform_dependent(
        code,
        *kept,
        tpu=partial(_narrowed_as_float, form.dtype),
        default=partial(_narrowed, form.dtype),
    )


def _narrowed(dtype: Any, code: jax.Array, *kept: jax.Array) -> jax.Array:
    """Returns codes in a dtype, clipped to it, or where `kept` says so the old ones."""
    narrow = jnp.clip(code, 0, int(jnp.iinfo(dtype).max)).astype(dtype)
    return jnp.where(kept[0], kept[1], narrow) if kept else narrow


def _narrowed_as_float(dtype: Any, code: jax.Array, *kept: jax.Array) -> jax.Array:
    """The same; but of this XLA makes one kernel on TPUs, of integers two."""
    narrow = jnp.clip(code.astype(jnp.float32), 0, float(jnp.iinfo(dtype).max))
    if kept:
        narrow = jnp.where(kept[0], kept[1].astype(jnp.float32), narrow)
    return narrow.astype(dtype)
