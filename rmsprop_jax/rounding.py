"""Stochastic rounding: random bits without a state, parameters of 16 bits that move.

Rounding up with the probability of the distance leaves the mean as it was, where
rounding to nearest loses every change under half a step: an average in bfloat16 stalls,
and so do parameters.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _bits, _matching
from ._bits import in_pieces as in_pieces


def random_bits(
    shape: tuple[int, ...], step: jax.typing.ArrayLike, seed: jax.typing.ArrayLike
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
      seed: tells apart arrays that are rounded in the same step, an integer; may be
        traced.

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
    _bits.check_seed(seed)
    if not isinstance(seed, jax.Array):
        seed = np.uint32(int(cast(Any, seed)) % 2**32)
    step, seed = (jnp.asarray(x).astype(jnp.uint32) for x in (step, seed))
    return _bits.bits(shape, _bits.key_of(step, seed), jnp.uint32(0))


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
    _bits.check_seed(seed)

    def init(params: optax.Params) -> Any:
        del params
        return RoundParamsState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        _matching.state_of("round_params", state, RoundParamsState)
        if params is None:
            raise ValueError(
                "`round_params` needs the parameters: call update(gradients, state, "
                "params)."
            )
        _matching.same_tree("updates", updates, "params", params)
        source = _bits.sources(params, ("params",), state.count, seed)

        def rounded(path: Any, u: Any, p: Any) -> Any:
            round_to = _ROUND.get(jnp.result_type(p).name)
            if u is None or round_to is None:
                return u
            make_bits = source(path, "params", p)
            p = jnp.asarray(p).astype(jnp.float32)
            bits = make_bits(p)
            total = round_to(p + jnp.asarray(u).astype(jnp.float32), bits)
            return total.astype(jnp.float32) - p

        updates = jax.tree_util.tree_map_with_path(
            rounded, updates, params, is_leaf=_matching.is_none
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, RoundParamsState(count=count)

    return optax.GradientTransformation(init, update)
