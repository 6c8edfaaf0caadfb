"""One call fills what trains: an NNX optimizer or a Linen train state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from rmsprop_jax import convert, dialects

SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 4), "1.bias": (2,)}
X = jnp.ones((5, 3))


def source(**options):
    """A torch run's file, with weights and a momentum."""
    rng = np.random.default_rng(0)
    model = {k: rng.normal(size=v).astype("f") for k, v in SHAPES.items()}
    state = {
        i: {"step": 7, "square_avg": w**2 + 0.1, "momentum_buffer": w}
        for i, w in enumerate(model.values())
    }
    group = {"lr": 0.1, "alpha": 0.9, "momentum": 0.9, "foreach": None, **options}
    groups = [{**group, "params": list(state)}]
    return {"model": model, "optimizer": {"state": state, "param_groups": groups}}


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(1)
        self.layers = nnx.List(
            [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)]
        )
        self.count = nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="layers_1")(jnp.tanh(nn.Dense(4, name="layers_0")(x)))


def pure(model):
    return nnx.as_pure(nnx.state(model, nnx.Param))


def loss(model):
    return jnp.sum(model(X) ** 2)


def expected():
    """The parameters two steps after the file, by the dialect alone."""
    restored = convert.load(source(), pure(Net()))
    params, state, model = restored.params, restored.state, Net()
    for _ in range(2):
        nnx.update(model, params)
        grads = nnx.as_pure(nnx.grad(loss)(model))
        updates, state = restored.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize("target", ["model", "optimizer", "both"])
def test_a_model_of_nnx_goes_on(target):
    model = Net()
    restored = convert.load(source(), model)
    if target == "model":
        optimizer = convert.resume(model, restored)
    elif target == "optimizer":
        made = nnx.Optimizer(model, restored.optimizer, wrt=nnx.Param)
        optimizer = convert.resume(made, restored)
        assert optimizer is made
        nnx.update(model, restored.params)  # an optimizer of NNX has no model
    else:
        made = nnx.ModelAndOptimizer(model, restored.optimizer, wrt=nnx.Param)
        optimizer = convert.resume(made, restored)
    assert optimizer.step[...] == 7
    for _ in range(2):
        grads = nnx.grad(loss)(model)
        optimizer.update(*((grads,) if target == "both" else (model, grads)))
    assert optimizer.step[...] == 9
    assert_close(pure(model), expected())


@pytest.mark.parametrize("step", [0, jnp.zeros((), jnp.int32)])
def test_a_train_state_of_linen_goes_on(step):
    model = LinenNet()
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.1))
    state = state.replace(step=step)
    state = convert.resume(state, convert.load(source(), state))
    assert state.step == 7
    assert type(state.step) is type(step)
    for _ in range(2):
        grads = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, X) ** 2))(
            state.params
        )
        state = state.apply_gradients(grads=grads)
    assert state.step == 9
    for i, layer in enumerate(expected()["layers"].values()):
        assert_close(dict(state.params[f"layers_{i}"]), dict(layer))


def test_what_does_not_fit_changes_nothing():
    model = Net()
    restored = convert.load(source(), model)
    before = pure(model)
    other = nnx.ModelAndOptimizer(model, optax.adam(0.1), wrt=nnx.Param)
    with pytest.raises(
        ValueError, match=r"or another optimizer \(0/count, 0/mu/layers"
    ):
        convert.resume(other, restored)
    with pytest.raises(ValueError, match="other parameters"):
        convert.resume(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), restored)
    with pytest.raises(ValueError, match="give `step`"):
        convert.resume(model, restored._replace(step=None))
    with pytest.raises(TypeError, match="`target` must be a model"):
        convert.resume({"w": jnp.ones(3)}, restored)
    jax.tree.map(np.testing.assert_array_equal, pure(model), before)


def test_what_is_no_tree_says_which_tree_is_meant():
    model = Net()
    optimizer = nnx.Optimizer(model, dialects.torch(), wrt=nnx.Param)
    for params, words in (
        (LinenNet(), r'variables\["params"\]'),
        (optimizer, "pass its model"),
        ({"w": jnp.ones(3), "activation": jax.nn.relu}, "eqx.filter"),
    ):
        with pytest.raises(TypeError, match=words):
            convert.load(source(), params)


def test_a_model_is_written_as_its_tree_would_be():
    model = Net()
    restored = convert.load(source(), model)
    convert.resume(model, restored)
    save = (restored.state, model, "torch", restored.groups)
    back = convert.export(*save, like=source())
    for name, value in source()["model"].items():
        np.testing.assert_array_equal(back["model"][name], value)
