"""The dialects of torch and of what looks like it."""

import warnings
from typing import Any, Unpack

import optax
from jax.core import Tracer

from .. import _checks
from ._dialect import Options, dialect, is_zero, unless_zero

Rate = optax.ScalarOrSchedule


@dialect({"nesterov": "torch.optim.RMSprop has no Nesterov momentum"})
def torch(
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: Rate = 0,
    momentum: float = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`torch.optim.RMSprop`: ε outside the root, momentum of directions.

    ::

        g ← g + weight_decay·θ
        v ← alpha·v + (1 − alpha)·g², from v = 0
        m ← alpha·m + (1 − alpha)·g, from m = 0  (where centered: v − m² for v below)
        u = g / (√v + eps)
        b ← momentum·b + u
        θ ← θ − lr·b

    Args:
      lr: the learning rate, a number or an Optax schedule.
      alpha: the decay, in [0, 1).
      eps: at least 0, in units of the gradient.
      weight_decay: coupled (L2): added to the gradient, times the parameter.
      momentum: in [0, 1]; 0 keeps no buffer.
      centered: whether to subtract the squared mean.
      capturable, foreach, differentiable: torch's implementation; no effect here.
      maximize: whether to ascend; the weight decay is still towards zero.
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
      >>> tx = dialects.torch(lr=1e-2, alpha=0.99)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")  # from v = 0: lr / √(1 − alpha)
      -0.1000

    References:
      torch.optim.RMSprop in PyTorch 2.13.0.
    """
    del capturable, foreach, differentiable
    return dict(
        learning_rate=lr,
        decay=alpha,
        eps=eps,
        eps_in_sqrt=False,
        centered=centered,
        momentum=unless_zero(momentum),
        learning_rate_in_momentum=False,
        weight_decay=weight_decay,
        maximize=maximize,
        **options,
    )


@dialect({"nesterov": "Stable-Baselines3's RMSpropTFLike has no Nesterov momentum"})
def sb3(
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: Rate = 0,
    momentum: float = 0,
    centered: bool = False,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`RMSpropTFLike` of Stable-Baselines3: torch's, but v starts at 1, ε in the root.

    ::

        g ← g + weight_decay·θ
        v ← alpha·v + (1 − alpha)·g², from v = 1
        m ← alpha·m + (1 − alpha)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + eps)
        b ← momentum·b + u
        θ ← θ − lr·b

    Stable-Baselines3's A2C uses `torch.optim.RMSprop` unless it is told otherwise, by
    `policy_kwargs=dict(optimizer_class=RMSpropTFLike)`: that is
    dialects.torch(7e-4, alpha=0.99, eps=1e-5).

    Args:
      lr: the learning rate, a number or an Optax schedule.
      alpha: the decay, in [0, 1).
      eps: at least 0, in units of the squared gradient.
      weight_decay: coupled (L2): added to the gradient, times the parameter.
      momentum: in [0, 1]; 0 keeps no buffer.
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
      >>> tx = dialects.sb3(7e-4, alpha=0.99, eps=1e-5)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")  # from v = 1: the first step is the learning rate
      -0.0007

    References:
      stable_baselines3.common.sb2_compat.rmsprop_tf_like in Stable-Baselines3 2.9.2.
    """
    return dict(
        learning_rate=lr,
        decay=alpha,
        eps=eps,
        initial_scale=1.0,
        centered=centered,
        momentum=unless_zero(momentum),
        learning_rate_in_momentum=False,
        weight_decay=weight_decay,
        **options,
    )


_NO_BUFFER = (
    "bitsandbytes' RMSprop accepts `momentum` and ignores it (0.50.2), and so does "
    "this dialect: use dialects.torch for momentum"
)


@dialect({"nesterov": "bitsandbytes' RMSprop has no Nesterov momentum"})
def bitsandbytes(
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: Rate = 0,
    momentum: float = 0,
    centered: bool = False,
    optim_bits: int = 32,
    args: Any = None,
    min_8bit_size: int = 4096,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`bitsandbytes.optim.RMSprop` with its 32-bit state: ε outside, no momentum.

    ::

        g ← g + weight_decay·θ
        v ← alpha·v + (1 − alpha)·g², from v = 0
        u = g / (√v + eps)
        θ ← θ − lr·u

    It takes `momentum` as bitsandbytes does, and ignores it as bitsandbytes does, with
    a warning.

    Args:
      lr: the learning rate, a number or an Optax schedule.
      alpha: the decay, in (0, 1).
      eps: at least 0, in units of the gradient.
      weight_decay: coupled (L2): added to the gradient, times the parameter.
      momentum: ignored.
      centered: has to be False.
      optim_bits: has to be 32.
      args, min_8bit_size: for 8-bit state; no effect here.
      skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
        weight_decay_mask: as for `rmsprop`, where they apply.

    Returns:
      The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

    Raises:
      ValueError: for a number out of its range.
      TypeError: for an argument that it does not have, or of the wrong kind.
      NotImplementedError: for centered=True, alpha=0 (bitsandbytes refuses these, too)
        and optim_bits=8.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> tx = dialects.bitsandbytes(lr=1e-2, alpha=0.99)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")
      -0.1000

    References:
      bitsandbytes.optim.RMSprop in bitsandbytes 0.50.2.
    """
    del args, min_8bit_size
    if is_zero(alpha):
        raise NotImplementedError("RMSprop with `alpha`==0.0 is not supported!")
    if centered:
        raise NotImplementedError(
            "Centered RMSprop is not supported! bitsandbytes' kernels keep no mean "
            "gradient. Leave `centered` out, or use dialects.torch."
        )
    if optim_bits != 32:
        raise NotImplementedError(
            f"`optim_bits` is {optim_bits}; this dialect is bitsandbytes' 32-bit rule."
        )
    _checks.number("momentum", momentum, "in [0, 1]")
    if not isinstance(momentum, Tracer) and momentum != 0:
        warnings.warn(_NO_BUFFER, stacklevel=4)
    return dict(
        learning_rate=lr,
        decay=alpha,
        eps=eps,
        eps_in_sqrt=False,
        weight_decay=weight_decay,
        **options,
    )


@dialect(
    {
        name: f"mlx.optimizers.RMSprop has no {what}"
        for name, what in (
            ("momentum", "momentum"),
            ("nesterov", "momentum"),
            ("centered", "centred variant"),
            ("weight_decay", "weight decay: it has AdamW for that"),
        )
    }
)
def mlx(
    learning_rate: Rate,
    alpha: float = 0.99,
    eps: float = 1e-8,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`mlx.optimizers.RMSprop`: ε outside the root, and nothing else.

    ::

        v ← alpha·v + (1 − alpha)·g², from v = 0
        u = g / (√v + eps)
        θ ← θ − learning_rate·u

    Args:
      learning_rate: a number or an Optax schedule.
      alpha: the decay, in [0, 1).
      eps: greater than 0, in units of the gradient.
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
      >>> tx = dialects.mlx(1e-2)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.4f}")
      -0.1000

    References:
      mlx.optimizers.RMSprop in MLX 0.32.4.
    """
    _checks.hyperparameter("eps", eps, "finite and greater than 0")
    return dict(
        learning_rate=learning_rate, decay=alpha, eps=eps, eps_in_sqrt=False, **options
    )
