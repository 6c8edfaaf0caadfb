"""The dialects of TF1 and Paddle, which keep the rate in the momentum."""

from typing import Any, Unpack

import numpy as np
import optax

from .. import _checks
from ..decay import Schedule, Weights
from ._dialect import Options, as_float32, dialect, unless_zero

Rate = optax.ScalarOrSchedule


@dialect(
    {
        "nesterov": "TF1's RMSPropOptimizer has plain momentum",
        "weight_decay": "TF1's RMSPropOptimizer has none: add it to the loss",
    },
    python_float=np.float32,
)
def tf1(
    learning_rate: Rate,
    decay: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-10,
    use_locking: bool = False,
    centered: bool = False,
    name: str = "RMSProp",
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`tf.compat.v1.train.RMSPropOptimizer`: v starts at 1, momentum of steps.

    ::

        v ← decay·v + (1 − decay)·g², from v = 1
        m ← decay·m + (1 − decay)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + epsilon)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    1 − decay is taken after decay was rounded to the dtype of the variable. As in TF1,
    a Python float is float32, also for variables in float64: pass np.float64(0.9) there
    where TF1 got a constant in float64.

    Args:
      learning_rate: a number or an Optax schedule.
      decay: in [0, 1).
      momentum: in [0, 1]; 0 keeps no buffer (TF1 keeps one).
      epsilon: at least 0, in units of the squared gradient.
      use_locking, name: no effect here.
      centered: whether to subtract the squared mean.
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
      >>> tx = dialects.tf1(0.01, 0.9, 0.9, 1e-3)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")  # from v = 1
      -0.0100

    References:
      tf.compat.v1.train.RMSPropOptimizer in TensorFlow 2.21.0.
    """
    del use_locking, name
    return dict(
        learning_rate=learning_rate,
        decay=rounded_first("decay", decay),
        eps=epsilon,
        initial_scale=1.0,
        centered=centered,
        momentum=unless_zero(momentum),
        **options,
    )


@dialect(
    {"nesterov": "Paddle's RMSProp has plain momentum, whatever its documentation says"}
)
def paddle(
    learning_rate: Rate,
    rho: float = 0.95,
    epsilon: float = 1.0e-6,
    momentum: float = 0.0,
    centered: bool = False,
    parameters: None = None,
    weight_decay: Rate | None = None,
    grad_clip: None = None,
    name: str | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`paddle.optimizer.RMSProp`: ε in the root, momentum of steps, coupled decay.

    ::

        g ← g + weight_decay·θ
        v ← rho·v + (1 − rho)·g², from v = 0
        m ← rho·m + (1 − rho)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + epsilon)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    The momentum is plain: Paddle's documentation says Nesterov, its code does not. rho,
    epsilon and momentum are rounded to float32, also in float64.

    Args:
      learning_rate: a number or an Optax schedule.
      rho: the decay, in [0, 1).
      epsilon: at least 0, in units of the squared gradient.
      momentum: in [0, 1]; 0 keeps no buffer (Paddle keeps one).
      centered: whether to subtract the squared mean.
      parameters: has to be None: the parameters are what `init` gets.
      weight_decay: coupled (L2): added to the gradient, times the parameter.
      grad_clip: has to be None: chain `optax.clip_by_global_norm` or the like before.
      name: no effect here.
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
      >>> tx = dialects.paddle(0.01, rho=0.99)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")
      -0.1000

    References:
      paddle.optimizer.RMSProp in PaddlePaddle 3.3.1.
    """
    del name
    for argument, value, instead in (
        ("parameters", parameters, "the parameters are what its `init` gets"),
        (
            "grad_clip",
            grad_clip,
            "chain `optax.clip_by_global_norm` or the like before",
        ),
    ):
        if value is not None:
            raise TypeError(f"`{argument}` must be None here: {instead}.")
    return dict(
        learning_rate=learning_rate,
        decay=rounded_first("rho", as_float32(rho)),
        eps=as_float32(epsilon),
        centered=centered,
        momentum=as_float32(unless_zero(momentum)),
        weight_decay=weight_decay,
        **options,
    )


def rounded_first(name: str, decay: Any) -> Schedule | Weights:
    """Returns a decay, number or schedule, rounded before 1 − decay is taken of it."""
    _checks.hyperparameter(name, decay, "in [0, 1)", or_schedule=True)
    if callable(decay):
        return lambda count: Weights(keep=decay(count))
    return Weights(keep=decay)
