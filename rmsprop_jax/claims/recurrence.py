"""Recurrent nets that have to remember their first input, and their gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import scale_by_rms
from ..lab.program import Problem

HIDDEN = 8
BATCH_SIZE = 4
TEST = 16
NOISE = 0.2
PLANTED = 1.03
"""A recurrent weight of a unit without tanh: the gradient has its powers."""

WARM_UP = 10
"""Gradients that the averages have seen when steps are measured."""

CHANCE = 1.0
"""The loss of the best constant, 0."""


@jax.custom_vjp
def _product(a: jax.Array, w: jax.Array) -> jax.Array:
    """Returns a @ w, written out: four times as fast on CPUs for many tiny ones."""
    return sum((a[:, k, None] * w[k] for k in range(1, len(w))), a[:, :1] * w[0])


def _product_forward(a: jax.Array, w: jax.Array) -> Any:
    return _product(a, w), (a, w)


def _product_backward(factors: Any, d: jax.Array) -> Any:
    a, w = factors
    return _product(d, w.T), _product(a.T, d)


_product.defvjp(_product_forward, _product_backward)


def _layer(key: jax.Array) -> dict[str, jax.Array]:
    """Returns the weights of one gate: recurrent ones that keep the norm."""
    first, second = jax.random.split(key)
    normal = jax.random.normal(second, (HIDDEN, HIDDEN))
    return {
        "inputs": jax.random.normal(first, (HIDDEN,)),
        "recurrent": jnp.linalg.qr(normal)[0],
        "bias": jnp.zeros(HIDDEN),
    }


def _weights(key: jax.Array, *layers: str) -> dict[str, Any]:
    keys = jax.random.split(key, len(layers) + 1)
    return {
        "out": jax.random.normal(keys[0], (HIDDEN,)) / HIDDEN**0.5,
        "out_bias": jnp.zeros(()),
        **{name: _layer(key) for name, key in zip(layers, keys[1:], strict=True)},
    }


def _planted(key: jax.Array) -> dict[str, Any]:
    params = _weights(key, "new")
    recurrent = 0.9 * params["new"]["recurrent"]
    planted = recurrent.at[:, 0].set(0.0).at[0, 0].set(PLANTED)
    return params | {"new": params["new"] | {"recurrent": planted}}


def _linear(layer: Any, h: jax.Array, x: jax.Array) -> jax.Array:
    return x * layer["inputs"] + _product(h, layer["recurrent"]) + layer["bias"]


def _plain(params: Any, h: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(_linear(params["new"], h, x))


def _without_squashing(params: Any, h: jax.Array, x: jax.Array) -> jax.Array:
    return _linear(params["new"], h, x)


def _gru(params: Any, h: jax.Array, x: jax.Array) -> jax.Array:
    reset = jax.nn.sigmoid(_linear(params["reset"], h, x))
    keep = jax.nn.sigmoid(_linear(params["keep"], h, x))
    new = jnp.tanh(_linear(params["new"], reset * h, x))
    return keep * h + (1 - keep) * new


Cell = Callable[[Any, jax.Array, jax.Array], jax.Array]

# By name: initial parameters from a key, and (parameters, h, x) to the next h.
CELLS: dict[str, tuple[Callable[[jax.Array], Any], Cell]] = {
    "plain RNN": (lambda key: _weights(key, "new"), _plain),
    "planted weight": (_planted, _without_squashing),
    "GRU": (lambda key: _weights(key, "reset", "keep", "new"), _gru),
}


def draw(key: jax.Array, examples: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns inputs [length, examples, 1], a sign and then noise; and the signs."""
    signs = jnp.where(jnp.arange(examples) % 2 > 0, 1.0, -1.0)
    noise = NOISE * jax.random.normal(key, (length, examples))
    return noise.at[0].set(signs)[:, :, None], signs


def loss_of(cell: Cell, params: Any, inputs: jax.Array, signs: jax.Array) -> jax.Array:
    """Returns the mean squared error of the first input's sign, after the last step."""
    return loss_at(cell, params, inputs, signs, None)


def loss_at(
    cell: Cell, params: Any, inputs: jax.Array, signs: jax.Array, moved: Any
) -> jax.Array:
    """Returns the loss where hidden states are moved by [length, examples, hidden]."""

    def step(h: jax.Array, now: Any) -> Any:
        x, by = now
        h = cell(params, h, x)
        return (h if by is None else h + by), None

    first = jnp.zeros((inputs.shape[1], HIDDEN))
    last, _ = jax.lax.scan(step, first, (inputs, moved))
    outputs = last @ params["out"] + params["out_bias"]
    return jnp.mean((outputs - signs) ** 2)


def remembering(name: str, length: int, steps: int) -> Problem:
    """Returns the task for a cell: the sign of the first input after `length` steps."""
    init, cell = CELLS[name]

    def start(setting: Any, key: jax.Array) -> Any:
        return init(key), ()

    def loss(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, step)
        return loss_of(cell, params, *draw(key, BATCH_SIZE, length))

    def measure(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, 2**20)
        return loss_of(cell, params, *draw(key, TEST, length))

    return Problem(start, loss, measure, steps, bounds=(1e-4, 10.0))


@partial(jax.jit, static_argnums=(0, 1))
def instruments(name: str, length: int, keys: jax.Array) -> dict[str, jax.Array]:
    """Returns signal, gradient and step of untrained nets [seeds]."""
    init, cell = CELLS[name]
    tx = scale_by_rms(0.9)

    def one(key: jax.Array) -> dict[str, jax.Array]:
        params = init(key)

        def grads_of(step: jax.Array) -> Any:
            batch = draw(jax.random.fold_in(key, step), BATCH_SIZE, length)
            return jax.grad(partial(loss_of, cell))(params, *batch)

        def step(state: Any, count: jax.Array) -> Any:
            grads = grads_of(count)
            updates, state = tx.update(grads, state)
            return state, (optax.tree.norm(grads), optax.tree.norm(updates))

        _, (gradients, steps) = jax.lax.scan(step, tx.init(params), jnp.arange(WARM_UP))
        batch = draw(key, BATCH_SIZE, length)
        still = jnp.zeros((length, BATCH_SIZE, HIDDEN))
        by_time = jax.grad(lambda m: loss_at(cell, params, *batch, m))(still)
        norms = jnp.sqrt(jnp.sum(by_time**2, axis=(1, 2)))
        return {
            "signal": norms[0] / norms[-1], "gradient": gradients[-1],
            "step": steps[-1],
        }  # fmt: skip

    return jax.vmap(one)(keys)
