"""Seconds to trace and lower a step with nothing cached, as in a new process."""

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .rows import step_of
from .shapes import Shapes


def measure(
    shapes: Shapes,
    makes: Mapping[str, Callable[[], optax.GradientTransformation]],
    rounds: int,
) -> dict[str, np.ndarray]:
    """Returns the seconds of each transformation in each round, taken in turns.

    Args:
      shapes: of the leaves, which are not made: tracing needs no arrays.
      makes: the transformations, by the names of their rows.
      rounds: how often each is traced.
    """
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    seconds: dict[str, list[float]] = {name: [] for name in makes}
    for _ in range(rounds):
        for name, make in makes.items():
            jax.clear_caches()  # otherwise the second finds what the first traced
            tx = make()
            state = jax.eval_shape(tx.init, params)
            program = jax.jit(step_of(tx), donate_argnums=(0, 1))
            began = time.perf_counter()
            program.lower(params, state, params)
            seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(of_row) for name, of_row in seconds.items()}
