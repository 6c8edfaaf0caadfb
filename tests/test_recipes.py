"""Each row of RECIPES.md takes the steps of its framework's rule, written in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax
from golden.record import relative_error
from rmsprop_jax import rmsprop

pytestmark = pytest.mark.optimized

RNG = np.random.default_rng(0)
START = RNG.normal(size=50).astype(np.float32)
GRADS = RNG.normal(size=(25, 50)) * 10 ** RNG.uniform(-4, 1, (25, 50))
GRADS = GRADS.astype(np.float32)


def rows():
    text = (Path(rmsprop_jax.__file__).parent / "RECIPES.md").read_text()
    cells = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return {name: (here, after) for name, _, here, after in cells[1:]}


def outside(v, eps):
    return np.sqrt(v) + eps


def inside(v, eps):
    return np.sqrt(v + eps)


def steps(
    lr, decay, eps, root, *, v0=0.0, centred=False, before=lambda g, p: g,
    momentum=0.0, of_steps=True, after=lambda p: p,
):  # fmt: skip
    """The path of a rule as frameworks write it, with E[g²] and E[g]."""
    p = START.astype(float)
    v, m, b = np.full(50, v0), np.zeros(50), np.zeros(50)
    for grad in GRADS.astype(float):
        g = before(grad, p)
        v = decay * v + (1 - decay) * g * g
        m = decay * m + (1 - decay) * g
        u = g / root(v - m * m if centred else v, eps)
        b = momentum * b + (lr * u if of_steps else u)
        p = after(p - (b if of_steps else lr * b))
    return p


def clipped(size):
    return lambda x, *_: np.clip(x, -size, size)


RULES = {
    "torch7": lambda: steps(0.01, 0.99, 1e-8, outside),
    "Chainer": lambda: steps(0.01, 0.99, 1e-8, outside),
    "Chainer, ε inside": lambda: steps(0.01, 0.99, 1e-8, inside),
    "Chainer, Graves": lambda: steps(
        1e-4, 0.95, 1e-4, inside, centred=True, momentum=0.9
    ),
    "Lasagne": lambda: steps(1.0, 0.9, 1e-6, inside),
    "Caffe": lambda: steps(0.01, 0.98, 1e-8, outside, before=lambda g, p: g + 5e-4 * p),
    "MXNet": lambda: steps(0.001, 0.9, 1e-8, inside),
    "MXNet, centred": lambda: steps(
        0.001, 0.95, 1e-8, inside, centred=True, momentum=0.9, after=clipped(0.5),
        before=lambda g, p: np.clip(g + 0.01 * p, -1, 1),
    ),
    "Optimisers.jl": lambda: steps(0.001, 0.9, 1e-8, outside),
    "Optimisers.jl, centred": lambda: steps(0.001, 0.9, 1e-8, outside, centred=True),
    "flax.optim, before 0.6": lambda: steps(0.001, 0.9, 1e-8, outside, centred=True),
    "MindSpore, v₀ = 1": lambda: steps(
        0.1, 0.9, 1e-10, inside, v0=1.0, momentum=0.9,
        before=lambda g, p: g + 1e-4 * p,
    ),
    "MindSpore, v₀ = 0": lambda: steps(
        0.1, 0.9, 1e-10, inside, momentum=0.9, before=lambda g, p: g + 1e-4 * p
    ),
    "DL4J": lambda: steps(0.1, 0.95, 1e-8, outside, v0=1e-8),
    "Burn": lambda: steps(0.01, 0.99, 1e-5, outside, momentum=0.9, of_steps=False),
    "char-rnn": lambda: steps(2e-3, 0.95, 1e-8, outside, before=clipped(5.0)),
    "WGAN": lambda: steps(5e-5, 0.99, 1e-8, outside, after=clipped(0.01)),
    "Inception v3": lambda: steps(0.045, 0.9, 1.0, inside, v0=1.0, momentum=0.9),
    "A3C": lambda: steps(7e-4, 0.99, 0.1, inside),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_row_takes_the_steps_of_its_rule(name):
    here, after = rows()[name]
    known = {"rmsprop": rmsprop, "optax": optax}
    tx = eval(here, known)

    @jax.jit
    def step(grad, state, params):
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (eval(after, known, {"params": params}) if after else params), state

    params = jnp.asarray(START)
    state = tx.init(params)
    for grad in GRADS:
        params, state = step(jnp.asarray(grad), state, params)
    assert relative_error(np.asarray(params), RULES[name]()) < 1e-5


def test_every_row_has_a_rule():
    assert list(rows()) == list(RULES)
