"""Decay schedules: how much of the moving average each step keeps.

A schedule is any function of the number of updates done (an int32 scalar, 0 at the
first update, as everywhere in Optax) that returns ρ_t in [0, 1), or `Weights`. Where
ρ_1 = 0 the average forgets its initial value; bias correction is no more than that.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _checks

__all__ = ["Weights", "constant", "debiased", "power"]

Schedule = Callable[[Any], Any]

_TINY = 1e-37  # has a logarithm


class Weights(NamedTuple):
    """What a schedule may return in the place of ρ_t: both weights of a step.

    Attributes:
      keep: what the old average is multiplied with.
      take: what the new value is multiplied with. None is 1 - keep, taken after `keep`
        was rounded to the dtype of the arithmetic; of a bare ρ_t it is taken before.
    """

    keep: Any
    take: Any = None


class Constant(NamedTuple):
    """A schedule that says the same at every step, so that no step is counted."""

    value: Any

    def __call__(self, count: Any) -> Any:
        return self.value


def constant(value: jax.typing.ArrayLike) -> Constant:
    """The same decay at every step, ρ_t = ρ.

    Args:
      value: the decay ρ, a number in [0, 1).

    Returns:
      The schedule, a function of the step count.

    Raises:
      ValueError: if `value` is outside [0, 1).

    Example:
      >>> from rmsprop_jax import decay
      >>> decay.constant(0.9)(7)
      0.9
    """
    _checks.hyperparameter("decay", value, "in [0, 1)")
    # At least float32, or 1 - rho is rounded to 8 bits.
    return Constant(_checks.inside(0, 1, _checks.at_least_float32(value)))


def debiased(value: jax.typing.ArrayLike) -> Schedule:
    """The decay that makes the moving average unbiased from the first step on.

    ::

        ρ_t = ρ·(1 − ρ^(t−1)) / (1 − ρ^t)

    A recursion with this decay is the average of the gradients seen, with weights
    proportional to ρ^(t−s): what bias correction computes, with nothing left of the
    initial value, whatever it was, because ρ_1 = 0.

    Args:
      value: the decay ρ that it tends to, a number in [0, 1).

    Returns:
      The schedule, a function of the step count t - 1.

    Raises:
      ValueError: if `value` is outside [0, 1).

    Example:
      >>> from rmsprop_jax import decay
      >>> [round(float(decay.debiased(0.9)(count)), 4) for count in (0, 1, 2, 1000)]
      [0.0, 0.4737, 0.631, 0.9]

    References:
      Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, section 3
      (https://arxiv.org/abs/1412.6980).
    """
    _checks.hyperparameter("decay", value, "in [0, 1)")
    value = _checks.inside(0, 1, value)

    def schedule(count: Any) -> jax.Array:
        done = jnp.asarray(count, float)
        # expm1, because 1 - 0.999 in float32 has lost four digits; and the logarithm
        # in float64 where it can be, because float32 makes 1 of 1 - 1e-8.
        if isinstance(value, jax.Array):
            below_one = 1 - float(jnp.finfo(done.dtype).epsneg)
            log = jnp.log(jnp.clip(jnp.asarray(value, done.dtype), _TINY, below_one))
        else:
            exact = np.maximum(np.asarray(value, np.float64), _TINY)
            log = jnp.asarray(np.log(exact), done.dtype)
        rho = jnp.asarray(value, done.dtype)
        return rho * jnp.expm1(done * log) / jnp.expm1((done + 1) * log)

    return schedule


def power(exponent: jax.typing.ArrayLike = 0.8) -> Schedule:
    """Adafactor's decay, an average over a window that grows with the run.

    ::

        ρ_t = 1 − t^(−exponent)

    Args:
      exponent: how fast the window grows, greater than 0; 1 averages over all steps.

    Returns:
      The schedule, a function of the step count t - 1.

    Raises:
      ValueError: if `exponent` is not greater than 0.

    Example:
      >>> from rmsprop_jax import decay
      >>> [round(float(decay.power(0.8)(count)), 4) for count in (0, 1, 1000)]
      [0.0, 0.4257, 0.996]

    References:
      Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost,
      2018, section 7.2 (https://arxiv.org/abs/1804.04235).
    """
    _checks.hyperparameter("exponent", exponent, "finite and greater than 0")

    def schedule(count: Any) -> jax.Array:
        step = jnp.asarray(count, float) + 1
        return -jnp.expm1(-jnp.asarray(exponent, step.dtype) * jnp.log(step))

    return schedule


def as_schedule(decay: Any, bias_correction: Any) -> Any:
    """Returns the schedule, or the constant, that these two arguments mean."""
    if isinstance(decay, Constant):
        decay = decay.value

    def rho(value: Any) -> Any:
        if not isinstance(value, Weights):
            return value
        return value.keep if value.take is None else 1 - value.take

    checked = rho(decay)
    if callable(decay):
        checked = functools.wraps(decay)(lambda count: rho(decay(count)))
    _checks.hyperparameter("decay", checked, "in [0, 1)", or_schedule=True)
    _checks.flag("bias_correction", bias_correction)
    if not callable(decay) and not isinstance(decay, Weights):
        return debiased(decay) if bias_correction else constant(decay).value
    if bias_correction:
        raise ValueError(
            "`bias_correction` needs `decay` to be a number, got a schedule: bias "
            "correction is itself the schedule rmsprop_jax.decay.debiased(number)."
        )
    if isinstance(decay, Weights):
        return _inside(decay)
    return lambda count: _inside(decay(count))


def _inside(value: Any) -> Any:
    """Returns a decay of a later step, or NaN where it has left [0, 1]."""
    if not isinstance(value, Weights):
        return _checks.inside(0, 1, value)
    weights = (None if x is None else _checks.inside(0, 1, x) for x in value)
    return Weights(*weights)
