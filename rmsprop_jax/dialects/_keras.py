"""The dialects of Keras: ε in the root or outside, clipping first."""

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from .. import _checks
from ._dialect import Options, as_float32, dialect, is_zero, unless_zero
from ._tensorflow import rounded_first

Rate = optax.ScalarOrSchedule

_KERAS_REFUSED = {"nesterov": "Keras's RMSprop has plain momentum"}


@dialect(_KERAS_REFUSED)
def keras(
    learning_rate: Rate = 0.001,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    weight_decay: Rate | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
    *,
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow",
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`keras.optimizers.RMSprop` (Keras 3): ε in the root, decoupled weight decay.

    ::

        v ← rho·v + (1 − rho)·g², from v = 0
        m ← rho·m + (1 − rho)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + epsilon)
        b ← momentum·b + learning_rate·u
        θ ← θ − b − learning_rate·weight_decay·θ

    Args:
      learning_rate: a number or an Optax schedule.
      rho: the decay, in [0, 1).
      momentum: in [0, 1]; 0 keeps no buffer.
      epsilon: at least 0, in units of the squared gradient.
      centered: whether to subtract the squared mean.
      weight_decay: decoupled (AdamW's): times the learning rate, off the parameters.
      clipnorm, clipvalue, global_clipnorm: clip each gradient's norm, its elements, or
        the norm of all gradients first; one of them at most.
      use_ema, loss_scale_factor, gradient_accumulation_steps: have to be off; Optax has
        `optax.ema`, Flax its dynamic loss scale, and Optax `optax.MultiSteps`.
      ema_momentum, ema_overwrite_frequency, name: no effect here.
      backend: what Keras runs on. TensorFlow rounds `weight_decay` to float32, which
        shows in float64 only. torch multiplies the parameters by 1 − learning_rate ·
        weight_decay, rounded to the dtype of the learning rate: in float32 that is 1,
        and so no decay, where the product is less than 3e-8.
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
      >>> tx = dialects.keras(learning_rate=0.1)
      >>> updates, state = tx.update(jnp.full(1, 10.0), tx.init(jnp.full(1, 10.0)))
      >>> print(f"{updates[0]:.4f}")  # Keras's documentation: 10 becomes 9.683772
      -0.3162

    References:
      keras.optimizers.RMSprop in Keras 3.15.1.
    """
    del ema_momentum, ema_overwrite_frequency, name
    for argument, value, instead in (
        ("use_ema", use_ema, "keep the average with `optax.ema` or flax's"),
        ("loss_scale_factor", loss_scale_factor, "scale the loss in your step"),
        (
            "gradient_accumulation_steps",
            gradient_accumulation_steps,
            "wrap this in `optax.MultiSteps`",
        ),
    ):
        if value:
            raise ValueError(
                f"`{argument}` is not the optimizer's business here: {instead}."
            )
    if backend not in ("tensorflow", "jax", "torch"):
        raise ValueError(
            f"`backend` must be 'tensorflow', 'jax' or 'torch', got {backend!r}."
        )
    rate, mode = 0.0 if weight_decay is None else weight_decay, "decoupled"
    if backend == "torch" and not is_zero(rate):
        rate, mode = _left_by_factor(learning_rate, rate), "independent"
    return dict(
        before=_clipping(clipvalue, clipnorm, global_clipnorm, alone=True),
        learning_rate=learning_rate,
        decay=rho,
        eps=epsilon,
        centered=centered,
        momentum=unless_zero(momentum),
        weight_decay=as_float32(rate) if backend == "tensorflow" else rate,
        weight_decay_mode=mode,
        **options,
    )


@dialect(
    {
        **_KERAS_REFUSED,
        "weight_decay": "The legacy Keras RMSprop has none: add it to the loss, or use "
        "dialects.keras",
    }
)
def tf_keras(
    learning_rate: Rate = 0.001,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float | None = 1e-7,
    centered: bool = False,
    name: str = "RMSprop",
    *,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    lr: Rate | None = None,
    decay: float = 0.0,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`tf_keras.optimizers.legacy.RMSprop` (Keras 2): ε moves with the momentum.

    ::

        v ← rho·v + (1 − rho)·g², from v = 0
        m ← rho·m + (1 − rho)·g, from m = 0  (where centered: v − m² for v below)
        u = g / (√v + epsilon), with momentum g / √(v + epsilon)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    The learning rate, its decay, rho and momentum are rounded to float32, also in
    float64.

    Args:
      learning_rate: a number or an Optax schedule.
      rho: the decay of the average, in [0, 1).
      momentum: in [0, 1]; 0 keeps no buffer. It must not be traced, because the place
        of epsilon depends on it.
      epsilon: at least 0, in units of the gradient, or with momentum of its square; 0
        and None stand for 1e-7.
      centered: whether to subtract the squared mean.
      name: no effect here.
      clipnorm, clipvalue, global_clipnorm: clip the elements of the gradients first,
        then each gradient's norm or that of all gradients, but not both norms.
      lr: the old name of learning_rate.
      decay: that of the learning rate, which is divided by 1 + decay·step; at least 0.
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
      >>> grads = params = jnp.full(1, 1e-4)
      >>> for momentum in (0.0, 0.9):
      ...     tx = dialects.tf_keras(0.001, momentum=momentum)
      ...     updates, state = tx.update(grads, tx.init(params))
      ...     print(f"{updates[0]:.5f}")
      -0.00315
      -0.00031

    References:
      tf_keras.optimizers.legacy.RMSprop in tf_keras 2.21.0 (OptimizerV2).
    """
    del name
    if isinstance(momentum, Tracer):
        raise TypeError(
            "`momentum` must be a number that is known, got a tracer: whether epsilon "
            "is inside the root depends on it. In optax.inject_hyperparams, pass "
            'static_args="momentum".'
        )
    off = is_zero(float(momentum) if isinstance(momentum, jax.Array) else momentum)
    _checks.hyperparameter("decay", decay, "finite and at least 0")
    if lr is not None:
        accepted = "a number" if callable(lr) else "finite"
        _checks.hyperparameter("lr", lr, accepted, or_schedule=True)
    rate = as_float32(learning_rate if lr is None else lr)
    return dict(
        before=_clipping(clipvalue, clipnorm, global_clipnorm, alone=False),
        learning_rate=rate if is_zero(decay) else _over_time(rate, as_float32(decay)),
        decay=rounded_first("rho", as_float32(rho)),
        eps=1e-7 if epsilon is None or is_zero(epsilon) else epsilon,
        eps_in_sqrt=not off,
        centered=centered,
        momentum=None if off else as_float32(momentum),
        **options,
    )


def _left_by_factor(learning_rate: Any, weight_decay: Any) -> Any:
    """Returns what Keras on torch takes off, 1 - (1 - product), rounded twice.

    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/torch/optimizers/torch_optimizer.py#L43
    """
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    for name, rate in rates.items():
        accepted = "finite and at least 0" if name == "weight_decay" else "a number"
        _checks.hyperparameter(name, rate, accepted, or_schedule=True)
    wide = jax.dtypes.canonicalize_dtype(float)

    def taken_off(count: Any) -> Any:
        first, second = (
            rate(count) if callable(rate) else rate for rate in rates.values()
        )
        known = not isinstance(first, jax.Array) and not isinstance(second, jax.Array)
        array = np.asarray if known else jnp.asarray
        return 1 - (1 - array(first, wide) * array(second, wide))

    return taken_off if any(map(callable, rates.values())) else taken_off(0)


def _over_time(rate: Any, decay: Any) -> Any:
    def schedule(count: Any) -> Any:
        now = rate(count) if callable(rate) else rate
        passed = jnp.asarray(decay, float) * jnp.asarray(count, float)
        return jnp.asarray(now, float) / (1 + passed)

    return schedule


def _clipping(
    clipvalue: Any, clipnorm: Any, global_clipnorm: Any, *, alone: bool
) -> optax.GradientTransformation | None:
    """Returns the clipping that Keras does first, or None for none.

    Of the two norms one at most can be clipped, and where `alone` no elements then.
    """

    def clipped(g: Any, params: Any) -> jax.Array:
        del params
        norm = jnp.linalg.norm(jnp.ravel(g))
        return g * (clipnorm / jnp.maximum(norm, clipnorm)).astype(g.dtype)

    steps = {}
    for name, limit, make in (
        ("clipvalue", clipvalue, optax.clip),
        ("clipnorm", clipnorm, lambda _: optax.stateless_with_tree_map(clipped)),
        ("global_clipnorm", global_clipnorm, optax.clip_by_global_norm),
    ):
        if limit is not None:
            _checks.hyperparameter(name, limit, "finite and greater than 0")
            steps[name] = make(limit)
    exclusive = [f"`{name}`" for name in steps if alone or name != "clipvalue"]
    if len(exclusive) > 1:
        raise ValueError(
            f"Keras takes one of {' and '.join(exclusive)} at most: keep one."
        )
    return optax.chain(*steps.values()) if steps else None
