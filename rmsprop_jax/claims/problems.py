"""The problems that several experiments share."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from ..lab.program import Problem, linear
from ..lab.tasks import Task, digits, drawn, metrics

DIMENSION = 16
JUMP = 100.0
"""How much larger the loss is in every other period of a problem with jumps."""

TAILS = {"normal": 0.0, "t, 2 dof": 1.0, "Cauchy": 2.0}
"""Distributions of noise by code; the second has no variance, the third no mean."""


def quadratic(**changes: Any) -> dict[str, Any]:
    """Returns a setting of `quadratics`, of these numbers unless they are changed.

    Args:
      changes: `condition`, the largest curvature (one) by the smallest; `rotated`, 1
        for random axes; `units`, 1 where parameters start as far from the optimum as
        their curvature makes them matter alike, 0 where all start equally far;
        `noise`, of the observed optimum, per coordinate; `tails`, its code; `speed` of
        the optimum, in radians a step on a circle; `period`, of the jumps, in steps.
    """
    plain = {
        "condition": 1.0, "rotated": 0.0, "units": 0.0, "noise": 0.0, "tails": 0.0,
        "speed": 0.0, "period": 0.0,
    }  # fmt: skip
    return plain | changes


def quadratics(steps: int, online: bool) -> Problem:
    """Returns the loss ½ s_t |Λ^½ Qᵀ (x − c_t − noise_t)|², by setting.

    The measure is the mean over eigendirections of the squared distance to the optimum
    c_t, by its expectation at the start: every direction counts.
    """

    def start(setting: Any, key: jax.Array) -> Any:
        parts = jax.random.split(key, 3)
        powers = jnp.linspace(0, 1, DIMENSION)
        curvature = setting["condition"] ** -powers
        axes = jnp.linalg.qr(jax.random.normal(parts[0], (DIMENSION, DIMENSION)))[0]
        axes = jnp.where(setting["rotated"] > 0, axes, jnp.eye(DIMENSION))
        scale = jnp.where(setting["units"] > 0, curvature**-0.5, 1.0)
        first = scale * jax.random.normal(parts[1], (DIMENSION,))
        phase = jax.random.uniform(parts[2], (DIMENSION,), maxval=2 * jnp.pi)
        world = setting | {
            "curvature": curvature, "axes": axes, "scale": scale, "phase": phase,
        }  # fmt: skip
        return axes @ first, world

    def optimum(world: Any, step: jax.Array) -> jax.Array:
        angle = world["speed"] * step.astype(jnp.float32) + world["phase"]
        moving = (world["speed"] > 0).astype(jnp.float32)
        return moving * world["scale"] * jnp.sin(angle)

    def loss(world: Any, x: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        y = world["axes"].T @ x
        noise = world["noise"] * world["scale"] * _noise(key, step, world["tails"])
        period = jnp.maximum(world["period"], 1.0)
        odd = jnp.floor(step.astype(jnp.float32) / period) % 2
        factor = jnp.where(world["period"] > 0, JUMP**odd, 1.0)
        error = y - optimum(world, step) - noise
        return 0.5 * factor * jnp.sum(world["curvature"] * error**2)

    def measure(world: Any, x: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        error = world["axes"].T @ x - optimum(world, step)
        return jnp.mean((error / world["scale"]) ** 2)

    schedule = None if online else linear
    return Problem(start, loss, measure, steps, schedule, online, limit=1e2)


def _noise(key: jax.Array, step: jax.Array, tails: jax.Array) -> jax.Array:
    """Returns normal noise, Student's t with two degrees of freedom, or Cauchy's."""
    parts = jax.random.split(jax.random.fold_in(key, step), 3)
    normal = jax.random.normal(parts[0], (DIMENSION,))
    exponential = jax.random.exponential(parts[1], (DIMENSION,))
    other = jnp.abs(jax.random.normal(parts[2], (DIMENSION,)))
    divisor = jnp.where(tails > 1, other, jnp.where(tails > 0, exponential**0.5, 1.0))
    return normal / jnp.maximum(divisor, 1e-6)


@cache
def data() -> Task:
    """Returns the digits of the demo."""
    return digits()


def stream(steps: int, batch_size: int = 8) -> Problem:
    """Returns softmax regression on digits that pass once, in batches.

    With setting["period"] above 0, the classes are renamed at random after every so
    many steps. The measure is the loss on every batch before it is learnt from.
    """
    inputs, targets = _flat(data().train)

    def start(setting: Any, key: jax.Array) -> Any:
        params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
        return params, setting

    def loss(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        chosen = _examples(key, step, batch_size)
        x, y = inputs[chosen], targets[chosen]
        period = world["period"]
        phase = jnp.where(period > 0, step // jnp.maximum(period, 1.0), 0.0)
        names = jax.random.permutation(
            jax.random.fold_in(key, 2**20 + phase.astype(jnp.int32)), 10
        )
        return metrics(x @ params["w"] + params["b"], names[y])[0]

    return Problem(start, loss, loss, steps, None, online=True)


def digits_net(steps: int, batch_size: int, hidden: int = 16) -> Problem:
    """Returns a net with one hidden layer on the digits; its measure is test loss."""
    inputs, targets = _flat(data().train)
    test_inputs, test_targets = _flat(data().test)

    def start(setting: Any, key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        params = {
            "w1": jax.random.normal(first, (hidden, 64)) / 8,
            "b1": jnp.zeros((hidden, 1)),
            "w2": jax.random.normal(second, (10, hidden)) / hidden**0.5,
            "b2": jnp.zeros((10, 1)),
        }
        return params, ()

    def of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        # Examples last: twice as fast on CPUs, where each run has its own parameters.
        h = jnp.tanh(params["w1"] @ x.T + params["b1"])
        return metrics((params["w2"] @ h + params["b2"]).T, y)[0]

    def loss(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        chosen = _examples(key, step, batch_size)
        return of(params, inputs[chosen], targets[chosen])

    def measure(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        return of(params, test_inputs, test_targets)

    return Problem(start, loss, measure, steps)


def _flat(split: Any) -> tuple[jax.Array, jax.Array]:
    inputs = jnp.asarray(split.inputs).reshape(len(split.inputs), -1)
    return inputs, jnp.asarray(split.targets)


def _examples(key: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    return drawn(key, step, batch_size, len(data().train.inputs))
