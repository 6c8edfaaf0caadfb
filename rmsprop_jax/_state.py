"""The state of RMSProp."""

from typing import NamedTuple

import jax
import optax


class RmsState(NamedTuple):
    """State of `scale_by_rms` where Optax's `ScaleByRmsState(nu)` does not suffice.

    That is for a decay that changes from step to step, bias correction included, for
    `centered`, and for accumulators that are rounded, so narrower than float32.

    A learning-rate schedule has a `count` of its own beside this one, so that
    `optax.tree_utils.tree_get(state, "count")` finds two: ask for "RmsState".

    Attributes:
      count: how many updates were done, an int32 scalar.
      nu: the moving average of |g|², or of the squared deviation from `mu` where
        centred: a real array for each parameter, of its shape.
      mu: the moving average of g where centred, otherwise None (an empty tree).
      lowest: for `nu` in uint8 the exponent of the smallest number, an int32 scalar;
        otherwise None.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: optax.Updates
    mu: optax.Updates | None
    lowest: jax.Array | None = None
