"""Trains all contenders of a problem at all settings, rates and seeds."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import Checkpoints
from ..storage import sizes
from .program import Contender, Problem, Program, compiled

OnPoint = Callable[[int, Mapping[str, np.ndarray]], None]
"""Told the steps done, and the measure by contender [settings, rates, seeds]."""


class Trained(NamedTuple):
    """What a training gave.

    Attributes:
      at: numbers of steps where the measure was taken.
      values: by contender, [points, settings, rates, seeds].
      report: from the index of a rate by contender [settings] to what
        `Problem.report` gives, by contender [settings, seeds].
      parameters: how many a run has.
      state_bytes: of the optimizer's state of one run, by contender.
      compile_seconds: wall time until the first step could run.
      seconds: of the steps alone.
    """

    at: np.ndarray
    values: dict[str, np.ndarray]
    report: Callable[[Mapping[str, Any]], dict[str, dict[str, np.ndarray]]]
    parameters: int
    state_bytes: dict[str, float]
    compile_seconds: float
    seconds: float


def keys_of(seeds: Sequence[int] | range) -> jax.Array:
    """Returns the keys [seeds] that stand for initial parameters and batches."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def points(steps: int, number: int) -> np.ndarray:
    """Returns ascending numbers of steps, 0 and `steps` and as many as fit between."""
    return np.unique(np.linspace(0, steps, number + 1).round().astype(int))


def train(
    problem: Problem,
    contenders: Mapping[str, Contender],
    settings: Sequence[Any],
    rates: Mapping[str, Any],
    keys: jax.Array,
    at: np.ndarray,
    on_point: OnPoint = lambda step, values: None,
    *,
    program: Program | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Trains from the same start on the same batches at every rate, by contender.

    Args:
      problem: what to minimise.
      contenders: the optimizers by name.
      settings: trees of numbers of one structure.
      rates: by contender, of one length for all.
      keys: [seeds]; a seed has the same start and batches for all.
      at: where to take the measure: ascending numbers of steps, from 0 to the last.
      on_point: what to tell.
      program: that of the problem, if it was compiled before.
      checkpoints: to go on from the newest, and to keep one at every point.
    """
    began = time.perf_counter()
    program = program or compiled(problem, contenders)
    run = (
        jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *settings),
        {name: jnp.asarray(rates[name], jnp.float32) for name in contenders},
        keys,
    )
    carry, worlds = program.start(run)
    done, training, values = 0, 0.0, []
    restored = checkpoints.restore(*carry) if checkpoints else None
    if restored:
        carry = restored.params, restored.opt_state
        done, training = restored.step, restored.position["training_seconds"]
        values = [
            {name: np.asarray(value, float) for name, value in point.items()}
            for point in restored.position["values"]
        ]
    nowhere = jnp.int32(done)
    carry, _ = program.advance(carry, worlds, run, nowhere, nowhere)  # compiles

    def measured(values: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(values[name], np.float64) for name in contenders}

    if not problem.online and not values:
        values.append(measured(program.measure(carry, worlds, run)))
    jax.block_until_ready(carry)
    compile_seconds = time.perf_counter() - began
    if values:
        on_point(done, values[-1])
    for last in at[at > done].tolist():
        resumed = time.perf_counter()
        stretch = jnp.int32(done), jnp.int32(last)
        carry, online = jax.block_until_ready(
            program.advance(carry, worlds, run, *stretch)
        )
        training += time.perf_counter() - resumed
        values.append(
            measured(online if problem.online else program.measure(carry, worlds, run))
        )
        done = last
        if checkpoints:
            told = [{n: x.tolist() for n, x in point.items()} for point in values]
            position = {"values": told, "training_seconds": training}
            checkpoints.save(done, *carry, position=position)
        on_point(done, values[-1])

    def report(chosen: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        indices = {name: jnp.asarray(chosen[name], jnp.int32) for name in contenders}
        found = program.report(carry, worlds, run, indices)
        return {  # in the order that jit does not keep
            name: {key: np.asarray(x, np.float64) for key, x in found[name].items()}
            for name in contenders
        }

    first = next(iter(values[-1].values()))
    return Trained(
        at[at > 0] if problem.online else at,
        {name: np.stack([point[name] for point in values]) for name in contenders},
        report,
        next(iter(carry[0].values())).shape[-1],
        {name: sum(sizes(carry[1][name]).values()) / first.size for name in contenders},
        compile_seconds,
        training,
    )
