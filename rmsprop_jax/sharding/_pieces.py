"""An array of which each device has a part, as a program for whole arrays sees it.

A value of such a program is one of three: a `Piece`, this device's part of a flat and
padded array; `Places`, whose elements are a linear function of their place, so that no
device has to make all of them; or a plain array, the same on every device.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _parts


class Piece(NamedTuple):
    """The part of an array that this device has.

    Attributes:
      data: [part], of the flat array, which is padded at its end.
      shape: that of the whole array.
    """

    data: jax.Array
    shape: tuple[int, ...]


class Places(NamedTuple):
    """An array whose element at i, j, ... is offset + strides[0] i + strides[1] j ...

    Attributes:
      offset: a scalar.
      shape: that of the whole array.
      strides: integers; all 0 where the array is full of one number.
    """

    offset: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def full(value: Any, shape: tuple[int, ...]) -> Any:
    """Returns an array that is full of one number, which is a scalar."""
    value = value if isinstance(value, np.ndarray) else jnp.asarray(value)
    return Places(value, shape, (0,) * len(shape)) if shape else value


def iota(dtype: Any, shape: tuple[int, ...], dimension: int) -> Places:
    """Returns an array of each element's place along one dimension."""
    strides = tuple(int(i == dimension) for i in range(len(shape)))
    return Places(jnp.zeros((), dtype), shape, strides)


def is_plain(value: Any) -> bool:
    return not isinstance(value, Piece | Places)


def shape_of(value: Any) -> tuple[int, ...]:
    return np.shape(value) if is_plain(value) else value.shape


def array_of(value: Any) -> Any:
    """Returns the array inside of a value, which an empty copy of it may stand for."""
    if isinstance(value, Piece):
        return value.data
    return value.offset if isinstance(value, Places) else value


def with_array(value: Any, array: Any) -> Any:
    """Returns a value of the kind and shape of another one, around an array."""
    if isinstance(value, Piece):
        return value._replace(data=array)
    return value._replace(offset=array) if isinstance(value, Places) else array


def kind_of(value: Any) -> Any:
    """Returns what there is to know about a value beside its array, to be hashed."""
    if isinstance(value, Places):
        return Places, value.shape, value.strides
    return (Piece, value.shape) if isinstance(value, Piece) else None


def part_of(axes: tuple[str, ...], value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns this device's part of a value, which may be a number for all elements."""
    if isinstance(value, Piece):
        return value.data
    devices = jax.lax.axis_size(axes)
    part = _parts.part_size(math.prod(shape), devices)
    if isinstance(value, Places):
        return _places(axes, value, part)
    if np.shape(value) == ():
        return jnp.broadcast_to(value, (part,))
    return _parts.own(axes, jnp.asarray(value))


def whole_of(value: Places | Any) -> jax.Array:
    """Returns an array that is not in parts, as a plain one."""
    if not isinstance(value, Places):
        return value
    array = jnp.full(value.shape, value.offset)
    for dimension, stride in enumerate(value.strides):
        if stride:
            count = jax.lax.broadcasted_iota(array.dtype, value.shape, dimension)
            array += count * _wrapped(stride, array.dtype)
    return array


def is_padded(axes: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    devices, size = jax.lax.axis_size(axes), math.prod(shape)
    return _parts.part_size(size, devices) * devices != size


def inside(axes: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
    """Returns [part], which elements of this device's part are no padding."""
    devices, size = jax.lax.axis_size(axes), math.prod(shape)
    part = _parts.part_size(size, devices)
    index = jax.lax.axis_index(axes)
    # Not the place in the whole array, which may be too large for an int32.
    full_parts, rest = divmod(size, part)
    here = jnp.where(index < full_parts, part, jnp.where(index == full_parts, rest, 0))
    return jax.lax.iota(jnp.int32, part) < here


def combined(name: str, values: Sequence[Any], bind: Any) -> Places | None:
    """Returns what an operation makes of numbers and places, if it is places again."""
    if any(isinstance(x, Piece) or (shape_of(x) and is_plain(x)) for x in values):
        return None
    places = [x for x in values if isinstance(x, Places)]
    if not places:
        return None
    linear = [x for x in places if any(x.strides)]
    offset = bind([array_of(x) for x in values])
    if not linear:
        return places[0]._replace(offset=offset)
    if name == "add":
        strides = map(sum, zip(*(x.strides for x in places), strict=True))
        return places[0]._replace(offset=offset, strides=tuple(strides))
    factors = [array_of(x) for x in values if x is not linear[0]]
    if name == "mul" and len(linear) == 1 and isinstance(factors[0], np.ndarray):
        strides = tuple(int(factors[0]) * stride for stride in linear[0].strides)
        return linear[0]._replace(offset=offset, strides=strides)
    return None


def _places(axes: tuple[str, ...], value: Places, part: int) -> jax.Array:
    """Returns this device's part, without a division where places are row-major."""
    dtype = jnp.result_type(value.offset)
    if not any(value.strides):
        return jnp.broadcast_to(value.offset, (part,))
    index = jax.lax.axis_index(axes).astype(dtype)
    place = jax.lax.iota(dtype, part) + index * _wrapped(part, dtype)
    row_major = [math.prod(value.shape[i + 1 :]) for i in range(len(value.shape))]
    count = [i for i, n in enumerate(value.shape) if n > 1]
    times = value.strides[count[-1]] if count else 0
    if all(value.strides[i] == times * row_major[i] for i in count):
        return value.offset + place * _wrapped(times, dtype)
    # Divided as int64 would be, if it is needed, by the caller's x64.
    total = value.offset
    for i in count:
        at = (place // row_major[i]) % value.shape[i]
        total += at.astype(dtype) * _wrapped(value.strides[i], dtype)
    return total


def _wrapped(number: int, dtype: Any) -> np.ndarray:
    """Returns an integer modulo the range of its dtype."""
    bits = jnp.iinfo(dtype).bits
    unsigned = np.asarray(number % 2**bits, f"uint{bits}")
    return unsigned.astype(dtype)
