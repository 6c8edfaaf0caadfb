"""`scale_by_rms`: what `_rms` does, documented."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from ._rms import rms
from ._signature import factory


@partial(factory, like=optax.scale_by_rms)
def scale_by_rms(
    decay: jax.typing.ArrayLike | Callable[[Any], Any] = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    skip_nonfinite: bool = False,
    nu_dtype: Any = None,
    mu_dtype: Any = None,
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformation:
    """Divides each gradient by a moving root mean square of its own history.

    ::

        δ = g − μ
        μ ← μ + (1 − ρ)·δ            (where centred; otherwise μ = 0)
        ν ← ρ·ν + (1 − ρ)·δ·(g − μ)
        u = g / √(ν + eps)           (eps_in_sqrt; otherwise g / (√ν + eps))

    The arithmetic is in float32, or in float64 where gradients or accumulators are.
    With `params` given to `update`, its updates have the wider dtype of gradient and
    parameter, otherwise the gradient's; a number that is too large for it becomes its
    largest. Complex gradients use the squared modulus. A gradient of None leaves its
    accumulators as they are, and so does an integer buffer, whose gradient is None.

    Args:
      decay: ρ, how much of the average a step keeps: a number in [0, 1), or a schedule,
        a function of the number of updates done that stays in [0, 1)
        (`rmsprop_jax.decay` has some). One that leaves [0, 1] during a run makes the
        updates NaN at once, as a negative `eps` does; 1 itself keeps all of `nu`.
      eps: keeps the division from zero, at least 0: in units of the gradient, or of
        its square where `eps_in_sqrt`.
      initial_scale: the initial value of `nu`, at least 0.
      eps_in_sqrt: whether `eps` is added inside the square root or outside.
      bias_correction: whether to use the average of the gradients seen, without the
        initial value: short for ``decay=rmsprop_jax.decay.debiased(decay)``. Optax's
        is the same for `initial_scale` 0 and, centred, from step 2 on, but up to 1e-5
        off exact arithmetic (1 - 0.999^t in float32), where this is within 5e-7.
      centered: whether to divide by the standard deviation instead. The variance is
        itself the state, so it is never negative; where it falls under the rounding
        error of |g|², as it does for constant gradients, that error stands in (so |u|
        stays below 2,900 in float32), and where ρ = 0 forgets all but one gradient,
        which has no variance, |g|² itself does.
      skip_nonfinite: whether an element whose gradient is not finite, or overflows
        when squared, counts as no information: its accumulators stay, its update is 0.
        Otherwise NaN makes that element's `nu` NaN for good, and what is too large to
        square all but stops the element until the average has forgotten it.
      nu_dtype: the dtype of `nu`: float32, float64, bfloat16, uint16, uint8, or
        `storage.uint8` with another range; by default float32, and float64 for float64
        and complex128 parameters. What is narrower is rounded without bias, after the
        division. uint16 and uint8 are codes, which `storage.decode` reads.
      mu_dtype: the dtype of `mu`: float32, float64 or bfloat16; complex, and so at
        least complex64, for complex parameters.
      seed: an integer that tells apart the random bits of runs, or of the layers of a
        `jax.lax.scan`; may be traced. Members of a `jax.vmap` differ without it.

    Returns:
      An `optax.GradientTransformation`. Its state is Optax's `ScaleByRmsState` where
      the options are ones that Optax has and no step has to be counted, otherwise an
      `RmsState`. Its updates are not yet scaled by a learning rate, and not negated.

    Raises:
      ValueError: for a number out of its range, or gradients whose tree or shapes are
        not those of the parameters. Not for an array of JAX's, which a run may change.
      TypeError: for an unknown keyword, an argument of the wrong kind, an integer
        leaf.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import scale_by_rms
      >>> tx = optax.chain(scale_by_rms(decay=0.9), optax.scale(-0.01))
      >>> params = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> state = tx.init(params)
      >>> grads = {"w": jnp.asarray([1e-2, 1.0, 1e2], jnp.bfloat16)}
      >>> updates, state = tx.update(grads, state)
      >>> print(updates["w"])  # the scale of the gradient is gone
      [-0.0314941 -0.0314941 -0.0314941]

    References:
      Tieleman and Hinton, Lecture 6.5 - rmsprop, COURSERA: Neural Networks for Machine
      Learning, 2012; centred: Graves, Generating Sequences With Recurrent Neural
      Networks, 2013 (https://arxiv.org/abs/1308.0850). The arguments are those of
      `optax.scale_by_rms` in Optax 0.2.8; those after ``*`` are ours.
    """
    return rms(
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        bias_correction,
        centered=centered,
        skip_nonfinite=skip_nonfinite,
        nu_dtype=nu_dtype,
        mu_dtype=mu_dtype,
        seed=seed,
    )
