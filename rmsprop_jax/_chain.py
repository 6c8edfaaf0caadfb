"""The elements that `rmsprop` chains around `scale_by_rms`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _checks, storage


def scale(rate: Any, sign: int) -> optax.GradientTransformation:
    """Multiplies by a number or a schedule, in the dtype of what it multiplies."""
    if rate is None:
        return optax.identity()
    if callable(rate):
        schedule: Callable[..., Any] = rate
        return optax.scale_by_schedule(lambda count: sign * schedule(count))
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u: jnp.asarray(sign * rate, u.dtype) * u, updates
        )
    )


def momentum(
    momentum: Any, nesterov: Any, accumulator_dtype: Any
) -> optax.GradientTransformation:
    """`optax.trace` with a buffer that is kept as `storage` keeps accumulators."""
    _checks.flag("nesterov", nesterov)
    dtype = storage.accumulator_dtype("accumulator_dtype", accumulator_dtype)
    if momentum is None:
        for name, is_set in (
            ("nesterov", nesterov),
            ("accumulator_dtype", dtype is not None),
        ):
            if is_set:
                raise ValueError(f"`{name}` needs `momentum`, which is None.")
        return optax.identity()
    _checks.number("momentum", momentum, "in [0, 1]")

    def init(params: optax.Params) -> optax.TraceState:
        zeros = partial(storage.full, value=0, dtype=dtype)
        return optax.TraceState(trace=jax.tree.map(zeros, params))

    def accumulate(u: jax.Array, b: jax.Array) -> jax.Array:
        dtype = storage.like(u, storage.arithmetic_dtype(u, b))
        b = storage.read(b, storage.arithmetic_dtype(u, b))
        return u.astype(dtype) + jnp.asarray(momentum, dtype) * b

    def update(
        updates: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, optax.TraceState]:
        del params
        buffer = _map(accumulate, updates, state.trace)
        steps = _map(accumulate, updates, buffer) if nesterov else buffer
        trace = jax.tree.map(
            lambda b, stored: stored if b is None else storage.write(b, stored),
            buffer,
            state.trace,
            is_leaf=_is_none,
        )
        return steps, optax.TraceState(trace=trace)

    return optax.GradientTransformation(init, update)


def add_params(
    scale: optax.GradientTransformation, mask: Any
) -> optax.GradientTransformation:
    """Adds the parameters, scaled, to the updates."""

    def update(
        updates: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, Any]:
        scaled, state = scale.update(params, state)
        return _map(jnp.add, updates, scaled), state

    add = optax.GradientTransformation(scale.init, update)
    return add if mask is None else optax.masked(add, mask)


def in_wide_dtype(
    inner: optax.GradientTransformation, maximize: bool, needs_params: bool
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` in float32 or wider, then returns to the dtypes of the gradients.

    So no step of the chain rounds to a narrow dtype or promotes its state, whatever
    the dtypes of parameters, gradients and hyperparameters are.
    """

    def widened(g: Any, x: Any) -> jax.Array:
        return jnp.asarray(x, storage.like(g, storage.arithmetic_dtype(g)))

    def init(params: optax.Params) -> optax.OptState:
        return storage.placed(inner.init(params), params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        _checks.floating_leaves("gradients", updates)
        if not needs_params:
            params = None
        elif params is None:
            raise ValueError(
                "`weight_decay` needs the parameters: call update(gradients, state, "
                "params)."
            )
        else:
            _checks.same_tree("gradients", updates, "params", params)
            params = _map(widened, updates, params)
        wide = _map(lambda g: -widened(g, g) if maximize else widened(g, g), updates)
        steps, state = inner.update(wide, state, params)
        return _map(lambda g, u: u.astype(jnp.result_type(g)), updates, steps), state

    return optax.GradientTransformationExtraArgs(init, update)


def _map(function: Callable[..., Any], updates: Any, *rest: Any) -> Any:
    """`jax.tree.map` in which None, a parameter without a gradient, stays None."""
    return jax.tree.map(
        lambda u, *others: None if u is None else function(u, *others),
        updates,
        *rest,
        is_leaf=_is_none,
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None
