"""Stochastic rounding: random bits without a state, parameters of 16 bits that move.

Rounding up with the probability of the distance leaves the mean as it was, where
rounding to nearest loses every change under half a step: an average in bfloat16 stalls,
and so do parameters. These may also keep what they lose, in one byte.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _bits, _checks, _grid, _matching
from ._round_params import RoundParamsState as RoundParamsState
from ._round_params import grid_of
from ._round_params import round_params as round_params

__all__ = ["RoundParamsState", "merge", "random_bits", "round_params"]


def random_bits(
    shape: tuple[int, ...], step: jax.typing.ArrayLike, seed: jax.typing.ArrayLike
) -> jax.Array:
    """Returns 32 random bits for each element, a function of index, step and seed.

    ::

        mix(i xor mix(step·φ + seed))

    i is the row-major index, mix a 32-bit finaliser, φ is 0x9E3779B9; use the high
    bits, they are the best. There is no state, and the bits are the same on every
    device and in every sharding (`jax.shard_map` aside, whose functions see a part of
    the array as the whole).

    Args:
      shape: that of the array to round.
      step: the number of the update, an integer; may be traced.
      seed: tells apart arrays that are rounded in the same step, an integer; may be
        traced.

    Returns:
      A uint32 array of that shape.

    Raises:
      TypeError: if `shape` is no tuple of integers, or a number is no integer.

    Example:
      >>> from rmsprop_jax import rounding
      >>> rounding.random_bits((2,), step=0, seed=1)
      Array([...], dtype=uint32)

    References:
      The finaliser is lowbias32 of Chris Wellons, Prospecting for Hash Functions, 2018
      (https://nullprogram.com/blog/2018/07/31/).
    """
    shape = _shape(shape)
    if not isinstance(step, jax.Array):
        step = _checks.integer("step", step, 0, 2**32 - 1)
    _bits.check_integer("step", step)
    _bits.check_seed(seed)
    if not isinstance(seed, jax.Array):
        seed = np.uint32(int(cast(Any, seed)) % 2**32)
    step, seed = (jnp.asarray(x).astype(jnp.uint32) for x in (step, seed))
    return _bits.bits(shape, _bits.key_of(step, seed), jnp.uint32(0))


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list):
        raise TypeError(f"`shape` must be a tuple of integers, got {shape!r}.")
    return tuple(_checks.integer("shape", n, 0, 2**31 - 1) for n in shape)


def merge(params: optax.Params, state: Any) -> optax.Params:
    """Returns the float32 weights that parameters and their remainders stand for.

    That is for evaluation and export; training goes on with the parameters.

    Args:
      params: the parameters that belong to the state.
      state: of `round_params`, of `rmsprop(..., round_params=...)` or of a chain.

    Returns:
      A tree like `params`: narrow ones in float32, with their remainders where the
      state has some, others as they are.

    Raises:
      ValueError: if the state has none of `round_params`, if something follows that in
        the chain, or a remainder does not fit its parameter.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import rmsprop, rounding
      >>> tx = rmsprop(1e-4, round_params="remainder")
      >>> params = jnp.ones(2, jnp.bfloat16)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params, rounding.merge(params, state))
      [1 1] [0.9996... 0.9996...]
    """
    ends = _ends(state)
    if not ends:
        raise ValueError(
            "The state has none of `round_params`: there is nothing to merge. Pass the "
            "state of `rmsprop(..., round_params=...)`, or of the whole chain."
        )
    remainders: dict[Any, Any] = {}
    for end in ends:
        remainders.update(jax.tree_util.tree_leaves_with_path(end.remainder))

    _matching.array_leaves("params", params)
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    if missing := set(remainders) - paths:
        raise ValueError(
            f"params has no leaf {jax.tree_util.keystr(missing.pop())}, of which the "
            "state has a remainder: pass the parameters of this state."
        )

    def merged(path: Any, p: Any) -> Any:
        grid, remainder = grid_of(path, p), remainders.get(path)
        if grid is None:
            return p
        wide = jnp.asarray(p).astype(jnp.float32)
        if remainder is None:
            return wide
        if jnp.shape(remainder) != wide.shape:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has shape {wide.shape}, its "
                f"remainder {jnp.shape(remainder)}: pass the parameters of this state."
            )
        return _grid.weight(wide, jnp.asarray(remainder), grid)

    return jax.tree_util.tree_map_with_path(merged, params)


def _ends(state: Any) -> list[RoundParamsState]:
    """Returns the states of `round_params`, each of which has to end its chain."""
    if isinstance(state, RoundParamsState):
        return [state]
    nodes = jax.tree.leaves(state, is_leaf=lambda x: x is not state)
    found = [_ends(node) for node in nodes if node is not state]
    if type(state) is tuple and any(found[:-1]):
        raise ValueError(
            "`round_params` is not the last element of its chain: what follows changes "
            "its updates, and small ones are lost. Put it last."
        )
    return [end for ends in found for end in ends]
