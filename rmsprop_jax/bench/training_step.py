"""An ordinary Flax training step, and the optimizer's share of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from .. import rmsprop
from . import rows, timing
from .peers import DECAY, RATE
from .timing import Running

BATCH_SIZE = 32

ALONE = "gradients alone"

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "ours": lambda: rmsprop(RATE, DECAY),
    rows.BASE: lambda: optax.rmsprop(RATE, DECAY),
    "ours-uint8": lambda: rmsprop(RATE, DECAY, nu_dtype="uint8"),
    "optax.adam": lambda: optax.adam(RATE),
}


class NatureDQN(nnx.Module):
    """Three convolutions and two dense layers, from four frames to six values."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            nnx.Conv(*channels, (size, size), stride, padding="VALID", rngs=rngs)
            for channels, size, stride in (
                ((4, 32), 8, 4), ((32, 64), 4, 2), ((64, 64), 3, 1),
            )
        )  # fmt: skip
        self.hidden = nnx.Linear(7 * 7 * 64, 512, rngs=rngs)
        self.values = nnx.Linear(512, 6, rngs=rngs)

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Returns values [batch, 6] of frames [batch, 84, 84, 4]."""
        x = frames
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.values(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def start(
    model: nnx.Module, tx: optax.GradientTransformation | None, batch_size: int
) -> Running:
    """Starts a training step; without a transformation, its gradients alone."""
    graphdef, params = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.copy, params)  # which will be donated
    random = np.random.default_rng(0)
    frames = jnp.asarray(random.random((batch_size, 84, 84, 4), np.float32))
    targets = jnp.asarray(random.standard_normal((batch_size, 6), np.float32))

    def loss(params: Any, frames: jax.Array, targets: jax.Array) -> jax.Array:
        values = nnx.merge(graphdef, params)(frames)
        return jnp.mean(optax.huber_loss(values, targets))

    def step(params: Any, state: Any, frames: jax.Array, targets: jax.Array) -> Any:
        grads = jax.grad(loss)(params, frames, targets)
        if tx is None:
            return params, grads  # in the memory of the last ones
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.tree.map(jnp.zeros_like, params) if tx is None else tx.init(params)
    return rows.compiled(step, params, state, frames, targets)


def measure(
    budget: float, quick: bool, on_part: Callable[[float], Any]
) -> dict[str, Any]:
    """Returns the time of the step with each optimizer, and its share of it."""
    batch_size = 8 if quick else 32
    model = NatureDQN(rngs=nnx.Rngs(0))
    running = {ALONE: start(model, None, batch_size)}
    for name, make in list(OPTIMIZERS.items())[: 2 if quick else None]:
        running[name] = start(model, make(), batch_size)
    samples = timing.measure(running, budget, on_part=on_part)
    return {
        "title": "Nature DQN in Flax NNX, Huber loss",
        "batch_size": batch_size,
        "rounds": len(samples[ALONE]),
        "rows": {
            name: {
                **timing.summary(seconds),
                "optimizer_percent": 100 * (1 - timing.ratio(samples[ALONE], seconds)),
                "compile_seconds": running[name].compile_seconds,
            }
            for name, seconds in samples.items()
        },
    }
