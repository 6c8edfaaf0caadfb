"""Adam's state as one of RMSProp, and back.

Adam's `nu` is the average of squared gradients, biased towards its initial zero, and
its `mu` one of gradients. A momentum of RMSProp gathers normalised gradients instead,
so that mu / (1 - b1) is it before the division by √nu.
"""

import warnings
from typing import Any

import jax
import numpy as np
import optax

from ._record import debiasing, placed


def is_adam(node: Any) -> bool:
    """Whether a node is the state of Adam."""
    return isinstance(node, optax.ScaleByAdamState)


def has_adam(state: Any) -> bool:
    """Whether Adam's state is in one."""
    return any(map(is_adam, jax.tree.leaves(state, is_leaf=is_adam)))


def as_rms(state: Any, decay: float, b1: float | None, rate: float | None) -> Any:
    """Returns a state with RMSProp's, and momentum, in the place of Adam's.

    Args:
      state: the state; others in it stay.
      decay: Adam's b2.
      b1: Adam's, if its mean becomes a momentum.
      rate: the learning rate of a momentum that gathers steps; None of one that
        gathers directions.
    """

    def replaced(node: Any) -> Any:
        if not is_adam(node):
            return node
        factor = debiasing(decay, int(node.count))
        nu = jax.tree.map(lambda x: (_wide(x) / factor).astype(_real(x)), node.nu)
        average = optax.ScaleByRmsState(nu)
        if b1 is None:
            return (average,)

        scale = (1 if rate is None else -rate) / (1 - b1)

        def buffer(mu: Any, nu: Any) -> Any:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(nu > 0, scale * _wide(mu) / np.sqrt(_wide(nu)), 0)

        trace = optax.TraceState(jax.tree.map(buffer, node.mu, nu))
        return _chain(average, trace, rate is not None)

    if b1 is None:
        warnings.warn(
            "Adam's mu, its average of gradients, is left out: pass its `b1` to make a "
            "momentum of it.",
            stacklevel=3,
        )
    return jax.tree.map(replaced, state, is_leaf=is_adam)


def standing_in(fresh: Any, b1: float | None, steps: bool) -> Any:
    """Returns a new state of Adam with one of RMSProp in its place, to be filled."""

    def replaced(node: Any) -> Any:
        if not is_adam(node):
            return node
        average = optax.ScaleByRmsState(node.nu)
        if b1 is None:
            return (average,)
        return _chain(average, optax.TraceState(node.mu), steps)

    return jax.tree.map(replaced, fresh, is_leaf=is_adam)


def back(
    filled: Any, fresh: Any, step: int, decay: float, b1: float | None, rate: Any
) -> Any:
    """Returns what `standing_in` made and `fill` filled, as Adam's state again."""
    nodes, treedef = jax.tree.flatten(fresh, is_leaf=is_adam)

    def restored(node: Any, found: Any) -> Any:
        if not is_adam(node):
            return found
        nu, factor = found[0].nu, debiasing(decay, step) if step else 0.0
        mu = node.mu
        if b1 is not None:
            scale = (1 - b1) / (1 if rate is None else -rate)
            mu = jax.tree.map(
                lambda m, nu, like: placed(scale * _wide(m) * _root(nu), like),
                found[-1].trace,
                nu,
                mu,
            )
        return optax.ScaleByAdamState(
            count=placed(step, node.count),
            mu=mu,
            nu=jax.tree.map(lambda x: placed(_wide(x) * factor, x), nu),
        )

    if b1 is None:
        warnings.warn(
            "Adam's mu, its average of gradients, starts at zero: pass its `b1` to "
            "make it of the momentum.",
            stacklevel=3,
        )
    pairs = zip(nodes, treedef.flatten_up_to(filled), strict=True)
    return treedef.unflatten([restored(*pair) for pair in pairs])


def _chain(average: Any, trace: Any, steps: bool) -> tuple[Any, ...]:
    """Returns both in the places of optax.rmsprop's chain, the rate between or not."""
    return (average, *([optax.EmptyState()] if steps else []), trace)


def _wide(x: Any) -> Any:
    return np.asarray(x).astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _root(nu: Any) -> Any:
    return np.sqrt(_wide(nu).real)


def _real(x: Any) -> Any:
    return np.float64 if np.asarray(x).dtype == np.float64 else np.float32
