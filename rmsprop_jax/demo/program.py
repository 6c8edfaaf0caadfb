"""The compiled programs of a sweep; `grid` stands for leading axes [rates, seeds]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from .optimizers import MakeOptimizer
from .tasks import Split, Task, metrics


def start(
    task: Task, make_optimizer: MakeOptimizer, rates: jax.Array, seeds: int
) -> tuple[Any, Any]:
    """Returns the graph definition and the state of the grid before training.

    The state is (parameters, optimizer state), with leading axes [rates, seeds].
    """
    graphdef = nnx.split(nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0))))[0]

    def start_one(rate: jax.Array, seed: jax.Array) -> Any:
        model = task.make_model(nnx.Rngs(params=jax.random.key(seed)))
        parameters = nnx.split(model)[1]
        return parameters, make_optimizer(rate).init(parameters)

    over_grid = jax.vmap(jax.vmap(start_one, in_axes=(None, 0)), in_axes=(0, None))
    # Runs once: XLA would take many times as long to optimize the random numbers.
    unoptimized = {"xla_backend_optimization_level": 0}
    return graphdef, jax.jit(over_grid, compiler_options=unoptimized)(
        rates, jnp.arange(seeds)
    )


def batches(examples: int, batch_size: int, steps: int, seeds: int) -> jax.Array:
    """Returns indices [seeds, steps, batch_size]: epoch after epoch, shuffled."""
    epochs = -(-steps * batch_size // examples)
    shuffled = [
        np.concatenate([random.permutation(examples) for _ in range(epochs)])
        for random in map(np.random.default_rng, range(seeds))
    ]
    indices = np.stack(shuffled)[:, : steps * batch_size]
    return jnp.asarray(indices.reshape(seeds, steps, batch_size), jnp.int32)


def compile_training(
    graphdef: Any,
    make_optimizer: MakeOptimizer,
    rates: jax.Array,
    batches: jax.Array,
    split: Split,
    state: Any,
) -> Callable[[Any, int, int], Any]:
    """Returns the compiled `advance(state, first step, last step)` of the grid."""
    train = partial(_train, graphdef, make_optimizer)
    shared = (None,) * 4
    over_seeds = jax.vmap(train, in_axes=(None, 0, 0, *shared))
    over_grid = jax.jit(jax.vmap(over_seeds, in_axes=(0, 0, None, *shared)))
    inputs, targets = jnp.asarray(split.inputs), jnp.asarray(split.targets)
    zero = jnp.int32(0)
    program = over_grid.lower(
        rates, state, batches, inputs, targets, zero, zero
    ).compile()

    def advance(state: Any, first: int, last: int) -> Any:
        stretch = jnp.int32(first), jnp.int32(last)
        return program(rates, state, batches, inputs, targets, *stretch)

    return advance


def _train(
    graphdef: Any,
    make_optimizer: MakeOptimizer,
    rate: jax.Array,
    state: Any,
    batches: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
    first: jax.Array,
    last: jax.Array,
) -> Any:
    """Returns parameters and optimizer state after the steps `first` to `last`."""
    optimizer = make_optimizer(rate)

    def loss(parameters: Any, batch: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, parameters)
        return metrics(model(inputs[batch]), targets[batch])[0]

    def step(i: jax.Array, state: Any) -> Any:
        parameters, moments = state
        gradients = jax.grad(loss)(parameters, batches[i])
        updates, moments = optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    # Bounds that are traced: one program serves every stretch between evaluations.
    return jax.lax.fori_loop(first, last, step, state)


def evaluate(
    graphdef: Any, parameters: Any, split: Split
) -> tuple[np.ndarray, np.ndarray]:
    """Returns loss and accuracy [rates, seeds] of parameters with these axes."""
    loss, accuracy = _evaluate_grid(graphdef, parameters, split.inputs, split.targets)
    return np.asarray(loss), np.asarray(accuracy)


@partial(jax.jit, static_argnums=0)
def _evaluate_grid(
    graphdef: Any, parameters: Any, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def evaluate_one(parameters: Any) -> tuple[jax.Array, jax.Array]:
        return metrics(nnx.merge(graphdef, parameters)(inputs), targets)

    return jax.vmap(jax.vmap(evaluate_one))(parameters)
