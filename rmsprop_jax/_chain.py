"""The elements that `rmsprop` chains around `scale_by_rms`."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import _bits, _checks, _leaves, _matching, _store
from ._placement import placed


def scale(name: str, rate: Any, sign: int) -> optax.GradientTransformation:
    """Multiplies by a number or a schedule, in the dtype of what it multiplies.

    The state is that of `optax.scale_by_schedule`, or empty.
    """
    if rate is None:
        return optax.identity()
    if not callable(rate):
        return optax.stateless(
            lambda updates, params: _times(name, sign, rate, updates)
        )

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, Any]:
        del params
        _matching.state_of(name, state, optax.ScaleByScheduleState)
        count = jnp.asarray(optax.safe_increment(state.count))
        scaled = _times(name, sign, rate(state.count), updates)
        return scaled, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformation(init, update)


def _times(name: str, sign: int, rate: Any, updates: optax.Updates) -> optax.Updates:
    if jnp.issubdtype(getattr(rate, "dtype", float), jnp.unsignedinteger):
        rate = rate.astype(float)  # these have no sign
    times = jnp.multiply if jnp.ndim(rate) else lax.mul  # as in `_rms._recursion`
    if times is jnp.multiply:
        for path, u in jax.tree_util.tree_leaves_with_path(updates):
            _matching.fits(path, u, name, rate)
    rates = cache(partial(jnp.asarray, sign * rate))
    return jax.tree.map(lambda u: times(rates(u.dtype), u), updates)


def momentum(
    momentum: Any, nesterov: Any, accumulator_dtype: Any, seed: Any
) -> optax.GradientTransformation:
    """`optax.trace` with a buffer that is kept as `_store` keeps accumulators."""
    _checks.flag("nesterov", nesterov)
    form = _store.as_format("accumulator_dtype", accumulator_dtype)
    if momentum is None:
        for name, is_set in (
            ("nesterov", nesterov),
            ("accumulator_dtype", accumulator_dtype is not None),
        ):
            if is_set:
                raise ValueError(f"`{name}` needs `momentum`, which is None.")
        return optax.GradientTransformation(optax.init_empty_state, _no_momentum)
    _checks.hyperparameter("momentum", momentum, "in [0, 1]")

    def init(params: optax.Params) -> optax.TraceState:
        zeros = partial(_store.full, value=0, form=form)
        return optax.TraceState(trace=jax.tree.map(zeros, params))

    rounds = _store.is_narrow(form)
    accumulate = partial(
        _accumulate_shared if rounds else _accumulate_inlined, nesterov=bool(nesterov)
    )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        step: Any = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.TraceState]:
        del params, extra_args
        _matching.state_of("momentum", state, optax.TraceState)
        _matching.gradients(updates, "trace", state.trace, form.dtype)
        rates = cache(partial(jnp.asarray, momentum))
        source = None
        if rounds:
            source = _bits.sources(updates, ("momentum",), step, seed)

        def leaf(path: Any, u: jax.Array, p: Any, stored: Any) -> Any:
            _leaves.same_kind(path, "gradient", u, "momentum", stored)
            rate = rates(_leaves.like(stored, _leaves.arithmetic_dtype(u, stored)))
            _matching.fits(path, u, "momentum", rate)
            bits = None if source is None else source(path, "momentum", stored)
            return accumulate(rate, bits, u, stored)

        steps, trace = _leaves.each(leaf, updates, None, state.trace)
        return steps, optax.TraceState(trace=trace)

    return optax.GradientTransformationExtraArgs(init, update)


def _no_momentum(
    updates: optax.Updates, state: Any, params: Any = None
) -> tuple[optax.Updates, Any]:
    del params
    if isinstance(state, optax.TraceState):  # it would be left out without a word
        raise _matching.wrong_state("momentum", state, optax.EmptyState)
    return updates, state


def _accumulate(
    momentum: jax.Array, bits: Any, u: Any, stored: Any, *, nesterov: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the step of one leaf, and its buffer, as it is stored."""
    real = _leaves.arithmetic_dtype(u, stored)

    u = u if u.dtype == momentum.dtype else u.astype(momentum.dtype)
    times = jnp.multiply if momentum.ndim else lax.mul  # as in `_rms._recursion`

    def plus(b: jax.Array) -> jax.Array:
        return lax.add(u, times(momentum, _store.read(b, real)))

    buffer = plus(stored)
    written = _store.write(buffer, stored, bits)
    return _store.tied(plus(buffer) if nesterov else buffer, written), written


# As in `_rms`: rounding is lowered once for each shape, all else is too short.
_accumulate_shared = jax.jit(_accumulate, static_argnames="nesterov")
_accumulate_inlined = jax.jit(_accumulate, static_argnames="nesterov", inline=True)


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
        return mapped(along, steps, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def in_wide_dtype(
    inner: optax.GradientTransformationExtraArgs,
    *,
    step_of: Callable[[Any], Any] | None,
    maximize: bool,
    needs_params: str | None,
    follows: bool,
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` in float32 or wider, then returns to the dtypes of the caller.

    So no step of the chain rounds to a narrow dtype or promotes its state, whatever
    the dtypes of parameters, gradients and hyperparameters are.

    Args:
      inner: the chain.
      step_of: finds the number of updates done in the state, for elements that round.
      maximize: whether to negate the gradients.
      needs_params: the argument because of which `inner` reads the parameters, if any.
      follows: whether the state is in float64 only where parameters are.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if needs_params is not None and params is None:
            raise ValueError(
                f"`{needs_params}` needs the parameters: call update(gradients, state, "
                "params)."
            )
        if not isinstance(state, tuple | list) or hasattr(state, "_fields"):
            raise _matching.wrong_state("rmsprop", state, tuple)
        if needs_params is not None:
            _matching.same_tree("gradients", updates, "params", params)
        steps, state = inner.update(
            _leaves.widened(updates, negate=maximize),
            state,
            None if needs_params is None else params,
            **({} if step_of is None else {"step": step_of(state)}),
        )
        returned = partial(_leaves.returned, follows=follows)
        return _leaves.each(returned, updates, params, steps)[0], state

    return optax.GradientTransformationExtraArgs(placed(inner.init), update)


def mapped(function: Callable[..., Any], updates: Any, *rest: Any) -> Any:
    """`jax.tree.map` in which None, a parameter without a gradient, stays None."""
    return jax.tree.map(
        lambda u, *others: None if u is None else function(u, *others),
        updates,
        *rest,
        is_leaf=_matching.is_none,
    )
