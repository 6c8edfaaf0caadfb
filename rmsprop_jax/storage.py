"""How an accumulator of a given dtype is made, read and written.

The arithmetic is in float32, or in float64 where the gradients or the accumulator are;
an accumulator is stored in the dtype that the caller asks for, by default that of the
arithmetic. Everything that depends on the stored form stands here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

_ACCEPTED = ("float32", "float64")


def accumulator_dtype(name: str, dtype: Any) -> jnp.dtype | None:
    """Returns `dtype` as a dtype, or None where it is None (the arithmetic's own).

    Args:
      name: the argument's name, for the error.
      dtype: float32, float64 or None.

    Raises:
      TypeError: for a dtype that no accumulator can have here.
      ValueError: for float64 while JAX has 64-bit types switched off.
    """
    if dtype is None:
        return None
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a dtype ({', '.join(_ACCEPTED)}) or None, got {dtype!r}."
        ) from None
    if dtype.name not in _ACCEPTED:
        raise TypeError(
            f"`{name}` is {dtype.name}; accepted are {', '.join(_ACCEPTED)}. Narrower "
            "accumulators stall unless they are rounded stochastically, which this "
            "version does not do yet: use float32."
        )
    if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"`{name}` is float64, but JAX has 64-bit types switched off: call "
            'jax.config.update("jax_enable_x64", True) first, or use float32.'
        )
    return dtype


def arithmetic_dtype(*leaves: Any) -> jnp.dtype:
    """Returns the real dtype to compute in: float64 if any leaf has it, else float32.

    Complex leaves count by their parts.
    """
    wide = any(jnp.finfo(jnp.result_type(leaf)).bits == 64 for leaf in leaves)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def like(leaf: Any, dtype: Any) -> jnp.dtype:
    """Returns `dtype`, or the complex dtype of that precision for a complex `leaf`."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
        wide = jnp.dtype(dtype) == jnp.float64
        return jnp.dtype(jnp.complex128 if wide else jnp.complex64)
    return jnp.dtype(dtype)


def full(leaf: Any, value: Any, dtype: Any, *, real: bool = False) -> jax.Array:
    """Returns an accumulator for `leaf`, of its shape and sharding, full of `value`.

    Args:
      leaf: an array, a scalar or a `jax.ShapeDtypeStruct`.
      value: what to fill it with.
      dtype: the dtype asked for, or None for that of the arithmetic.
      real: whether the accumulator is real where `leaf` is complex.
    """
    dtype = arithmetic_dtype(leaf) if dtype is None else dtype
    return jnp.full_like(leaf, value, dtype=dtype if real else like(leaf, dtype))


def placed(state: Any, params: Any) -> Any:
    """Returns a fresh `state` with its scalars on the devices of `params`, replicated.

    They would move there in the first update, which would then compile twice.
    """
    shardings = (
        leaf.sharding
        for leaf in jax.tree.leaves(params)
        if not isinstance(leaf, Tracer) and getattr(leaf, "committed", False)
    )
    sharding = next(shardings, None)
    if sharding is None:
        return state
    if isinstance(sharding, jax.sharding.NamedSharding):
        replicated = jax.sharding.PartitionSpec()
        sharding = jax.sharding.NamedSharding(sharding.mesh, replicated)

    def place(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.committed else jax.device_put(leaf, sharding)

    return jax.tree.map(place, state)


def read(stored: Any, dtype: Any) -> jax.Array:
    """Returns the value of an accumulator in the arithmetic's (real) `dtype`.

    Infinity, which is what too large a value was stored as, reads as the largest
    number: an infinite average would stay so for ever, and inf - inf is NaN.
    """
    most = float(jnp.finfo(dtype).max)
    value = stored.astype(like(stored, dtype))
    return on_parts(lambda x: jnp.clip(x, -most, most), value)


def write(value: jax.Array, stored: Any) -> jax.Array:
    """Returns `value` in the form of `stored`, the accumulator that it replaces."""
    return value.astype(stored.dtype)


def on_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns function(x), or for complex x the function of each of its two parts.

    Complex arithmetic would multiply a part with the other's zero, and inf by 0 is NaN.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(function(x.real), function(x.imag))
    return function(x)
