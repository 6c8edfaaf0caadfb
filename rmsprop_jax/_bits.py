"""Random bits without a state: a function of an element's place, the step and a seed.

Under `jax.vmap` a member counts as its row of the stacked array, so that mapping gives
the bits that stacking gives, and no two members share any.
"""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: far apart for steps next to each other

_pieces_of: ContextVar[Any] = ContextVar("pieces_of", default=None)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "seed"),
    meta_fields=("axis_name",),
)
@dataclasses.dataclass(frozen=True)
class Source:
    """Makes the bits of a leaf; a tree, so that one trace serves leaves of one shape.

    Attributes:
      step: the number of the update.
      seed: of the leaf, a uint32 scalar.
      axis_name: of the mesh, where a leaf is one of the pieces that `in_pieces` means.
    """

    step: jax.typing.ArrayLike
    seed: Any
    axis_name: Any = None

    def __call__(self, value: jax.Array) -> jax.Array:
        """Returns the bits for an array of the shape of `value`, which is not read.

        Under `jax.vmap` JAX has to see that it depends on the value that is rounded:
        step and seed may be the same for all members.
        """
        pieces, offset = 1, jnp.uint32(0)
        if self.axis_name is not None:
            pieces = jax.lax.axis_size(self.axis_name)
            piece = jax.lax.axis_index(self.axis_name).astype(jnp.uint32)
            offset = piece * jnp.uint32(value.size % 2**32)
        make = _mapped(value.ndim, pieces)
        step = jnp.asarray(self.step).astype(jnp.uint32)
        seed = jnp.asarray(self.seed).astype(jnp.uint32)
        return make(jax.lax.stop_gradient(value), step, seed, offset)


def source(path: Any, what: str, step: jax.typing.ArrayLike, seed: Any = 0) -> Source:
    """Returns what makes the bits for a leaf, from its path and from what it is."""
    name = zlib.crc32(f"{what}{jax.tree_util.keystr(path)}".encode())
    if isinstance(seed, jax.Array):
        return Source(step, seed.astype(jnp.uint32) + np.uint32(name), _pieces_of.get())
    return Source(step, np.uint32((int(seed) + name) % 2**32), _pieces_of.get())


def check_seed(seed: Any) -> None:
    """Raises unless `seed` is an integer: Python's, NumPy's, JAX's or a traced one."""
    is_array = isinstance(seed, np.ndarray | jax.Array)
    if is_array and jnp.issubdtype(seed.dtype, jnp.integer) and seed.ndim == 0:
        return
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return
    raise TypeError(
        f"`seed` must be an integer, got {seed!r}. Of a key of `jax.random` take "
        "`jax.random.bits(key)`."
    )


@contextlib.contextmanager
def in_pieces(axis_name: Any) -> Iterator[None]:
    """Gives each array that is rounded in here the bits of its place in a whole one.

    It counts as piece number `axis_index(axis_name)` of an array that is split along
    its first axis. Enter it in the function that `jax.shard_map` maps: around that,
    what JAX has traced before would keep the bits that it had.
    """
    token = _pieces_of.set(axis_name)
    try:
        yield
    finally:
        _pieces_of.reset(token)


def bits(
    shape: tuple[int, ...], step: jax.Array, seed: jax.Array, offset: jax.Array
) -> jax.Array:
    """Returns mix(index ^ mix(step · φ + seed)), where index is row-major.

    Args:
      shape: of one array. Axes in front of it come from step, seed and offset, which
        are scalars or broadcast against the whole.
      step: the number of the update, uint32.
      seed: uint32.
      offset: the index of the first element, uint32.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        counts = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += counts * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    key = step * jnp.uint32(_GOLDEN) + seed
    index, offset, key = _of_one_rank(index, offset, key)
    return _mixed_high((index + offset) ^ _mixed(key))


def _of_one_rank(*arrays: jax.Array) -> list[jax.Array]:
    """Returns arrays with axes of length 1 in front, as strict promotion wants."""
    rank = max(x.ndim for x in arrays)
    return [x if x.ndim == 0 else x.reshape(_padded(x.shape, rank)) for x in arrays]


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape


@cache
def _mapped(dimensions: int, pieces: int) -> Callable[..., jax.Array]:
    """Returns `bits`, whose members under `jax.vmap` are rows of one stacked array.

    Args:
      dimensions: of the array that is rounded, without the axes of `jax.vmap`.
      pieces: of how many equal parts of a whole array it is one.
    """

    @custom_vmap
    def make(
        like: jax.Array, step: jax.Array, seed: jax.Array, offset: jax.Array
    ) -> jax.Array:
        shape = like.shape[like.ndim - dimensions :]
        return jnp.broadcast_to(bits(shape, step, seed, offset), like.shape)

    @make.def_vmap
    def _(axis_size: int, mapped: Any, like: Any, step: Any, seed: Any, offset: Any):
        like_mapped, step_mapped, seed_mapped, offset_mapped = mapped
        if not like_mapped:
            like = jnp.broadcast_to(like, (axis_size, *like.shape))

        def rows(x: jax.Array, is_mapped: bool) -> jax.Array:
            if not is_mapped:
                return x if x.ndim == 0 else x[None]
            return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))

        offset = rows(offset, offset_mapped)
        # It is where `jax.vmap` itself is what `in_pieces` names.
        if not offset_mapped:
            stride = pieces * math.prod(like.shape[1:]) % 2**32
            first = jnp.arange(axis_size, dtype=jnp.uint32) * jnp.uint32(stride)
            offset += first.reshape(-1, *[1] * (like.ndim - 1))
        step, seed = rows(step, step_mapped), rows(seed, seed_mapped)
        return make(like, step, seed, offset), True

    return make


def _mixed(x: jax.Array) -> jax.Array:
    high = _mixed_high(x)
    return high ^ (high >> 16)


def _mixed_high(x: jax.Array) -> jax.Array:
    """The finaliser without its last step, which changes the low half only."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
