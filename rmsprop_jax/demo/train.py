"""Trains one optimizer at all its learning rates and seeds in one program."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import Checkpoints
from ..diagnostics import best_rate
from ..storage import sizes
from .optimizers import MakeOptimizer
from .program import batches, compile_training, evaluate, start
from .tasks import Task

EVALUATIONS = 12
"""Points of a learning curve, besides the one before training."""

Progress = Callable[[int, np.ndarray], None]
"""Called with the steps done and the validation loss [rates, seeds]."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the training of one optimizer gave.

    Attributes:
      learning_rates: [rates], ascending.
      evaluated_at: [evaluations], numbers of steps; the first is 0, the last all.
      validation_loss: [evaluations, rates, seeds].
      best: the index of the rate whose mean final validation loss is lowest.
      test_loss: [seeds], at the best rate after the last step.
      test_accuracy: [seeds], likewise.
      parameters: how many the model has.
      state_bytes_per_parameter: of the optimizer's state, for one run.
      step_seconds: wall time per step and run, without compilation and evaluation.
      compile_seconds: wall time until the first step could run.
    """

    learning_rates: np.ndarray
    evaluated_at: np.ndarray
    validation_loss: np.ndarray
    best: int
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    parameters: int
    state_bytes_per_parameter: float
    step_seconds: float
    compile_seconds: float


def sweep(
    task: Task,
    make_optimizer: MakeOptimizer,
    learning_rates: Sequence[float],
    seeds: int,
    steps: int,
    batch_size: int,
    on_progress: Progress = lambda step, loss: None,
    checkpoints: Checkpoints | None = None,
) -> Sweep:
    """Trains `seeds` models at every learning rate and tests those at the best one.

    A seed stands for initial parameters and batches: they are the same for every
    learning rate and every optimizer, so differences may be taken seed by seed. With
    `checkpoints` it goes on from the newest, and makes one after every evaluation.
    """
    began = time.perf_counter()
    rates = jnp.asarray(learning_rates, jnp.float32)
    graphdef, state = start(task, make_optimizer, rates, seeds)
    restored = checkpoints.restore(*state) if checkpoints else None
    if restored:
        state = restored.params, restored.opt_state
    indices = batches(len(task.train.inputs), batch_size, steps, seeds)
    advance = compile_training(
        graphdef, make_optimizer, rates, indices, task.train, state
    )
    done, training = 0, 0.0
    losses = [evaluate(graphdef, state[0], task.validation)[0]]
    if restored:
        done, training = restored.step, restored.position["training_seconds"]
        losses = list(np.asarray(restored.position["validation_loss"], np.float32))
    compiled = time.perf_counter()
    on_progress(done, losses[-1])

    evaluated_at = _evaluations(steps)
    remaining = evaluated_at[evaluated_at >= done]
    for first, last in itertools.pairwise(remaining.tolist()):
        resumed = time.perf_counter()
        state = jax.block_until_ready(advance(state, first, last))
        training += time.perf_counter() - resumed
        losses.append(evaluate(graphdef, state[0], task.validation)[0])
        if checkpoints:
            curve = [loss.tolist() for loss in losses]
            position = {"validation_loss": curve, "training_seconds": training}
            checkpoints.save(last, *state, position=position)
        on_progress(last, losses[-1])

    best = best_rate(losses[-1])
    chosen = jax.tree.map(lambda x: x[best : best + 1], state[0])
    test_loss, test_accuracy = evaluate(graphdef, chosen, task.test)
    runs = seeds * len(learning_rates)
    parameters = _total(state[0], "size") // runs
    return Sweep(
        learning_rates=np.asarray(learning_rates, float),
        evaluated_at=evaluated_at,
        validation_loss=np.stack(losses),
        best=best,
        test_loss=test_loss[0],
        test_accuracy=test_accuracy[0],
        parameters=parameters,
        state_bytes_per_parameter=sum(sizes(state[1]).values()) / runs / parameters,
        step_seconds=training / steps / runs,
        compile_seconds=compiled - began,
    )


def _evaluations(steps: int) -> np.ndarray:
    """Returns [evaluations] ascending numbers of steps, from 0 to `steps`."""
    return np.unique(np.linspace(0, steps, EVALUATIONS + 1).round().astype(int))


def _total(tree: Any, attribute: str) -> int:
    return sum(getattr(leaf, attribute) for leaf in jax.tree.leaves(tree))
