"""Flax training steps, in both of its APIs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState

from rmsprop_jax import rmsprop
from table import abstract, assert_close

pytestmark = pytest.mark.promotion

X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4)), jnp.float32)
Y = jnp.sin(X.sum(-1, keepdims=True))
OPTIONS = {"momentum": 0.9, "weight_decay": 1e-4, "centered": True}


class Net(nnx.Module):
    def __init__(self, rngs, dtype=jnp.float32):
        self.hidden = nnx.Linear(4, 16, rngs=rngs, param_dtype=dtype)
        self.norm = nnx.BatchNorm(16, rngs=rngs, param_dtype=dtype)
        self.out = nnx.Linear(16, 1, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        return self.out(nnx.tanh(self.norm(self.hidden(x))))


@nnx.jit
def nnx_step(model, optimizer):
    def loss(model):
        return jnp.mean((model(X) - Y) ** 2)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nnx_optimizer_trains(dtype):
    model = Net(nnx.Rngs(0), jnp.dtype(dtype))
    optimizer = nnx.Optimizer(model, rmsprop(0.01, **OPTIONS), wrt=nnx.Param)
    start = abstract(nnx.state(optimizer))
    losses = [float(nnx_step(model, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    assert abstract(nnx.state(optimizer)) == start
    kernel = nnx.state(model, nnx.Param)["hidden"]["kernel"]
    assert kernel[...].dtype == dtype


def test_nnx_optimizer_with_a_partial_wrt_moves_only_that_part():
    model = Net(nnx.Rngs(0))
    head = nnx.All(nnx.Param, nnx.PathContains("out"))
    optimizer = nnx.Optimizer(model, rmsprop(0.01, **OPTIONS), wrt=head)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(X) - Y) ** 2)

        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, head))(model)
        optimizer.update(model, grads)
        return value

    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    losses = [float(step(model, optimizer)) for _ in range(10)]
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert losses[-1] < losses[0]
    assert_close(after["hidden"], before["hidden"])
    assert not np.allclose(after["out"]["kernel"], before["out"]["kernel"])


def test_linen_train_state_trains_and_serializes():
    class Mlp(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(jnp.tanh(linen.Dense(16)(x)))

    model = Mlp()
    params = model.init(jax.random.key(0), X)["params"]
    tx = rmsprop(optax.cosine_decay_schedule(0.01, 60), **OPTIONS)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    start, losses = abstract(state.opt_state), []
    for _ in range(60):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    assert abstract(state.opt_state) == start
    blob = serialization.to_bytes(state.opt_state)
    empty = tx.init(params)
    assert_close(serialization.from_bytes(empty, blob), state.opt_state)


def test_linen_partitioned_boxes_pass_through():
    model = linen.Dense(
        3,
        kernel_init=linen.with_partitioning(
            linen.initializers.lecun_normal(), (None, "data")
        ),
    )
    params = model.init(jax.random.key(0), X)["params"]
    tx = rmsprop(0.1, **OPTIONS)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["kernel"].names == (None, "data")
    assert state[1].nu["kernel"].names == (None, "data")
