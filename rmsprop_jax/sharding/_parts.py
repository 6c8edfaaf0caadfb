"""What `zero` sends: from whole arrays to each device's part of them, and back.

An array counts as flat and padded, and the i-th of N devices has the i-th of N equal
parts. Large arrays whose rows divide travel as they are: their part is a block of rows,
so nothing is laid out anew. All others travel together, in one bucket for each dtype.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 1024
"""Flat arrays are padded to a multiple of this. So on 1, 2, 4, ... 1,024 devices the
state has the same shapes, and a checkpoint of one mesh fits another."""

TILE = (16, 128)
"""What is sent is made of these, as TPUs store arrays; others XLA would all-reduce."""


def bound(axes: tuple[str, ...]) -> bool:
    """Returns whether the axes are those of a `shard_map` (or `pmap`) around this."""
    try:
        jax.lax.axis_size(axes)
    except NameError:
        return False
    return True


def varying_over(x: Any) -> frozenset[str]:
    """Returns the axes over which an array varies, where `shard_map` checks that."""
    return jax.typeof(x).manual_axis_type.varying


def all_varying(values: Sequence[Any]) -> list[Any]:
    """Returns arrays that vary over the same axes, as `shard_map` asks for."""
    over = [varying_over(x) for x in values]
    union: frozenset[str] = frozenset().union(*over)
    return [
        jax.lax.pcast(x, tuple(union - own), to="varying") if union - own else x
        for x, own in zip(values, over, strict=True)
    ]


def varying(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """Returns an array that varies over the axes, where `shard_map` checks that."""
    return all_varying([x, jax.lax.axis_index(axes)])[0]


def gathered(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """Returns the parts of all devices, one after another along the first axis."""
    for axis in reversed(axes):
        x = jax.lax.all_gather(x, axis, tiled=True, to="invarying")
    return x


def part_size(size: int, devices: int) -> int:
    """Returns how many elements of a flat array a device has, padding included.

    An empty array counts as one block of padding: JAX reduces no empty arrays, and
    forgets how they are sharded, so that a step would compile twice.
    """
    block = math.lcm(BLOCK, devices)
    return max(1, -(-size // block)) * block // devices


def own(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """Returns this device's part of an array that is the same on all devices."""
    devices, index = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    if _divides(x.shape, devices):
        parts = x.reshape(devices, -1, x.shape[-1])
    else:
        parts = _split(x, devices)
    return jax.lax.dynamic_index_in_dim(parts, index, keepdims=False).ravel()


def mean(axes: tuple[str, ...], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns this device's part of the mean of arrays over all devices."""
    devices = jax.lax.axis_size(axes)

    def scattered(x: jax.Array) -> jax.Array:
        # One axis after another: over a group that spans two dimensions of a torus, XLA
        # has no reduce-scatter for TPUs.
        for axis in axes:
            x = jax.lax.psum_scatter(x, axis, tiled=True)
        return x.ravel() / devices

    parts: list[Any] = [None] * len(leaves)
    large, buckets = _grouped(leaves, leaves, devices)
    for i in large:
        parts[i] = scattered(leaves[i].reshape(-1, leaves[i].shape[-1]))
    for bucket in buckets:
        x = jnp.concatenate([_split(leaves[i], devices) for i in bucket], axis=1)
        ends = _ends(leaves, bucket, devices)
        *own, _ = jnp.split(scattered(_tiled(x)), ends)
        for i, part in zip(bucket, own, strict=True):
            parts[i] = part
    return parts


def whole(
    axes: tuple[str, ...], parts: Sequence[jax.Array], likes: Sequence[Any]
) -> list[jax.Array]:
    """Returns arrays of the shapes of `likes`; every device has a part of each."""
    devices = jax.lax.axis_size(axes)

    leaves: list[Any] = [None] * len(parts)
    large, buckets = _grouped(parts, likes, devices)
    for i in large:
        rows = parts[i].reshape(-1, likes[i].shape[-1])
        leaves[i] = gathered(axes, rows).reshape(likes[i].shape)
    for bucket in buckets:
        x = jnp.concatenate([parts[i] for i in bucket])
        x = gathered(axes, _tiled(x[None])).reshape(devices, -1)
        ends = _ends(likes, bucket, devices)
        *each, _ = jnp.split(x, ends, axis=1)
        for i, rows in zip(bucket, each, strict=True):
            leaves[i] = rows.ravel()[: likes[i].size].reshape(likes[i].shape)
    return leaves


def _divides(shape: tuple[int, ...], devices: int) -> bool:
    """Returns whether the part of an array is a block of its rows, of whole tiles."""
    *rows, lanes = shape or (0,)
    whole_tiles = math.prod(rows) % (TILE[0] * devices) == lanes % TILE[1] == 0
    return len(shape) > 1 and math.prod(shape) > 0 and whole_tiles


def _grouped(
    sent: Sequence[jax.Array], likes: Sequence[Any], devices: int
) -> tuple[list[int], list[list[int]]]:
    """Returns the indices of arrays that travel alone, and of those in each bucket."""
    large, buckets = [], defaultdict(list)
    for i, (x, like) in enumerate(zip(sent, likes, strict=True)):
        if _divides(like.shape, devices):
            large.append(i)
        else:
            buckets[x.dtype].append(i)
    return large, list(buckets.values())


def _ends(likes: Sequence[Any], bucket: list[int], devices: int) -> list[int]:
    """Returns where each array's part of a bucket ends; padding follows the last."""
    return list(itertools.accumulate(part_size(likes[i].size, devices) for i in bucket))


def _split(x: jax.Array, devices: int) -> jax.Array:
    """Returns an array as [devices, part], padded."""
    padding = devices * part_size(x.size, devices) - x.size
    return jnp.pad(x.ravel(), (0, padding)).reshape(devices, -1)


def _tiled(x: jax.Array) -> jax.Array:
    """Returns [devices, n] as [devices · rows, lanes], padded to whole tiles."""
    padding = -x.shape[1] % math.prod(TILE)
    return jnp.pad(x, ((0, 0), (0, padding))).reshape(-1, TILE[1])
