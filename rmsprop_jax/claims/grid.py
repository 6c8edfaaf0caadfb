"""Trains all optimizers at all settings, rates and seeds in one compiled program."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from .sweep import Runs, Sweep, edges

POINTS = 10
"""Points of a curve."""

EXTENSIONS = 2
"""How often a grid of rates is moved on where its edge is best."""

OnPart = Callable[[float], None]

Contender = Callable[[Any, Any], optax.GradientTransformation]
"""An optimizer from its learning rate (or its schedule) and a setting."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
      seeds: how many are reported.
      tuning: how many others choose the learning rates.
      part: of the steps of an experiment.
      quick: whether lists of settings are cut to two, to see that it runs.
    """

    seeds: int = 10
    tuning: int = 3
    part: float = 1.0
    quick: bool = False

    def steps(self, steps: int) -> int:
        """Returns how many of an experiment's steps are done, whole stretches."""
        return POINTS * max(1, round(self.part * steps / POINTS))

    def some(self, values: Sequence[Any]) -> list[Any]:
        """Returns all values, or the first and the last where it is quick."""
        return [values[0], values[-1]] if self.quick else list(values)


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


def sweep(
    problem: Problem,
    contenders: Mapping[str, Contender],
    settings: Mapping[str, Any],
    rates: Mapping[str, Sequence[float]],
    plan: Plan,
    on_part: OnPart = lambda part: None,
    extensions: int = EXTENSIONS,
) -> Sweep:
    """Returns what every optimizer reached at every setting, rate and seed.

    Args:
      problem: what to minimise.
      contenders: the optimizers by name.
      settings: by name, trees of numbers of one structure.
      rates: by optimizer, ascending, of one length for all. Where the first or the last
        is best, the grid is moved on, and all is run again.
      plan: for the seeds; the first `tuning` ones choose the rates.
      on_part: told which part is done, from 0 to 1; it starts again with each grid.
      extensions: how often a grid is moved on at most.
    """
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(_arrays, settings.values()))
    keys = jax.vmap(jax.random.key)(jnp.arange(plan.tuning + plan.seeds))
    start = jax.jit(partial(_start, problem, contenders), compiler_options=_level(0))
    # As fast on CPUs as with all optimizations, which take twice as long to compile.
    advance = jax.jit(
        partial(_advance, problem, contenders),
        donate_argnums=0, compiler_options=_level(1),
    )  # fmt: skip
    grids = {name: np.asarray(rates[name], float) for name in contenders}
    found: dict[str, Runs] = {}
    for _ in range(extensions + 1):
        table = jnp.asarray(np.stack(list(grids.values())), jnp.float32)
        carry, worlds = start(stacked, table, keys)
        values = []
        for point in range(POINTS):
            first = jnp.int32(point * (problem.steps // POINTS))
            carry, value = advance(carry, worlds, stacked, table, keys, first)
            values.append(np.asarray(value, np.float64))
            on_part((point + 1) / POINTS)
        for index, (name, grid) in enumerate(grids.items()):
            runs = Runs(grid, np.stack(values)[:, index])
            found[name] = found[name].joined(runs) if name in found else runs
        result = Sweep(
            tuple(settings), found, problem.steps, plan.tuning, problem.online,
            problem.bounds, problem.limit,
        )  # fmt: skip
        sides = {name: edges(result, name) for name in found}
        if not np.any([*sides.values()]):
            break
        grids = {name: _moved(found[name].rates, sides[name], rates) for name in found}
    return result


def _level(level: int) -> dict[str, Any]:
    return {"xla_backend_optimization_level": level}


def _moved(tried: np.ndarray, side: Any, rates: Mapping[str, Any]) -> np.ndarray:
    """Returns the next grid, of the same length: below or above what was tried."""
    length = len(next(iter(rates.values())))
    below, above = side
    ratio = tried[1] / tried[0] if len(tried) > 1 else 10.0
    if above.any():
        return tried[-1] * ratio ** np.arange(1, length + 1)
    if below.any():
        return tried[0] * ratio ** np.arange(-length, 0.0)
    return tried[:length]


def _arrays(setting: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), setting)


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


def stretches(on_part: OnPart, number: int) -> list[OnPart]:
    """Returns what is told the parts of each of a number of equal stretches."""
    return [
        lambda part, done=done: on_part((done + part) / number)
        for done in range(number)
    ]
