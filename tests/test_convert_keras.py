"""Files of Keras itself: read, gone on with, and given back to it."""

import os
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from golden.record import relative_error
from rmsprop_jax import convert

keras = pytest.importorskip("keras")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.optimized]
layers = keras.layers


class Subclassed(keras.Model):
    """Its variables are in the order of the attributes, and files sort those."""

    def __init__(self):
        super().__init__()
        self.b, self.a = layers.Dense(5, name="zz"), layers.Dense(3)

    def call(self, x):
        return self.a(self.b(x))


def nested():
    x = keras.Input((4,))
    inner = [layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.5)]
    inner = keras.Sequential([*inner, layers.Dense(4, use_bias=False)], name="inner")
    return keras.Model(x, layers.Dense(3)(inner(x)))


def recurrent():
    x = keras.Input((6, 4))
    lstm = layers.LSTM(3, return_sequences=True)
    h = layers.GRU(5, return_sequences=True)(layers.Bidirectional(lstm)(x))
    h = layers.LayerNormalization()(layers.MultiHeadAttention(2, 3)(h, h))
    return keras.Model(x, layers.Dense(3)(layers.SimpleRNN(4)(h)))


def frozen():
    first, last = layers.Dense(4, trainable=False), layers.Dense(3)
    return keras.Sequential([keras.Input((4,)), first, layers.Dense(4), last])


MODELS = {
    "subclassed": Subclassed,
    "nested": nested,
    "recurrent": recurrent,
    "frozen": frozen,
}
OPTIONS = {"momentum": 0.9, "centered": True, "weight_decay": 0.01}
UNSAID = {"rho": 0.9, "epsilon": 1e-7, "weight_decay": None}


def trained(make=nested, steps=4, policy="float32", optimizer=None, **options):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = make()
        optimizer = optimizer or keras.optimizers.RMSprop(0.01, **options)
        model.compile(optimizer, "mse", run_eagerly=True)
        rng = np.random.default_rng(0)
        shape = (6, 4) if make is recurrent else (4,)
        x, y = rng.normal(size=(steps * 4, *shape)), rng.normal(size=(steps * 4, 3))
        model.fit(x, y, batch_size=4, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def inner(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def tree_of(model, values):
    tree = {}
    for variable, value in zip(model.trainable_variables, values, strict=True):
        *path, leaf = variable.path.split("/")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = jnp.asarray(np.asarray(value))
    return tree


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def paths(model):
    return [variable.path for variable in model.trainable_variables]


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_all_kinds_go_on_there_and_back(kind, suffix, tmp_path):
    model = trained(MODELS[kind], **OPTIONS)
    path, back = tmp_path / f"m{suffix}", tmp_path / f"back{suffix}"
    write = model.save if suffix == ".keras" else model.save_weights
    write(path)
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    given = {} if suffix == ".keras" else {**UNSAID, **OPTIONS}
    restored = convert.load(path, shapes, names=paths(model), **given)
    assert restored.step == 4
    assert_same(restored.params, tree_of(model, model.trainable_variables))
    state, params = restored.state, restored.params
    rng = np.random.default_rng(1)
    for _ in range(5):
        grads = [
            rng.normal(size=v.shape).astype("f") for v in model.trainable_variables
        ]
        model.optimizer.apply(
            [keras.ops.convert_to_tensor(g) for g in grads], model.trainable_variables
        )
        updates, state = restored.optimizer.update(tree_of(model, grads), state, params)
        params = optax.apply_updates(params, updates)
    expected = tree_of(model, model.trainable_variables)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        assert relative_error(np.asarray(ours), np.asarray(theirs)) < 1e-5
    convert.save(
        back, state, params, "keras", restored.groups, like=path, names=paths(model)
    )
    other = trained(MODELS[kind], steps=1, **OPTIONS)
    if suffix == ".keras" and kind != "subclassed":
        other = keras.models.load_model(back)
    elif suffix != ".keras":
        other.load_weights(back)
    else:
        return
    assert_same(tree_of(model, other.trainable_variables), params)
    for ours, theirs in zip(
        other.optimizer.variables, model.optimizer.variables, strict=True
    ):
        assert relative_error(np.asarray(ours), np.asarray(theirs)) < 1e-5


@pytest.mark.parametrize("kind", ["nested", "recurrent", "frozen"])
def test_a_described_model_needs_no_names(kind, tmp_path):
    model = trained(MODELS[kind], momentum=0.9)
    model.save(tmp_path / "m.keras")
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    velocities = tree_of(model, model.optimizer._velocities)
    if kind == "frozen":  # a Sequential's own name is part of paths
        shapes, velocities = shapes["sequential"], velocities["sequential"]
    restored = convert.load(tmp_path / "m.keras", shapes)
    assert_same(optax.tree_utils.tree_get(restored.state, "nu"), velocities)


def test_a_subclassed_model_asks_for_names(tmp_path):
    model = trained(Subclassed)
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="does not name them: pass"):
        convert.load(tmp_path / "m.keras", {"w": jnp.zeros(3)})


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_schedule_s_rate_is_not_taken_for_a_weight(suffix, tmp_path):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.9)
    model = trained(optimizer=keras.optimizers.RMSprop(schedule, momentum=0.9))
    path = tmp_path / f"m{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    given = {} if suffix == ".keras" else {**UNSAID, "momentum": 0.9}
    load = partial(convert.load, path, shapes, names=paths(model), **given)
    with pytest.raises(ValueError, match="does not hold `learning_rate`"):
        load()
    restored = load(learning_rate=optax.exponential_decay(0.01, 5, 0.9))
    velocities = tree_of(model, model.optimizer._velocities)
    assert_same(optax.tree_utils.tree_get(restored.state, "nu"), velocities)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_the_variables_of_a_scaled_loss_are_not_rmsprop_s(suffix, momentum, tmp_path):
    model = trained(policy="mixed_float16", momentum=momentum)
    path, back = tmp_path / f"m{suffix}", tmp_path / f"back{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    given = {} if suffix == ".keras" else {**UNSAID, "momentum": momentum}
    restored = convert.load(path, shapes, names=paths(model), **given)
    own = inner(model)
    assert own is not model.optimizer
    assert restored.step == int(own.iterations)
    nu = optax.tree_utils.tree_get(restored.state, "nu")
    assert_same(nu, tree_of(model, own._velocities))
    state = jax.tree.map(lambda x: x + 1, restored.state)
    convert.save(
        back, state, shapes, "keras", restored.groups, like=path, names=paths(model)
    )
    again = trained(policy="mixed_float16", steps=1, momentum=momentum)
    again.load_weights(back)
    for ours, theirs in zip(inner(again)._velocities, own._velocities, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs) + 1)


def test_gathered_gradients_are_not_velocities(tmp_path):
    model = trained(steps=8, momentum=0.9, gradient_accumulation_steps=2)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    load = partial(convert.load, params=shapes, names=paths(model))
    restored = load(tmp_path / "m.keras")
    assert restored.step == 4 == int(model.optimizer.iterations)
    assert "optax.MultiSteps(restored.optimizer, 2)" in restored.left_out[0]
    nu = optax.tree_utils.tree_get(restored.state, "nu")
    assert_same(nu, tree_of(model, model.optimizer._velocities))
    for given in ({"momentum": 0.9}, {"momentum": 0.9, "centered": False}):
        with pytest.raises(ValueError, match=r"gathers? gradients|gathered gradients"):
            load(tmp_path / "m.weights.h5", **UNSAID, **given)
    model = trained(steps=5, gradient_accumulation_steps=2)
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="save it after a multiple of 2 batches"):
        load(tmp_path / "m.keras")


def test_averages_of_the_weights_are_not_velocities(tmp_path):
    model = trained(momentum=0.9, use_ema=True)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    shapes = jax.eval_shape(lambda: tree_of(model, model.trainable_variables))
    load = partial(convert.load, params=shapes, names=paths(model))
    restored = load(tmp_path / "m.keras")
    assert "use_ema" in restored.left_out[0]
    nu = optax.tree_utils.tree_get(restored.state, "nu")
    assert_same(nu, tree_of(model, model.optimizer._velocities))
    with pytest.raises(ValueError, match="averages of the weights"):
        load(tmp_path / "m.weights.h5", **UNSAID, momentum=0.9)


@pytest.mark.parametrize("kind", ["legacy", "later"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_the_older_keras_s_files_go_on_there_and_back(kind, suffix, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    optimizers = tf_keras.optimizers
    optimizers = optimizers.legacy if kind == "legacy" else optimizers
    stack = [tf_keras.layers.Dense(5, name="one"), tf_keras.layers.Dense(3, name="two")]
    model = tf_keras.Sequential([tf_keras.layers.Input((4,)), *stack])
    model.compile(optimizers.RMSprop(0.01, momentum=0.9, centered=True), "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(16, 4)), rng.normal(size=(16, 3)), 4, verbose=0)
    path, back = tmp_path / f"m{suffix}", tmp_path / f"back{suffix}"
    model.save(path)
    shapes = {
        name: {"kernel": jnp.zeros(layer.kernel.shape), "bias": jnp.zeros(layer.units)}
        for name, layer in zip(("one", "two"), stack, strict=True)
    }
    if (kind, suffix) == ("legacy", ".keras"):
        with pytest.raises(ValueError, match="legacy optimizers only"):
            convert.load(path, shapes)
        return
    restored = convert.load(path, shapes)
    assert restored.dialect == ("tf_keras" if kind == "legacy" else "keras")
    assert restored.step == 4
    assert restored.hyperparameters["learning_rate"] == pytest.approx(0.01)
    tree = {
        n: {"kernel": v.kernel, "bias": v.bias}
        for n, v in zip(shapes, stack, strict=True)
    }
    assert_same(restored.params, jax.tree.map(np.asarray, tree))
    state, params = restored.state, restored.params
    for _ in range(5):
        grads = [
            rng.normal(size=v.shape).astype("f") for v in model.trainable_variables
        ]
        model.optimizer.apply_gradients(
            zip(grads, model.trainable_variables, strict=True)
        )
        keyed = dict(
            zip((v.name for v in model.trainable_variables), grads, strict=True)
        )
        g = {n: {leaf: keyed[f"{n}/{leaf}:0"] for leaf in shapes[n]} for n in shapes}
        updates, state = restored.optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, tree)), strict=True):
        assert relative_error(np.asarray(ours), np.asarray(theirs)) < 1e-5
    convert.save(back, state, params, restored.dialect, restored.groups, like=path)
    other = tf_keras.models.load_model(back)
    theirs = (*model.weights, *(model.optimizer.variables if kind == "later" else ()))
    written = (*other.weights, *(other.optimizer.variables if kind == "later" else ()))
    for one, two in zip(written, theirs, strict=True):
        assert relative_error(np.asarray(one), np.asarray(two)) < 1e-5
    again = convert.load(back, shapes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), again.state, state)
