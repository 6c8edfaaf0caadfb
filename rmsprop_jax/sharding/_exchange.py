"""Numbers that devices have to tell each other, all of which travel together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _parts


class Later:
    """A value that is known once the devices have told each other."""

    value: Any = None


class Reduction(NamedTuple):
    """A reduction over a whole array of which this device has reduced its part.

    Attributes:
      own: the scalars that came of it here.
      combine: a function of such scalars of all devices, arrays [devices], to results.
      later: what the results are for.
    """

    own: list[jax.Array]
    combine: Callable[..., list[jax.Array]]
    later: list[Later]


def known(value: Any) -> Any:
    """Returns a value, or what a `Later` has become, if it has."""
    while isinstance(value, Later) and value.value is not None:
        value = value.value
    return value


def exchange(axes: tuple[str, ...], reductions: Sequence[Reduction]) -> None:
    """Finishes all reductions with one all-gather over each axis of the mesh."""
    own = [x for reduction in reductions for x in reduction.own]
    words = [_words(x) for x in own]
    sent = jnp.concatenate(_parts.all_varying(words))[None]
    found = _parts.gathered(axes, _parts.varying(axes, sent))  # [devices, words]
    ends = np.cumsum([x.size for x in words])[:-1]
    columns = iter(jnp.split(found, ends, axis=1))
    for reduction in reductions:
        arrays = [_numbers(next(columns), x.dtype) for x in reduction.own]
        results = reduction.combine(*arrays)
        for later, result in zip(reduction.later, results, strict=True):
            later.value = result


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of a scalar as uint32s."""
    if jnp.iscomplexobj(x):
        return jnp.concatenate([_words(x.real), _words(x.imag)])
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)[None]
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
    same = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(x, same).astype(jnp.uint32)[None]


def _numbers(words: jax.Array, dtype: Any) -> jax.Array:
    """Returns [devices] numbers from [devices, words]."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = np.empty(0, dtype).real.dtype
        half = words.shape[1] // 2
        return jax.lax.complex(
            _numbers(words[:, :half], part), _numbers(words[:, half:], part)
        )
    if dtype == jnp.bool_:
        return words[:, 0] != 0
    if dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(words, dtype)
    if dtype.itemsize == 4:
        return jax.lax.bitcast_convert_type(words[:, 0], dtype)
    same = jnp.dtype(f"uint{8 * dtype.itemsize}")
    return jax.lax.bitcast_convert_type(words[:, 0].astype(same), dtype)
