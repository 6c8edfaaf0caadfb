"""The weight decay of `rmsprop`: where it acts, how strongly, and on which leaves."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _chain, _checks, _leaves, _matching

MODES = ("coupled", "decoupled", "independent")


def element(
    learning_rate: Any, weight_decay: Any, mode: Any, mask: Any
) -> optax.GradientTransformation | None:
    """Returns the element of the chain that decays, or None where nothing does."""
    rate = _rate(learning_rate, weight_decay, mode)
    _check_mask(mask)
    if weight_decay is None:
        for name, is_set in (
            ("weight_decay_mask", mask is not None),
            ("weight_decay_mode", mode != "coupled"),
        ):
            if is_set:
                raise ValueError(f"`{name}` needs `weight_decay`, which is not set.")
    if rate is None:
        return None
    # Off the parameters, so along with updates that a later element negates.
    along = mode == "coupled" or learning_rate is None
    return _add_params(_chain.scale(rate, 1 if along else -1), mask)


def _rate(learning_rate: Any, weight_decay: Any, mode: str) -> Any:
    """Returns what the parameters are multiplied with, or None for no weight decay."""
    if mode not in MODES:
        names = ", ".join(repr(name) for name in MODES)
        raise ValueError(f"`weight_decay_mode` must be one of {names}, got {mode!r}.")
    if weight_decay is None:
        return None
    _checks.hyperparameter(
        "weight_decay", weight_decay, "finite and at least 0", or_schedule=True
    )
    if _checks.is_zero(weight_decay):
        return None
    if mode != "decoupled" or learning_rate is None:
        return weight_decay
    rates = (learning_rate, weight_decay)

    def product(count: Any) -> Any:
        factors = [rate(count) if callable(rate) else rate for rate in rates]
        if not all(isinstance(factor, int | float) for factor in factors):
            factors = [jnp.asarray(factor, float) for factor in factors]
        return factors[0] * factors[1]

    return product if any(map(callable, rates)) else product(0)


def _add_params(
    scale: optax.GradientTransformation, mask: Any
) -> optax.GradientTransformation:
    """Adds the parameters that the mask chooses, scaled, to the updates."""

    def init(params: optax.Params) -> optax.OptState:
        if jax.tree.leaves(params):  # not where `tree_map_params` asks what is whose
            _chosen(mask, params)
        return scale.init(params)

    def like_update(u: jax.Array, p: Any) -> Any:
        if p is None:
            return None
        return jnp.asarray(p, _leaves.like(p, _leaves.arithmetic_dtype(u)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        decaying = _chain.mapped(like_update, updates, _chosen(mask, params))
        scaled, state = scale.update(decaying, state)

        def plus(path: Any, u: jax.Array, p: Any, s: Any) -> tuple[Any, Any]:
            del p
            if s is None:
                return u, s
            _leaves.same_kind(path, "gradient", u, "parameter", s)
            if s.shape != u.shape:
                raise _matching.too_large(path, s.shape, u.shape)
            return u.astype(s.dtype) + s, s

        return _leaves.each(plus, updates, None, scaled)[0], state

    return optax.GradientTransformation(init, update)


def _check_mask(mask: Any) -> None:
    """Raises unless a mask is a tree of booleans, a function of one tree, or None."""
    if callable(mask):
        try:
            inspect.signature(mask).bind(None)
        except TypeError as error:
            raise ValueError(
                "`weight_decay_mask` is a function, but does not take the parameters "
                f"alone: {error}."
            ) from error
        except ValueError:  # some functions have no signature
            return
    elif not all(isinstance(on, bool | np.bool_) for on in jax.tree.leaves(mask)):
        raise ValueError(
            "`weight_decay_mask` must be a tree of booleans like the parameters, or a "
            f"function that returns one, got {mask!r}."
        )


def _chosen(mask: Any, params: Any) -> Any:
    """Returns the parameters with None for those that a mask leaves out."""
    if mask is None:
        return params
    chosen = mask(params) if callable(mask) else mask
    try:
        if not all(isinstance(on, bool | np.bool_) for on in jax.tree.leaves(chosen)):
            raise ValueError(f"got {chosen!r}")
        return jax.tree.map(
            lambda on, part: part if on else jax.tree.map(lambda _: None, part),
            chosen,
            params,
        )
    except ValueError as error:
        raise ValueError(
            "`weight_decay_mask` must be a tree of booleans like the parameters, or a "
            f"function that returns one: {error}"
        ) from error
