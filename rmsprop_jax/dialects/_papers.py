"""The dialects that papers use and no framework ships."""

import inspect
from typing import Any, Unpack

import numpy as np
import optax

from ._dialect import Options, dialect, unless_zero
from ._tensorflow import tf1

Rate = optax.ScalarOrSchedule


@dialect({})
def graves(
    learning_rate: Rate = 1e-4,
    decay: float = 0.95,
    momentum: float = 0.9,
    eps: float = 1e-4,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Graves's RMSProp of 2013, the first centred one, made for LSTMs.

    ::

        v ← decay·v + (1 − decay)·g², from v = 0
        m ← decay·m + (1 − decay)·g, from m = 0
        u = g / √(v − m² + eps)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    Args:
      learning_rate: a number or an Optax schedule.
      decay: in [0, 1).
      momentum: in [0, 1].
      eps: at least 0, in units of the squared gradient.
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
      >>> tx = dialects.graves()
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.6f}")  # 1 / √(0.05 − 0.05² + 0.0001) times 0.0001
      -0.000458

    References:
      Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations 38
      to 45 (https://arxiv.org/abs/1308.0850).
    """
    return dict(
        learning_rate=learning_rate,
        decay=decay,
        eps=eps,
        centered=True,
        momentum=unless_zero(momentum),
        **options,
    )


@dialect({})
def hinton(
    learning_rate: Rate = 1e-3,
    decay: float = 0.9,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """RMSProp as Hinton's lecture has it: no ε, no momentum.

    ::

        v ← decay·v + (1 − decay)·g², from v = 0
        u = g / √(v + 0)
        θ ← θ − learning_rate·u

    Args:
      learning_rate: a number or an Optax schedule. The lecture names none.
      decay: in [0, 1).
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
      >>> tx = dialects.hinton(learning_rate=0.01)
      >>> grads = jnp.asarray([0.0, 1e-9, 1.0])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> print(updates.round(4))
      [-0.     -0.0316 -0.0316]

    References:
      Tieleman and Hinton, Lecture 6.5 - rmsprop: Divide the gradient by a running
      average of its recent magnitude, COURSERA: Neural Networks for Machine Learning,
      2012, slide 29.
    """
    return dict(learning_rate=learning_rate, decay=decay, eps=0.0, **options)


@dialect({})
def nature_dqn(
    learning_rate: Rate = 0.00025,
    decay: float = 0.95,
    eps: float = 0.01,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """The RMSProp of the DQN that played Atari in Nature: centred, no momentum.

    ::

        v ← decay·v + (1 − decay)·g², from v = 0
        m ← decay·m + (1 − decay)·g, from m = 0
        u = g / √(v − m² + eps)
        θ ← θ − learning_rate·u

    Args:
      learning_rate: a number or an Optax schedule.
      decay: in [0, 1); the paper's "gradient momentum" and "squared gradient momentum".
      eps: at least 0, in units of the squared gradient; "min squared gradient".
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
      >>> tx = dialects.nature_dqn()
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.6f}")  # 1 / √(0.05 − 0.05² + 0.01) times 0.00025
      -0.001043

    References:
      Mnih et al., Human-level control through deep reinforcement learning, Nature 518,
      2015, extended data table 1 (https://doi.org/10.1038/nature14236), and its code.
    """
    return dict(
        learning_rate=learning_rate, decay=decay, eps=eps, centered=True, **options
    )


@dialect({}, python_float=np.float32)
def impala(
    learning_rate: Rate = 0.00048,
    decay: float = 0.99,
    momentum: float = 0.0,
    epsilon: float = 0.1,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """The RMSProp of IMPALA: TF1's, with a large ε.

    ::

        v ← decay·v + (1 − decay)·g², from v = 1
        u = g / √(v + epsilon)
        b ← momentum·b + learning_rate·u
        θ ← θ − b

    Args:
      learning_rate: a number or an Optax schedule.
      decay: in [0, 1).
      momentum: in [0, 1]; 0 keeps no buffer.
      epsilon: at least 0, in units of the squared gradient.
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
      >>> tx = dialects.impala()
      >>> updates, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
      >>> print(f"{updates[0]:.6f}")  # from v = 1: 1 / √1.1 times 0.00048
      -0.000458

    References:
      Espeholt et al., IMPALA, 2018 (https://arxiv.org/abs/1802.01561), and the flags of
      experiment.py in https://github.com/google-deepmind/scalable_agent.
    """
    return inspect.unwrap(tf1)(learning_rate, decay, momentum, epsilon, **options)
