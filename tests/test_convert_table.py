"""CONVERT.md says what was computed: each source goes on here, and back there."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax
from golden.record import relative_error
from rmsprop_jax import convert

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.optimized]
RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(4, 3)).astype("f"), RNG.normal(size=3).astype("f")
GRADS = [
    {"w": RNG.normal(size=(4, 3)).astype("f"), "b": RNG.normal(size=3).astype("f")}
    for _ in range(30)
]
MOVES = {"momentum": 0.9, "centered": True}


class Torch:
    """Two parameters of torch, in a module so that files hold them under names."""

    load = "restored = convert.load(path, params)"

    def __init__(self, write):
        self.torch = pytest.importorskip("torch")
        self.write = write
        self.model = self.torch.nn.Module()
        self.model.w = self.torch.nn.Parameter(self.torch.tensor(W.copy()))
        self.model.b = self.torch.nn.Parameter(self.torch.tensor(B.copy()))
        made = self.torch.optim.RMSprop(self.model.parameters(), 0.01, **MOVES)
        self.optimizer = made

    def values(self):
        return {n: p.detach().numpy() for n, p in self.model.named_parameters()}

    def apply(self, grads):
        for name, parameter in self.model.named_parameters():
            parameter.grad = self.torch.tensor(grads[name])
        self.optimizer.step()

    def save(self, path):
        return self.write(self.model, self.optimizer, path)

    def restore(self, path):
        at = convert._torch_files.parts_of(convert._torch_files.load(path))
        model = {k.removeprefix("net."): v for k, v in at.model.items()}
        tensors = {k: self.torch.tensor(np.array(v)) for k, v in model.items()}
        self.model.load_state_dict(tensors)
        self.optimizer.load_state_dict(at.optimizer)


class Lightning(Torch):
    def tree(self, values):
        return {"net": values}


class Trainer(Torch):
    load = (
        'names = ["w", "b"]  # of model.named_parameters()\n'
        "restored = convert.load(path, params, names=names)"
    )
    like = ", names=names"


class TensorFlow:
    """Two variables of TensorFlow and a checkpoint of its own."""

    load = "restored = convert.load(path, params, epsilon=1e-3, **run)"

    def __init__(self, kind):
        self.run = {"learning_rate": 0.01, "decay": 0.9, "momentum": 0.9}
        self.tf = tf = pytest.importorskip("tensorflow")
        self.kind = kind
        self.module = tf.Module()
        self.module.w, self.module.b = (
            tf.Variable(W, name="w"),
            tf.Variable(B, name="b"),
        )
        if kind == "legacy":
            make = pytest.importorskip("tf_keras").optimizers.legacy.RMSprop
            self.run = {}
        elif kind == "keras":
            keras = pytest.importorskip("keras")
            if keras.config.backend() != "tensorflow":
                pytest.skip("Keras runs on something else")
            make = keras.optimizers.RMSprop
            self.run = {"rho": 0.9, "momentum": 0.9, "weight_decay": None}
        else:
            make = tf.compat.v1.train.RMSPropOptimizer
        self.optimizer = make(0.01, epsilon=1e-3, **MOVES)

    def values(self):
        return {"w": self.module.w.numpy(), "b": self.module.b.numpy()}

    def apply(self, grads):
        pairs = [(self.tf.constant(grads[n]), getattr(self.module, n)) for n in "wb"]
        self.optimizer.apply_gradients(pairs)

    def saver(self):
        v1 = self.tf.compat.v1
        names = {"w": self.module.w, "b": self.module.b}
        for name, variable in tuple(names.items()):  # as a graph would name the slots
            for slot, end in (("rms", ""), ("mg", "_1"), ("momentum", "_2")):
                slots = self.optimizer.get_slot(variable, slot)
                names[f"{name}/RMSProp{end}"] = slots
        version = 1 if self.kind == "first" else 2
        return v1.train.Saver(names, write_version=version)

    def checkpoint(self):
        return self.tf.train.Checkpoint(model=self.module, optimizer=self.optimizer)

    def save(self, path):
        if self.kind in ("first", "second"):
            return self.saver().save(None, str(path))
        return self.checkpoint().save(str(path))

    def restore(self, path):
        self.apply(GRADS[0])  # or there are no slots yet
        if self.kind in ("first", "second"):
            self.saver().restore(None, str(path))
        else:
            self.checkpoint().restore(str(path)).assert_existing_objects_matched()


class Keras:
    """A Dense layer of Keras 3 or of tf_keras, in a file of the whole model."""

    load = "restored = convert.load(path, params)"
    like = ""

    def __init__(self, package, suffix, legacy=False):
        self.keras = pytest.importorskip(package)
        self.suffix = suffix
        layers, optimizers = self.keras.layers, self.keras.optimizers
        stack = [layers.Input((4,)), layers.Dense(3, name="d")]
        self.model = self.keras.Sequential(stack)
        self.model.set_weights([W, B])
        make = (optimizers.legacy if legacy else optimizers).RMSprop
        self.model.compile(make(0.01, **MOVES), "mse")
        if suffix == ".weights.h5":
            self.load = (
                'run = {"rho": 0.9, "momentum": 0.9, "centered": True,'
                ' "epsilon": 1e-7, "weight_decay": None}\n'
                'restored = convert.load(path, params, names=["d/kernel", "d/bias"],'
                " **run)"
            )
            self.like = ', names=["d/kernel", "d/bias"]'

    def tree(self, values):
        return {"d": {"kernel": values["w"], "bias": values["b"]}}

    def values(self):
        return dict(zip("wb", map(np.asarray, self.model.get_weights()), strict=True))

    def apply(self, grads):
        variables = self.model.trainable_variables
        arrays = grads["w"], grads["b"]
        if hasattr(self.keras, "ops"):
            arrays = map(self.keras.ops.convert_to_tensor, arrays)
        self.model.optimizer.apply_gradients(zip(arrays, variables, strict=True))

    def save(self, path):
        path = f"{path}{self.suffix}"
        weights = self.suffix == ".weights.h5"
        (self.model.save_weights if weights else self.model.save)(path)
        return path

    def restore(self, path):
        if self.suffix == ".weights.h5":
            self.apply(GRADS[0])
            self.model.load_weights(path)
        else:
            self.model = self.keras.models.load_model(path)


class Optax:
    """A state of optax.rmsprop and parameters, as Flax's msgpack."""

    load = "restored = convert.load(path, params, learning_rate=0.01, **run)"

    def __init__(self):
        self.run = {"decay": 0.9, "eps": 1e-8, "momentum": 0.9}
        self.tx = optax.rmsprop(0.01, **MOVES)
        self.params = {"w": jnp.asarray(W), "b": jnp.asarray(B)}
        self.state = self.tx.init(self.params)

    def values(self):
        return self.params

    def apply(self, grads):
        with jax.numpy_dtype_promotion("standard"):
            updates, self.state = self.tx.update(grads, self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)

    def save(self, path):
        path = path.with_suffix(".msgpack")
        content = {"params": self.params, "opt_state": self.state}
        path.write_bytes(flax.serialization.to_bytes(content))
        return path

    def restore(self, path):
        self.state = flax.serialization.from_bytes(self.state, path.read_bytes())


def pt(model, optimizer, path):
    import torch

    path = path.with_suffix(".pt")
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, path)
    return path


def by(name, suffix=""):
    def write(model, optimizer, path):
        import test_convert_torch_files as files

        return getattr(files, name)(model, optimizer, path.with_suffix(suffix))

    return write


SOURCES = {
    "torch, `.pt`": lambda: Torch(pt),
    "torch, Lightning `.ckpt`": lambda: Lightning(by("lightning", ".ckpt")),
    "torch, Hugging Face's Trainer": lambda: Trainer(by("trainer")),
    "torch, Stable-Baselines3 `.zip`": lambda: Torch(by("stable_baselines", ".zip")),
    "Keras 3, `.keras`": lambda: Keras("keras", ".keras"),
    "Keras 3, `.weights.h5`": lambda: Keras("keras", ".weights.h5"),
    "tf_keras, legacy, `.h5`": lambda: Keras("tf_keras", ".h5", legacy=True),
    "tf_keras, `.h5`": lambda: Keras("tf_keras", ".h5"),
    "tf_keras, `.keras`": lambda: Keras("tf_keras", ".keras"),
    "TF1, Saver's second format": lambda: TensorFlow("second"),
    "TF1, Saver's first format": lambda: TensorFlow("first"),
    "TF2, object-based, TF1's optimizer": lambda: TensorFlow("objects"),
    "TF2, object-based, legacy tf_keras": lambda: TensorFlow("legacy"),
    "TF2, object-based, Keras 3": lambda: TensorFlow("keras"),
    "Optax, `.msgpack`": Optax,
}


def rows():
    text = (Path(rmsprop_jax.__file__).parent / "CONVERT.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells[1:]}


def error(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(relative_error(np.asarray(a), np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_is_what_is_computed(name, tmp_path):
    taken, exact, back, lines = rows()[name]
    theirs = SOURCES[name]()
    tree = getattr(theirs, "tree", lambda values: values)
    for grads in GRADS[:10]:
        theirs.apply(grads)
    path = theirs.save(tmp_path / "run")
    suffix = "".join(Path(path).suffixes) if Path(path).is_file() else ""
    target = tmp_path / f"back{suffix}"
    if Path(path).is_dir():
        target.mkdir()
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(theirs.values())))
    known = {"convert": convert, "path": path, "target": target, "params": shapes}
    known["run"] = getattr(theirs, "run", {})
    exec(theirs.load, known)
    assert taken == "yes"
    restored = known["restored"]
    params, state = restored.params, restored.state
    for grads in GRADS[10:20]:
        theirs.apply(grads)
        updates, state = restored.optimizer.update(
            jax.tree.map(jnp.asarray, tree(grads)), state, params
        )
        params = optax.apply_updates(params, updates)
    assert error(params, tree(theirs.values())) < float(exact)
    like = f", like=path{getattr(theirs, 'like', '')}"
    group = "restored.groups"
    if isinstance(theirs, Optax):
        like, group = "", "restored.hyperparameters"
    write = f"convert.save(target, state, params, restored.dialect, {group}{like})"
    exec(write, {**known, "state": state, "params": params})
    assert len(f"{theirs.load}\n{write}".splitlines()) == int(lines)
    other = SOURCES[name]()
    other.restore(target)
    for grads in GRADS[20:]:
        theirs.apply(grads)
        if isinstance(other, Optax):
            other.params = params if grads is GRADS[20] else other.params
        other.apply(grads)
    assert error(other.values(), theirs.values()) < float(exact)
    assert back == "yes"


def test_every_row_is_computed():
    assert list(rows()) == list(SOURCES)
