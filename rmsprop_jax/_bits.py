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

from . import _matching

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: far apart for steps next to each other

_pieces_of: ContextVar[Any] = ContextVar("pieces_of", default=None)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("keys", "index"),
    meta_fields=("axis_name",),
)
@dataclasses.dataclass(frozen=True)
class Source:
    """Makes the bits of a leaf; a tree, so that one trace serves leaves of one shape.

    Attributes:
      keys: of all leaves in this step, uint32.
      index: the leaf's own place among them, a uint32 scalar.
      axis_name: of the mesh, where a leaf is one of the pieces that `in_pieces` means.
    """

    keys: jax.Array
    index: Any
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
        key = jax.lax.dynamic_index_in_dim(self.keys, self.index, keepdims=False)
        return make(jax.lax.stop_gradient(value), key, offset)


def sources(
    tree: Any, names: tuple[str, ...], step: jax.typing.ArrayLike, seed: Any = 0
) -> Callable[[Any, str, Any], Any]:
    """Returns a function of a leaf's path, a name and an array, to what makes its bits.

    It returns None for an array of 32 bits or more, which is not rounded, and for None.

    The keys of all leaves are one array, because XLA makes a kernel of its own on GPUs
    for each number that it computes for a large array (jax 0.10.2; tests/test_gpu.py).

    Args:
      tree: whose leaves are rounded.
      names: of all that is rounded for a leaf.
      step: the number of the update.
      seed: for runs that shall differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_matching.is_none)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    keyed = [f"{name}{path}" for path in paths for name in names]
    places = {key: np.uint32(index) for index, key in enumerate(keyed)}
    keys = cache(lambda: _keys(step, keyed, seed))

    def source(path: Any, name: str, like: Any) -> Source | None:
        if like is None or jnp.result_type(like).itemsize >= 4:
            return None
        place = places[f"{name}{jax.tree_util.keystr(path)}"]
        return Source(keys(), place, _pieces_of.get())

    return source


def source(path: Any, what: str, step: jax.typing.ArrayLike, seed: Any = 0) -> Source:
    """Returns the same for one leaf by itself."""
    keys = _keys(step, [f"{what}{jax.tree_util.keystr(path)}"], seed)
    return Source(keys, np.uint32(0), _pieces_of.get())


def _keys(step: Any, names: list[str], seed: Any) -> jax.Array:
    hashes = np.asarray([zlib.crc32(name.encode()) for name in names], np.uint32)
    if not isinstance(seed, jax.Array):
        seed = np.uint32(int(seed) % 2**32)
    return _mixed_keys(step, hashes, seed)


@jax.jit
def _mixed_keys(step: Any, hashes: Any, seed: Any) -> jax.Array:
    seed = jnp.asarray(seed).astype(jnp.uint32)
    return key_of(jnp.asarray(step).astype(jnp.uint32), hashes + seed)


def key_of(step: jax.Array, seed: jax.Array) -> jax.Array:
    """Returns mix(step · φ + seed), of uint32."""
    return _mixed(step * jnp.uint32(_GOLDEN) + seed)


def check_seed(seed: Any) -> None:
    """Raises unless `seed` is an integer: Python's, NumPy's, JAX's or a traced one."""
    hint = " Of a key of `jax.random` take `jax.random.bits(key)`."
    check_integer("seed", seed, hint)


def check_integer(name: str, value: Any, hint: str = "") -> None:
    """Raises unless a value is one integer, which may be traced."""
    is_array = isinstance(value, np.ndarray | jax.Array)
    if is_array and jnp.issubdtype(value.dtype, jnp.integer) and value.ndim == 0:
        return
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return
    raise TypeError(f"`{name}` must be an integer, got {value!r}.{hint}")


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


def bits(shape: tuple[int, ...], key: jax.Array, offset: jax.Array) -> jax.Array:
    """Returns mix(index ^ key), where index is row-major.

    Args:
      shape: of one array. Axes in front of it come from key and offset, which are
        scalars or broadcast against the whole.
      key: of the array and the step, uint32.
      offset: the index of the first element, uint32.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        counts = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index += counts * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    index, offset, key = _of_one_rank(index, offset, key)
    return _mixed_high((index + offset) ^ key)


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
    def make(like: jax.Array, key: jax.Array, offset: jax.Array) -> jax.Array:
        shape = like.shape[like.ndim - dimensions :]
        return jnp.broadcast_to(bits(shape, key, offset), like.shape)

    @make.def_vmap
    def _(axis_size: int, mapped: Any, like: Any, key: Any, offset: Any):
        like_mapped, key_mapped, offset_mapped = mapped
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
        return make(like, rows(key, key_mapped), offset), True

    return make


def _mixed(x: jax.Array) -> jax.Array:
    high = _mixed_high(x)
    return high ^ (high >> 16)


def _mixed_high(x: jax.Array) -> jax.Array:
    """The finaliser without its last step, which changes the low half only."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
