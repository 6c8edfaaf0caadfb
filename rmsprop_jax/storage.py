"""How an accumulator of a given dtype is made, read and written.

The arithmetic is in float32, or in float64 where the gradients or the accumulator are;
an accumulator is stored in the dtype that the caller asks for, by default that of the
arithmetic. Everything that depends on the stored form stands here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

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
    array = jnp.full_like(leaf, value, dtype=dtype if real else like(leaf, dtype))
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


def read(stored: Any, dtype: Any) -> jax.Array:
    """Returns the value of an accumulator in the arithmetic's (real) `dtype`.

    Infinity, which is what too large a value was stored as, reads as the largest
    number: an infinite average would stay so for ever, and inf - inf is NaN.
    """
    most = float(jnp.finfo(dtype).max)
    value = stored.astype(like(stored, dtype))
    return on_parts(lambda x: jnp.clip(x, -most, most), value)


def write(value: jax.Array, stored: Any) -> jax.Array:
    """Returns `value` in the form of `stored`, the accumulator that it replaces.

    Raises:
      ValueError: if a hyperparameter was an array too large for the leaf.
    """
    if value.shape != stored.shape:
        raise ValueError(
            f"A hyperparameter is an array that makes {value.shape} of an accumulator "
            f"of shape {stored.shape}: use numbers, or arrays that broadcast to every "
            "leaf."
        )
    return value.astype(stored.dtype)


def same_kind(what: str, value: Any, other: str, counterpart: Any) -> None:
    """Raises unless both are complex, or neither."""
    if jnp.iscomplexobj(value) != jnp.iscomplexobj(counterpart):
        raise TypeError(
            f"A {what} is {jnp.result_type(value)}, but its {other} is "
            f"{jnp.result_type(counterpart)}: parameters, gradients and state must all "
            "be complex, or none of them."
        )


def on_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns function(x), or for complex x the function of each of its two parts.

    Complex arithmetic would multiply a part with the other's zero, and inf by 0 is NaN.
    """
    if jnp.iscomplexobj(x):
        return jax.lax.complex(function(x.real), function(x.imag))
    return function(x)
