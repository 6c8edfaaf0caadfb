"""One compiled program for all contenders, settings, rates and seeds of a problem."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class Contender(NamedTuple):
    """An optimizer that takes part.

    Attributes:
      make: the optimizer, from its learning rate (or its schedule) and a setting.
      dtype: of its parameters, and so of both passes.
    """

    make: Callable[[Any, Any], optax.GradientTransformation]
    dtype: str = "float32"


def linear(part: jax.Array) -> jax.Array:
    """Returns by how much a rate has fallen to 0 in a straight line."""
    return 1 - part


def cosine(part: jax.Array) -> jax.Array:
    """Returns by how much a rate has fallen to 0 along half a cosine."""
    return 0.5 * (1 + jnp.cos(jnp.pi * part))


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be minimised.

    A `world` is what stays fixed in a run, such as a rotation; the random numbers of a
    step come from the key of its seed, and are the same for all contenders and rates.

    Attributes:
      start: (setting, key) to the initial parameters and the world.
      loss: (world, parameters, key, step) to the scalar whose gradient is followed.
      measure: likewise to the scalar that is reported, positive, less is better.
      steps: updates of a run.
      schedule: by which factor the learning rate has fallen at a part of the run; None
        for a rate that stays.
      online: whether the measure is averaged over all steps; otherwise it is taken
        where a stretch of steps ends.
      report: (world, parameters) to scalars by name that are taken after the last step.
      bounds: what the measure is limited to; what is not finite gets the upper one.
      limit: a run whose measure is ever above it counts as not finite. (While the rate
        falls, one that blew up can come back, along axes without rounding errors.)
    """

    start: Callable[[Any, jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
    measure: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
    steps: int
    schedule: Callable[[jax.Array], jax.Array] | None = linear
    online: bool = False
    report: Callable[[Any, Any], dict[str, jax.Array]] | None = None
    bounds: tuple[float, float] = (1e-8, 1e2)
    limit: float = math.inf


class Program(NamedTuple):
    """What is compiled; `run` stands for settings [c], rates [r] by name, keys [s].

    Parameters are by dtype, [contenders of it, c, r, s, n]: one vector, since a tree of
    arrays takes XLA several times as long. States are by contender, [c, r, s].

    Attributes:
      start: (run) to (parameters, states) and the worlds [c, s].
      advance: (carry, worlds, run, first, last) to the carry after the steps from
        `first` to `last`, and the mean of an online measure by contender [c, r, s].
      measure: (carry, worlds, run) to the measure by contender [c, r, s].
      report: (carry, worlds, indices of rates by contender [c]) to the scalars of
        `Problem.report` by contender [c, s].
    """

    start: Callable[..., Any]
    advance: Callable[..., Any]
    measure: Callable[..., Any]
    report: Callable[..., Any]


def compiled(problem: Problem, contenders: Mapping[str, Contender]) -> Program:
    """Returns the program of a problem; each part is compiled when it is first used."""
    # Runs once: XLA would take many times as long to optimize the random numbers.
    unoptimized = {"xla_backend_optimization_level": 0}
    # As fast on CPUs as with all optimizations, which take twice as long to compile.
    cheaply = {"xla_backend_optimization_level": 1}
    parts = problem, contenders
    return Program(
        jax.jit(partial(_start, *parts), compiler_options=unoptimized),
        jax.jit(partial(_advance, *parts), compiler_options=cheaply),
        jax.jit(partial(_measure, *parts), compiler_options=cheaply),
        jax.jit(partial(_report, *parts), compiler_options=cheaply),
    )


def _over(function: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """Maps over contenders, settings, rates and seeds, outermost first.

    Args:
      function: of as many arguments as `axes`.
      axes: for each argument those that it has, of the letters "ocrs".
    """
    for letter in "srco":
        if any(letter in axis for axis in axes):
            has = tuple(0 if letter in axis else None for axis in axes)
            function = jax.vmap(function, in_axes=has)
    return function


def _seed_by_seed(function: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """Maps as `_over` does, one seed after the other: all at once may take gigabytes.

    Every argument must have seeds as the last of its axes.
    """

    def mapped(*arguments: Any) -> Any:
        first = [
            jax.tree.map(partial(jnp.moveaxis, source=len(axis) - 1, destination=0), x)
            for axis, x in zip(axes, arguments, strict=True)
        ]
        each = _over(function, *(axis[:-1] for axis in axes))
        found = jax.lax.map(lambda arguments: each(*arguments), first)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), found)

    return mapped


def _by_dtype(contenders: Mapping[str, Contender]) -> dict[str, list[str]]:
    dtypes = dict.fromkeys(contender.dtype for contender in contenders.values())
    return {d: [n for n, c in contenders.items() if c.dtype == d] for d in dtypes}


def _optimizer(
    problem: Problem, contender: Contender, rate: jax.Array, setting: Any
) -> optax.GradientTransformation:
    schedule = problem.schedule
    if schedule is None:
        return contender.make(rate, setting)

    def falling(count: Any) -> jax.Array:
        return rate * schedule(jnp.asarray(count, jnp.float32) / problem.steps)

    return contender.make(falling, setting)


def _tree_of(
    problem: Problem, settings: Any, keys: jax.Array, dtype: str
) -> Callable[[jax.Array], Any]:
    """Returns what makes the tree of parameters of a vector."""
    first = jax.tree.map(lambda x: x[0], settings), keys[0]
    shapes = jax.eval_shape(problem.start, *first)[0]
    return ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), shapes))[1]


def _start(problem: Problem, contenders: Mapping[str, Contender], run: Any) -> Any:
    settings, rates, keys = run

    def begin(setting: Any, key: jax.Array) -> Any:
        params, world = problem.start(setting, key)
        return ravel_pytree(params)[0], world

    vectors, worlds = _over(begin, "c", "s")(settings, keys)
    number = len(next(iter(rates.values())))
    vectors = jnp.broadcast_to(  # [c, r, s, n]
        vectors[:, None], (len(vectors), number, *vectors.shape[1:])
    )

    def init(contender: Contender, rate: Any, setting: Any, params: Any) -> Any:
        return _optimizer(problem, contender, rate, setting).init(params)

    states = {
        name: _over(partial(init, contender), "r", "c", "crs")(
            rates[name], settings, vectors.astype(contender.dtype)
        )
        for name, contender in contenders.items()
    }
    params = {
        dtype: jnp.stack([vectors.astype(dtype)] * len(names))
        for dtype, names in _by_dtype(contenders).items()
    }
    return (params, states), worlds


def _mapped(
    problem: Problem,
    contenders: Mapping[str, Contender],
    run: Any,
    over: Any,
    transform: Callable[..., Any] = lambda function: function,
) -> Callable[..., dict[str, Any]]:
    """Returns a function of problem's kind as one of all parameters, by contender."""
    settings, _, keys = run

    def all_of(
        function: Callable[..., Any], params: Any, worlds: Any, *now: Any
    ) -> dict[str, Any]:
        found = {}
        for dtype, names in _by_dtype(contenders).items():
            tree = _tree_of(problem, settings, keys, dtype)
            one = transform(
                lambda vector, world, key, tree=tree: function(
                    world, tree(vector), key, *now
                )
            )
            each = over(one, "ocrs", "cs", "s")(params[dtype], worlds, keys)
            found |= {name: each[i] for i, name in enumerate(names)}
        return found

    return all_of


def _advance(
    problem: Problem,
    contenders: Mapping[str, Contender],
    carry: Any,
    worlds: Any,
    run: Any,
    first: jax.Array,
    last: jax.Array,
) -> Any:
    settings, rates, _ = run
    gradients = _mapped(problem, contenders, run, _over, jax.grad)
    measures = _mapped(problem, contenders, run, _over)
    dtypes = _by_dtype(contenders)

    def update(contender: Contender, *of_run: Any) -> Any:
        rate, setting, params, grads, state = of_run
        tx = _optimizer(problem, contender, rate, setting)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(count: jax.Array, carry: Any) -> Any:
        (params, states), total = carry
        if problem.online:
            now = measures(problem.measure, params, worlds, count)
            total = jax.tree.map(jnp.add, total, now)
        grads = gradients(problem.loss, params, worlds, count)
        moved, after = {}, {}
        for dtype, names in dtypes.items():
            columns = []
            for index, name in enumerate(names):
                each = _over(
                    partial(update, contenders[name]), "r", "c", "crs", "crs", "crs"
                )
                column, after[name] = each(
                    rates[name], settings, params[dtype][index], grads[name],
                    states[name],
                )  # fmt: skip
                columns.append(column)
            moved[dtype] = jnp.stack(columns)
        return (moved, after), total

    shape = next(iter(carry[0].values())).shape[1:4]
    zeros = {name: jnp.zeros(shape) for name in contenders if problem.online}
    # Bounds that are traced: one program serves every stretch.
    carry, total = jax.lax.fori_loop(first, last, step, (carry, zeros))
    return carry, jax.tree.map(lambda x: x / (last - first), total)


def _measure(
    problem: Problem, contenders: Mapping[str, Contender], carry: Any, worlds: Any,
    run: Any,
) -> Any:  # fmt: skip
    measures = _mapped(problem, contenders, run, _seed_by_seed)
    return measures(problem.measure, carry[0], worlds, jnp.int32(-1))


def _report(
    problem: Problem, contenders: Mapping[str, Contender], carry: Any, worlds: Any,
    run: Any, chosen: Mapping[str, jax.Array],
) -> Any:  # fmt: skip
    assert problem.report is not None
    params, settings, keys = carry[0], run[0], run[2]
    found = {}
    for dtype, names in _by_dtype(contenders).items():
        tree = _tree_of(problem, settings, keys, dtype)
        at = jnp.stack([chosen[name] for name in names])[:, :, None, None, None]
        vectors = jnp.take_along_axis(params[dtype], at, axis=2)[:, :, 0]
        report = problem.report
        each = _seed_by_seed(
            lambda vector, world, tree=tree, report=report: report(world, tree(vector)),
            "ocs", "cs",
        )(vectors, worlds)  # fmt: skip
        for i, name in enumerate(names):
            found[name] = jax.tree.map(lambda x, i=i: x[i], each)
    return found
