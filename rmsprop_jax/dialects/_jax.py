"""The dialects of JAX's own libraries."""

from typing import Any, Unpack

import jax.numpy as jnp
from jax.typing import ArrayLike
from optax import ScalarOrSchedule as Rate

from ..decay import Weights, debiased
from ._dialect import Options, dialect, is_zero, unless_zero


@dialect(
    {
        "nesterov": "jax.example_libraries has plain momentum",
        "centered": "jax.example_libraries has no centred RMSProp",
        "weight_decay": "jax.example_libraries has no weight decay",
    }
)
def jax_example(
    step_size: Rate,
    gamma: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`rmsprop` and `rmsprop_momentum` of `jax.example_libraries.optimizers`.

    ::

        v ← gamma·v + (1 − gamma)·g², from v = 0
        u = g / √(v + eps)
        b ← momentum·b + step_size·u
        θ ← θ − b

    Args:
      step_size: the learning rate, a number or a schedule.
      gamma: the decay, in [0, 1).
      eps: at least 0, in units of the squared gradient.
      momentum: in [0, 1]; 0 is `rmsprop`, and `rmsprop_momentum` has 0.9 by default.
      skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
        weight_decay_mask: as for `rmsprop`, where they apply.

    Returns:
      The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

    Raises:
      ValueError: for a number out of its range.
      TypeError: for an argument that it does not have, or of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> tx = dialects.jax_example(0.01, gamma=0.99)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")
      -0.1000

    References:
      jax.example_libraries.optimizers in JAX 0.10.2.
    """
    return dict(
        learning_rate=step_size,
        decay=gamma,
        eps=eps,
        momentum=unless_zero(momentum),
        **options,
    )


@dialect({"weight_decay": "optax.rmsprop has none: chain optax.add_decayed_weights"})
def optax(
    learning_rate: Rate,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`optax.rmsprop`, also where `rmsprop_jax.rmsprop` corrects it.

    ::

        v ← decay·v + (1 − decay)·g², from v = 0
        m ← decay·m + (1 − decay)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + eps)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    The differences: with `bias_correction` Optax divides the initial value by
    1 − decayᵗ like the gradients, so what is left of it at step t is
    decayᵗ·initial_scale / (1 − decayᵗ); `rmsprop` leaves out the initial value. Where
    centred, the variance of the first gradient is then 0 and the first step g / √eps,
    but for Optax's rounding, which may make it NaN; `rmsprop` takes g² for it.

    Args:
      learning_rate: a number or an Optax schedule.
      decay: in [0, 1).
      eps: at least 0, in units of the squared gradient, or of the gradient where not
        `eps_in_sqrt`.
      initial_scale: the initial value of v, at least 0.
      eps_in_sqrt: whether eps is added inside the root or outside.
      centered: whether to subtract the squared mean.
      momentum: in [0, 1], or None for no buffer.
      nesterov: whether the momentum is Nesterov's; needs `momentum`.
      bias_correction: whether to divide the averages by 1 − decayᵗ.
      skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
        weight_decay_mask: as for `rmsprop`, where they apply.

    Returns:
      The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

    Raises:
      ValueError: for a number out of its range.
      TypeError: for an argument that it does not have, or of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> tx = dialects.optax(0.01, initial_scale=1.0, bias_correction=True)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.5f}")  # √10 times too small
      -0.00316

    References:
      optax.rmsprop in Optax 0.2.8.
    """
    arguments = dict(
        learning_rate=learning_rate,
        decay=decay,
        eps=eps,
        initial_scale=initial_scale,
        eps_in_sqrt=eps_in_sqrt,
        centered=centered,
        momentum=momentum,
        nesterov=nesterov,
        bias_correction=bias_correction,
        **options,
    )
    if bias_correction and (centered or not is_zero(initial_scale)):
        rho = debiased(decay)

        def weights(count: Any) -> Weights:
            kept = rho(count)
            first = jnp.asarray(count) == 0
            return Weights(jnp.where(first, 1, kept), jnp.where(first, 1, 1 - kept))

        # What Optax keeps of the initial value after a step, so that step keeps all.
        kept_of_one = decay / (1 - decay)
        arguments |= {
            "decay": weights,
            "initial_scale": kept_of_one * initial_scale,
            "bias_correction": False,
        }
    return arguments
