"""The elements that `rmsprop` chains around `scale_by_rms`."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _bits, _checks, _leaves, _round_params, storage


def scale(rate: Any, sign: int) -> optax.GradientTransformation:
    """Multiplies by a number or a schedule, in the dtype of what it multiplies."""
    if rate is None:
        return optax.identity()
    if callable(rate):
        schedule: Callable[..., Any] = rate
        return optax.scale_by_schedule(lambda count: sign * schedule(count))

    def scaled(updates: optax.Updates, params: Any) -> optax.Updates:
        rates = cache(partial(jnp.asarray, sign * rate))
        return jax.tree.map(lambda u: rates(u.dtype) * u, updates)

    return optax.stateless(scaled)


def momentum(
    momentum: Any, nesterov: Any, accumulator_dtype: Any, seed: Any
) -> optax.GradientTransformation:
    """`optax.trace` with a buffer that is kept as `storage` keeps accumulators."""
    _checks.flag("nesterov", nesterov)
    form = storage.as_format("accumulator_dtype", accumulator_dtype)
    if momentum is None:
        for name, is_set in (
            ("nesterov", nesterov),
            ("accumulator_dtype", accumulator_dtype is not None),
        ):
            if is_set:
                raise ValueError(f"`{name}` needs `momentum`, which is None.")
        return optax.identity()
    _checks.hyperparameter("momentum", momentum, "in [0, 1]")

    def init(params: optax.Params) -> optax.TraceState:
        zeros = partial(storage.full, value=0, form=form)
        return optax.TraceState(trace=jax.tree.map(zeros, params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        step: Any = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.TraceState]:
        del params, extra_args
        _checks.state_of("momentum", state, optax.TraceState)
        rates = cache(partial(jnp.asarray, momentum))
        source = _bits.sources(updates, ("momentum",), step, seed)

        def leaf(path: Any, u: jax.Array, stored: Any) -> Any:
            dtype = _leaves.like(u, _leaves.arithmetic_dtype(u, stored))
            bits = source(path, "momentum", stored)
            return _accumulate(rates(dtype), bits, u, stored, nesterov=bool(nesterov))

        steps, trace = _leaves.each(leaf, updates, state.trace)
        return steps, optax.TraceState(trace=trace)

    return optax.GradientTransformationExtraArgs(init, update)


@partial(jax.jit, static_argnames="nesterov")
def _accumulate(
    momentum: jax.Array, bits: Any, u: Any, stored: Any, *, nesterov: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the step of one leaf, and its buffer, as it is stored."""
    _leaves.same_kind("gradient", u, "momentum", stored)
    real = _leaves.arithmetic_dtype(u, stored)

    def plus(b: jax.Array) -> jax.Array:
        return u.astype(momentum.dtype) + momentum * storage.read(b, real)

    buffer = plus(stored)
    written = storage.write(buffer, stored, bits)
    return storage.tied(plus(buffer) if nesterov else buffer, written), written


def cautious(
    inner: optax.GradientTransformationExtraArgs, sign: int
) -> optax.GradientTransformationExtraArgs:
    """Leaves out the steps of `inner` that are not along `sign` times the gradient."""

    def along(step: jax.Array, g: jax.Array) -> jax.Array:
        info = jnp.finfo(step.dtype)
        # The product is more than 0 where it is at least the smallest subnormal number,
        # as in timm; scaled to the normal ones, because XLA may flush the others to 0.
        scaled = step * jnp.asarray(2 / info.eps, step.dtype)
        agrees = sign * jnp.real(scaled * jnp.conj(g)) > info.tiny
        mask = agrees.astype(info.dtype)
        scale = mask / jnp.maximum(jnp.mean(mask), 1e-3)
        return _leaves.on_parts(lambda part: part * scale, step)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        steps, state = inner.update(updates, state, params, **extra_args)
        return _map(along, steps, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def add_params(
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
        _leaves.same_kind("parameter", p, "gradient", u)
        return jnp.asarray(p, u.dtype)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        decaying = _map(like_update, updates, _chosen(mask, params))
        scaled, state = scale.update(decaying, state)
        return _map(lambda u, s: u if s is None else u + s, updates, scaled), state

    return optax.GradientTransformation(init, update)


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


def in_wide_dtype(
    inner: optax.GradientTransformationExtraArgs,
    step_of: Callable[[Any], Any],
    maximize: bool,
    needs_params: str | None,
    rounds: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` in float32 or wider, then returns to the dtypes of the gradients.

    Its elements get the number of updates done, which `step_of` finds in the state.
    `needs_params` names the argument that needs the parameters, if one does, and
    `rounds` says whether the last element returns updates in their dtypes.

    So no step of the chain rounds to a narrow dtype or promotes its state, whatever
    the dtypes of parameters, gradients and hyperparameters are.
    """

    def widened(g: Any) -> jax.Array:
        wide = jnp.asarray(g, _leaves.like(g, _leaves.arithmetic_dtype(g)))
        return -wide if maximize else wide

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        _checks.floating_leaves("gradients", updates)
        if needs_params is None:
            params = None
        elif params is None:
            raise ValueError(
                f"`{needs_params}` needs the parameters: call update(gradients, state, "
                "params)."
            )
        else:
            _checks.same_tree("gradients", updates, "params", params)
        steps, state = inner.update(
            _map(widened, updates), state, params, step=step_of(state)
        )
        if not rounds:
            narrowed = _map(lambda g, u: u.astype(jnp.result_type(g)), updates, steps)
            return narrowed, state

        def like_its_parameter(g: Any, u: jax.Array, p: Any) -> jax.Array:
            return u if _round_params.is_rounded(p) else u.astype(jnp.result_type(g))

        return _map(like_its_parameter, updates, steps, params), state

    return optax.GradientTransformationExtraArgs(storage.placed(inner.init), update)


def _map(function: Callable[..., Any], updates: Any, *rest: Any) -> Any:
    """`jax.tree.map` in which None, a parameter without a gradient, stays None."""
    return jax.tree.map(
        lambda u, *others: None if u is None else function(u, *others),
        updates,
        *rest,
        is_leaf=_checks.is_none,
    )
