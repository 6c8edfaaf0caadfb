"""Stochastic rounding: random bits without a state, parameters of 16 bits that move.

Rounding up with the probability of the distance leaves the mean as it was, where
rounding to nearest loses every change under half a step: an average in bfloat16 stalls,
and so do parameters.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _checks

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: far apart for steps next to each other

_pieces_of: ContextVar[Any] = ContextVar("pieces_of", default=None)


def random_bits(
    shape: tuple[int, ...], step: jax.typing.ArrayLike, seed: int
) -> jax.Array:
    r"""Returns 32 random bits for each element, a function of index, step and seed.

    .. math:: \text{mix}(i \oplus \text{mix}(\text{step} \cdot \phi + \text{seed}))

    i is the row-major index, mix a 32-bit finaliser; use the high bits, they are the
    best. There is no state, and the bits are the same on every device and in every
    sharding (`jax.shard_map` aside, whose functions see a part of the array as the
    whole).

    Args:
      shape: that of the array to round.
      step: the number of the update, an integer; may be traced.
      seed: tells apart arrays that are rounded in the same step, an integer.

    Returns:
      A uint32 array of that shape.

    Example:
      >>> from rmsprop_jax import rounding
      >>> rounding.random_bits((2,), step=0, seed=1)
      Array([...], dtype=uint32)

    References:
      The finaliser is lowbias32 of Chris Wellons, Prospecting for Hash Functions, 2018
      (https://nullprogram.com/blog/2018/07/31/).
    """
    return Source(step, np.uint32(seed % 2**32))(shape)


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

    def __call__(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns the bits for an array of that shape."""
        index = jnp.zeros(shape, jnp.uint32)
        stride = 1
        for axis in reversed(range(len(shape))):
            counts = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            index += counts * jnp.uint32(stride % 2**32)
            stride *= shape[axis]
        if self.axis_name is not None:
            piece = jax.lax.axis_index(self.axis_name).astype(jnp.uint32)
            index += piece * jnp.uint32(stride % 2**32)
        key = jnp.asarray(self.step).astype(jnp.uint32) * jnp.uint32(_GOLDEN)
        return _mixed_high(index ^ _mixed(key + self.seed))


def source(path: Any, what: str, step: jax.typing.ArrayLike, seed: int = 0) -> Source:
    """Returns what makes the bits for a leaf, from its path and from what it is."""
    seed += zlib.crc32(f"{what}{jax.tree_util.keystr(path)}".encode())
    return Source(step, np.uint32(seed % 2**32), _pieces_of.get())


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


def to_bfloat16(value: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 without bias; what is not finite stays as it is."""
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32)
    # Infinity has no bits below to carry from.
    pattern += jnp.where(jnp.isnan(value), jnp.uint32(0), bits >> 16)
    top = (pattern >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(top, jnp.bfloat16)


def to_float16(value: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to float16 without bias, subnormal numbers included."""
    exponent = (jax.lax.bitcast_convert_type(value, jnp.uint32) >> 23) & 0xFF
    # The step of float16 there, 2^(exponent - 10), but 2^-24 at least.
    lowest = jnp.maximum(exponent, jnp.uint32(127 - 14)) - 10
    step = jax.lax.bitcast_convert_type(lowest << 23, jnp.float32)
    uniform = (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    kept = jnp.floor(value / step + uniform) * step
    return jnp.where(jnp.isfinite(value), kept, value).astype(jnp.float16)


_ROUND = {"bfloat16": to_bfloat16, "float16": to_float16}


class RoundParamsState(NamedTuple):
    """State of `round_params`.

    Attributes:
      count: how many updates were done, an int32 scalar.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def round_params(seed: int = 0) -> optax.GradientTransformation:
    r"""Makes `optax.apply_updates` round parameters of 16 bits without bias.

    .. math:: u_t \leftarrow \text{round}(\theta_{t-1} + u_t) - \theta_{t-1}

    Nearest rounding leaves a parameter in bfloat16 where it is if the update is under
    1/512 of it. Put this last in the chain: its updates are float32, and what Optax,
    Flax NNX and Linen make of them is the rounded sum, with no memory beside a count.
    Parameters of 32 bits and more pass through.

    Args:
      seed: an integer, for runs that shall differ.

    Returns:
      An `optax.GradientTransformation` whose `update` needs `params`.

    Raises:
      ValueError: if `update` gets no `params`.
      TypeError: if `seed` is not an integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import rmsprop, rounding
      >>> tx = optax.chain(rmsprop(1e-3), rounding.round_params())
      >>> params = jnp.ones(1000, jnp.bfloat16)  # whose next numbers are 0.004 away
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...     updates, state = tx.update(jnp.ones_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(0.98 < params.astype(float).mean() < 0.995)
      True

    References:
      Zamirai et al., Revisiting BFloat16 Training, 2020
      (https://arxiv.org/abs/2010.06192).
    """
    if not isinstance(seed, int):
        raise TypeError(f"`seed` must be an integer, got {seed!r}.")

    def init(params: optax.Params) -> Any:
        del params
        return RoundParamsState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        _checks.state_of("round_params", state, RoundParamsState)
        if params is None:
            raise ValueError(
                "`round_params` needs the parameters: call update(gradients, state, "
                "params)."
            )
        _checks.same_tree("updates", updates, "params", params)

        def rounded(path: Any, u: Any, p: Any) -> Any:
            round_to = _ROUND.get(jnp.result_type(p).name)
            if u is None or round_to is None:
                return u
            p = jnp.asarray(p).astype(jnp.float32)
            bits = source(path, "params", state.count, seed)(p.shape)
            total = round_to(p + jnp.asarray(u).astype(jnp.float32), bits)
            return total.astype(jnp.float32) - p

        updates = jax.tree_util.tree_map_with_path(
            rounded, updates, params, is_leaf=_checks.is_none
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, RoundParamsState(count=count)

    return optax.GradientTransformation(init, update)


def _mixed(x: jax.Array) -> jax.Array:
    high = _mixed_high(x)
    return high ^ (high >> 16)


def _mixed_high(x: jax.Array) -> jax.Array:
    """The finaliser without its last step, which changes the low half only."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
