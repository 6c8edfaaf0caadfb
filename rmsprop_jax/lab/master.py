"""The usual way to train in 16 bits: float32 weights beside the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MasterState(NamedTuple):
    """State of `with_master_weights`: the float32 weights, and what they are moved by.

    Attributes:
      weights: like the parameters, in float32.
      inner_state: of the optimizer that moves them.
    """

    weights: Any
    inner_state: Any


def with_master_weights(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Makes an optimizer move float32 copies of the parameters, which follow rounded.

    The updates are float32: added by `optax.apply_updates`, they give the copies,
    rounded to nearest in the parameters' dtype.

    Args:
      inner: the optimizer of the float32 weights; its gradients become float32.
    """

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: optax.Params) -> Any:
        weights = wide(params)
        return MasterState(weights, inner.init(weights))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        steps, inner_state = inner.update(
            wide(updates), state.inner_state, state.weights
        )
        weights: Any = optax.apply_updates(state.weights, steps)
        moves = jax.tree.map(
            lambda w, p: w.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
            weights, params,
        )  # fmt: skip
        return moves, MasterState(weights, inner_state)

    return optax.GradientTransformation(init, update)
