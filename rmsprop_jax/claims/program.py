"""One compiled program for all optimizers, settings, rates and seeds of a problem."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

POINTS = 10
"""Points of a curve."""

Contender = Callable[[Any, Any], optax.GradientTransformation]
"""An optimizer from its learning rate (or its schedule) and a setting."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be minimised.

    A `world` is what stays fixed in a run, such as a rotation; the random numbers of a
    step come from the key of its seed, and are the same for all optimizers and rates.

    Attributes:
      start: (setting, key) to the initial parameters and the world.
      loss: (world, parameters, key, step) to the scalar whose gradient is followed.
      measure: likewise to the scalar that is reported, positive, less is better.
      steps: updates of a run.
      online: whether the measure is averaged over all steps, and the rate constant;
        otherwise it is taken at the end, and the rate falls to 0 in a straight line.
      bounds: what the measure is limited to; what is not finite gets the upper one.
      limit: a run whose measure is ever above it counts as not finite. (While the rate
        falls, one that blew up can come back, along axes without rounding errors.)
    """

    start: Callable[[Any, jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
    measure: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
    steps: int
    online: bool = False
    bounds: tuple[float, float] = (1e-8, 1e2)
    limit: float = math.inf


def compiled(
    problem: Problem, contenders: Mapping[str, Contender]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the programs that start all runs, and that do a stretch of them."""
    # Runs once: XLA would take many times as long to optimize the random numbers.
    unoptimized, cheaply = ({"xla_backend_optimization_level": n} for n in (0, 1))
    start = jax.jit(partial(_start, problem, contenders), compiler_options=unoptimized)
    # As fast on CPUs as with all optimizations, which take twice as long to compile.
    advance = jax.jit(
        partial(_advance, problem, contenders),
        donate_argnums=0, compiler_options=cheaply,
    )  # fmt: skip
    return start, advance


def _over(function: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """Maps over optimizers, settings, rates and seeds, outermost first.

    Args:
      function: of as many arguments as `axes`.
      axes: for each argument those that it has, of the letters "ocrs".
    """
    for letter in "srco":
        if any(letter in axis for axis in axes):
            has = tuple(0 if letter in axis else None for axis in axes)
            function = jax.vmap(function, in_axes=has)
    return function


def _optimizer(
    problem: Problem, make: Contender, rate: jax.Array, setting: Any
) -> optax.GradientTransformation:
    def falling(count: Any) -> jax.Array:
        return rate * (1 - jnp.asarray(count, jnp.float32) / problem.steps)

    return make(rate if problem.online else falling, setting)


def _start(
    problem: Problem,
    contenders: Mapping[str, Contender],
    settings: Any,
    rates: jax.Array,
    keys: jax.Array,
) -> Any:
    """Returns parameters [o, c, r, s, n] with states [c, r, s] each; and worlds.

    Parameters are one vector: a tree of them takes XLA several times as long.
    """

    def begin(setting: Any, key: jax.Array) -> Any:
        params, world = problem.start(setting, key)
        return ravel_pytree(params)[0], world

    params, worlds = _over(begin, "c", "s")(settings, keys)
    shape = (len(rates), len(params), rates.shape[1], *params.shape[1:])
    params = jnp.broadcast_to(params[None, :, None], shape)

    def init(make: Contender, rate: jax.Array, setting: Any, params: Any) -> Any:
        return _optimizer(problem, make, rate, setting).init(params)

    states = [
        _over(partial(init, make), "r", "c", "crs")(rates[o], settings, params[o])
        for o, make in enumerate(contenders.values())
    ]
    return (params, states), worlds


def _advance(
    problem: Problem,
    contenders: Mapping[str, Contender],
    carry: Any,
    worlds: Any,
    settings: Any,
    rates: jax.Array,
    keys: jax.Array,
    first: jax.Array,
) -> tuple[Any, jax.Array]:
    """Returns parameters and states after a stretch, and the measure [o, c, r, s]."""
    first_run = jax.tree.map(lambda x: x[0], settings), keys[0]
    shapes = jax.eval_shape(problem.start, *first_run)[0]
    tree = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))[1]

    def of(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda world, params, *now: function(world, tree(params), *now)

    axes = ("cs", "ocrs", "s", "")
    measure = _over(of(problem.measure), *axes)
    grads_of = _over(jax.grad(of(problem.loss), argnums=1), *axes)

    def update(make: Contender, *run: Any) -> Any:
        rate, setting, params, grads, state = run
        tx = _optimizer(problem, make, rate, setting)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(carry: Any, count: jax.Array) -> Any:
        params, states = carry
        value = measure(worlds, params, keys, count) if problem.online else None
        grads = grads_of(worlds, params, keys, count)
        moved = [
            _over(partial(update, make), "r", "c", "crs", "crs", "crs")(
                rates[o], settings, params[o], grads[o], states[o]
            )
            for o, make in enumerate(contenders.values())
        ]
        params = jnp.stack([params for params, _ in moved])
        return (params, [state for _, state in moved]), value

    counts = first + jnp.arange(problem.steps // POINTS)
    carry, values = jax.lax.scan(step, carry, counts)
    if problem.online:
        return carry, values.mean(axis=0)
    return carry, measure(worlds, carry[0], keys, jnp.int32(-1))
