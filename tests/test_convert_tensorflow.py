"""Checkpoints of TensorFlow, made by it: read, gone on with, and given back to it."""

import os
import sys
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from golden.record import relative_error
from rmsprop_jax import convert

tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.optimized]

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 30, 8, 3)).astype(np.float32)
W, B = RNG.normal(size=(3, 3)).astype(np.float32), np.zeros(3, np.float32)
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"momentum": 0.9, "centered": True},
}
TF1 = {"learning_rate": 0.01, "decay": 0.9, "momentum": 0.0, "epsilon": 1e-3}


class Run:
    """A linear model, its optimizer of TensorFlow or Keras, and its steps."""

    def __init__(self, optimizer):
        self.model = tf.Module()
        self.model.w = tf.Variable(W, name="w")
        self.model.b = tf.Variable(B, name="b")
        self.variables = [self.model.w, self.model.b]
        self.optimizer = optimizer
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=optimizer)

    def steps(self, start, end):
        for x, y in zip(X[start:end], Y[start:end], strict=True):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((x @ self.model.w + self.model.b - y) ** 2)
            grads = tape.gradient(loss, self.variables)
            self.optimizer.apply_gradients(zip(grads, self.variables, strict=True))
        return self.params()

    def params(self):
        return {v.name.split(":")[0]: v.numpy() for v in self.variables}


def shapes():
    return {
        "w": jax.ShapeDtypeStruct((3, 3), "f4"),
        "b": jax.ShapeDtypeStruct((3,), "f4"),
    }


def ours(restored, start, end):
    params, state = restored.params, restored.state
    for x, y in zip(X[start:end], Y[start:end], strict=True):
        grads = jax.grad(lambda p, x, y: jnp.mean((x @ p["w"] + p["b"] - y) ** 2))(
            params, x, y
        )
        updates, state = restored.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(actual, expected):
    for name, value in expected.items():
        assert relative_error(np.asarray(actual[name]), value) < 1e-5, name


def make(kind, options):
    """Returns an optimizer's constructor, what its checkpoints lack and its dialect."""
    moves = {"momentum": options.get("momentum", 0.0)}
    if kind == "v1":
        optimizer = tf.compat.v1.train.RMSPropOptimizer
        lacking, dialect = {**TF1, **moves}, "tf1"
    elif kind == "legacy":
        optimizer = pytest.importorskip("tf_keras").optimizers.legacy.RMSprop
        lacking, dialect = {"epsilon": 1e-3}, "tf_keras"
    else:
        keras = pytest.importorskip("keras" if kind == "keras" else "tf_keras")
        if kind == "keras" and keras.config.backend() != "tensorflow":
            pytest.skip("Keras runs on something else")
        optimizer = keras.optimizers.RMSprop
        lacking = {"rho": 0.9, "epsilon": 1e-3, "weight_decay": None, **moves}
        dialect = "keras"
    return partial(optimizer, 0.01, epsilon=1e-3, **options), lacking, dialect


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["v1", "legacy", "later", "keras"])
def test_an_object_based_checkpoint_goes_on_there_and_back(kind, option, tmp_path):
    options = OPTIONS[option]
    started, lacking, dialect = make(kind, options)
    run = Run(started())
    run.steps(0, 10)
    path = run.checkpoint.save(str(tmp_path / "ck"))
    restored = convert.load(path, shapes(), **lacking)
    assert restored.dialect == dialect
    assert restored.step == (None if kind == "v1" else 10)
    expected = run.steps(10, 20)
    params, state = ours(restored, 10, 20)
    assert_close(params, expected)
    back = tmp_path / "back"
    convert.save(back, state, params, dialect, restored.groups, like=path)
    other = Run(started())
    other.checkpoint.restore(str(back)).assert_existing_objects_matched()
    assert_close(other.params(), expected)
    assert_close(other.steps(20, 30), run.steps(20, 30))


def saved_by_saver(folder, version, optimizers=1, **options):
    """A checkpoint of TF1's Saver, and all its tensors."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("w", initializer=W, use_resource=False)
        loss = tf.reduce_mean((X[0] @ w - Y[0]) ** 2)
        step = v1.train.get_or_create_global_step()
        train = [
            v1.train.RMSPropOptimizer(0.01, epsilon=1e-3, **options).minimize(
                loss, step
            )
            for _ in range(optimizers)
        ]
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run(train)
        saver = v1.train.Saver(write_version=version)
        path = saver.save(session, str(folder / "model.ckpt"), global_step=3)
        names = [v.op.name for v in v1.global_variables()]
        return path, dict(zip(names, session.run(v1.global_variables()), strict=True))


@pytest.mark.parametrize("version", [1, 2])
def test_both_formats_of_the_saver_are_read_and_written(version, tmp_path):
    path, tensors = saved_by_saver(tmp_path, version, momentum=0.9, centered=True)
    params = {"w": jax.ShapeDtypeStruct((3, 3), "f4")}
    for source in (path, tmp_path):
        restored = convert.load(source, params, **{**TF1, "momentum": 0.9})
        assert restored.step == tensors["global_step"] == 3
        trace = optax.tree_utils.tree_get(restored.state, "trace")["w"]
        np.testing.assert_array_equal(trace, -tensors["w/RMSProp_2"])
    save = (restored.state, {"w": restored.params["w"]}, "tf1", restored.groups)
    convert.save(tmp_path / "back", *save, like=path)
    reader = tf.train.load_checkpoint(str(tmp_path / "back"))
    assert {*reader.get_variable_to_shape_map()} == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_allclose(reader.get_tensor(name), value, rtol=3e-7)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_variables_of_a_saved_model_are_read(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, name="d")])
    model.compile(tf_keras.optimizers.legacy.RMSprop(0.01, momentum=0.9), "mse")
    model.fit(X[0], Y[0], verbose=0)
    model.save(tmp_path / "saved", save_format="tf")
    model.save_weights(tmp_path / "weights")
    params = {"d": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
    for path in (tmp_path / "saved", tmp_path / "weights"):
        restored = convert.load(path, params, epsilon=1e-7)
        kernel = model.trainable_variables[0]
        expected = model.optimizer.get_slot(kernel, "rms")
        np.testing.assert_array_equal(restored.state[0].nu["d"]["kernel"], expected)
        assert restored.hyperparameters["momentum"] == np.float32(0.9)


def test_slots_of_several_optimizers_are_told_apart(tmp_path):
    path, tensors = saved_by_saver(tmp_path, 2, optimizers=2, momentum=0.9)
    params = {"w": jax.ShapeDtypeStruct((3, 3), "f4")}
    given = {**TF1, "momentum": 0.9}
    with pytest.raises(ValueError, match=r"w has 4 slots.* of several optimizers"):
        convert.load(path, params, **given)
    for name in ("RMSProp", "RMSProp_2"):
        restored = convert.load(path, params, centered=False, name=name, **given)
        np.testing.assert_array_equal(restored.state[0].nu["w"], tensors[f"w/{name}"])


def test_a_move_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    from rmsprop_jax.convert import _tf1

    _tf1.save(tmp_path / "x", {"a": np.ones(3)})
    os.remove(tmp_path / "x.index")
    (tmp_path / "x.index").mkdir()
    before = (tmp_path / "x.data-00000-of-00001").read_bytes()
    with pytest.raises(ValueError, match="only regular files"):
        _tf1.save(tmp_path / "x", {"a": np.zeros(3)})
    (tmp_path / "x.index").rmdir()
    replace = type(tmp_path).replace

    def fails(self, target):
        if str(target).endswith("x.index"):
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        _tf1.save(tmp_path / "x", {"a": np.zeros(3)})
    assert (tmp_path / "x.data-00000-of-00001").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_without_tensorflow_the_error_shows_how_to_export_once(tmp_path, monkeypatch):
    path, tensors = saved_by_saver(tmp_path, 2, momentum=0.9)
    params = {"w": jax.ShapeDtypeStruct((3, 3), "f4")}
    given = {**TF1, "momentum": 0.9}
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"tensorflow-cpu. Or where") as caught:
        convert.load(path, params, **given)
    recipe = str(caught.value).partition("once: ")[2].partition("; and pass")[0]
    monkeypatch.chdir(tmp_path)
    exec(recipe, {"tf": tf, "np": np})
    restored = convert.load(dict(np.load("slots.npz")), params, **given)
    np.testing.assert_array_equal(restored.state[0].nu["w"], tensors["w/RMSProp"])
