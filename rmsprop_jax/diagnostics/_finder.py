"""A learning-rate finder: all rates in one compiled program."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks, _matching


class Sweep(NamedTuple):
    """What `sweep_rates` found.

    Attributes:
      rates: [rates], in the order that they came in.
      losses: [rates, steps], each before the update with that batch.
      untrained: [steps], those of the initial parameters.
      final: [rates], the mean loss over the last tenth of the steps, one at least.
      diverged: [rates], whether a loss was not finite, or `final` above that of the
        initial parameters on the same batches.
      suggestion: the rate with the lowest `final` of those that did not diverge; NaN if
        all did.
    """

    rates: np.ndarray
    losses: np.ndarray
    untrained: np.ndarray
    final: np.ndarray
    diverged: np.ndarray
    suggestion: float


def sweep_rates(
    loss: Callable[[Any, Any], jax.Array],
    params: optax.Params,
    make_tx: Callable[[Any], optax.GradientTransformation],
    rates: Sequence[float],
    batches: Any,
    *,
    at_once: int | None = None,
) -> Sweep:
    """Trains from the same parameters on the same batches at every learning rate.

    All is one compiled program. It suggests the rate with the lowest mean loss over
    the last tenth of the steps, of those that did not diverge. Of a short run that is
    a rate for the start: take the largest one that is nearly as good if a schedule will
    lower it.

    Args:
      loss: a function of parameters and a batch that returns a scalar.
      params: the initial parameters.
      make_tx: makes the optimizer of a learning rate, such as `rmsprop`; the rate is
        traced.
      rates: the learning rates, greater than 0.
      batches: the batches, a tree of arrays [steps, ...]: for the same batch at every
        step, ``jnp.broadcast_to(x, (steps, *x.shape))``.
      at_once: how many rates to train side by side, all by default; with 1 the program
        needs the memory of one run.

    Returns:
      A `Sweep`.

    Raises:
      ValueError: for a rate that is not positive in float32, no rates or no batches, a
        loss that is no scalar, and an `at_once` below 1.
      TypeError: for an `at_once` that is not an integer, rates that are no numbers, and
        a `make_tx` that is a transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import diagnostics, rmsprop
      >>> x = jnp.broadcast_to(jnp.arange(4.0), (60, 4))  # the same batch in 60 steps
      >>> found = diagnostics.sweep_rates(
      ...     lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.zeros(()), rmsprop,
      ...     [1e-3, 1e-2, 1e-1, 1e3], x)
      >>> found.suggestion, found.diverged.tolist()
      (0.1, [False, False, False, True])
    """
    rates = _checked(rates)
    if not callable(make_tx):
        raise TypeError(
            "`make_tx` must be the function that makes the optimizer of a rate, such "
            f"as `rmsprop`, got {type(make_tx).__name__}."
        )
    _checks.instance("loss", loss, Callable, "a function of parameters and a batch")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if not rates or len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "`rates` and `batches` must not be empty, and every array of `batches` "
            f"must have the steps on its first axis: got {len(rates)} rates, first "
            f"axes {sorted(lengths)}."
        )
    if at_once is not None:
        at_once = _checks.integer("at_once", at_once, 1, sys.maxsize)

    def train(params: Any, batches: Any, rate: jax.Array) -> jax.Array:
        tx = make_tx(rate)
        _checks.transformation("make_tx(rate)", tx)

        def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(_conjugate(gradients), state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    _matching.array_leaves("params", params)
    params = jax.tree.map(jnp.asarray, params)
    first = jax.eval_shape(
        lambda batches: jax.tree.map(lambda x: x[0], batches), batches
    )
    value = jax.eval_shape(loss, params, first)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"`loss` must return one scalar, got {value}.")

    @jax.jit
    def run(params: Any, batches: Any, rates: jax.Array) -> Any:
        untrained = jax.lax.map(lambda batch: loss(params, batch), batches)
        return untrained, jax.lax.map(
            lambda rate: train(params, batches, rate),
            rates,
            batch_size=min(at_once or len(rates), len(rates)),
        )

    found = run(params, batches, jnp.asarray(rates, jnp.float32))
    untrained, losses = (np.asarray(x, float) for x in found)
    return _judged(np.asarray(rates), losses, untrained)


def _checked(rates: Any) -> list[float]:
    """Returns the learning rates, which float32 has to hold."""
    try:
        if any(np.asarray(x).dtype.kind in "bSU" for x in jax.tree.leaves(rates)):
            raise TypeError  # NumPy would read them
        rates = np.atleast_1d(np.asarray(rates, float)).tolist()
    except (TypeError, ValueError) as error:
        raise TypeError(f"`rates` must be numbers, got {rates!r}.") from error
    least, most = (
        float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max)
    )
    for rate in rates:
        _checks.number("rates", rate, "finite and greater than 0")
        if not least <= rate <= most:
            raise ValueError(
                f"`rates` must be from {least:.2g} to {most:.2g}, which float32 holds, "
                f"got {rate}."
            )
    return rates


def best_rate(losses: np.ndarray) -> int:
    """Returns the index of the lowest mean of a loss [rates, runs or steps].

    A loss that is not finite counts as infinite: a run that diverged does not win.
    """
    losses = np.asarray(losses)
    if losses.ndim != 2 or not losses.size or losses.dtype.kind not in "iuf":
        raise ValueError(
            "`losses` must be an array [rates, runs or steps] of one number at least, "
            f"got {losses.dtype} of shape {losses.shape}."
        )
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return int(np.argmin(finite.mean(axis=1)))


def _judged(rates: np.ndarray, losses: np.ndarray, untrained: np.ndarray) -> Sweep:
    with np.errstate(invalid="ignore", over="ignore"):
        final = tail(losses)
        diverged = ~np.isfinite(losses).all(axis=1) | ~(final <= tail(untrained[None]))
    suggestion = np.nan
    if not diverged.all():
        candidates = np.where(diverged, np.inf, final)
        suggestion = float(rates[best_rate(candidates[:, None])])
    return Sweep(rates, losses, untrained, final, diverged, suggestion)


def tail(losses: np.ndarray) -> np.ndarray:
    """Returns the means over the last tenth, of one step at least."""
    with np.errstate(invalid="ignore", over="ignore"):
        return losses[:, -max(1, losses.shape[1] // 10) :].mean(axis=1)


def _conjugate(gradients: Any) -> Any:
    """JAX's gradients of complex parameters point the other way in their phase."""
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, gradients)
