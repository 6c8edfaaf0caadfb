"""Checkpoints of real frameworks go on here as they went on there, and back again."""

import json
import shutil
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from rmsprop_jax import convert, dialects, rmsprop
from rmsprop_jax.convert import _torch, _torch_files

FOLDER = Path(__file__).parent / "golden" / "checkpoints"
FRAMEWORKS = {"bnb": "bitsandbytes"}
FILES = {
    "torch": ("checkpoint.safetensors", "checkpoint.pt"),
    "timm": ("checkpoint.safetensors", "checkpoint.pt"),
    "sb3": ("checkpoint.safetensors", "checkpoint.pt"),
    "bnb": ("checkpoint.safetensors", "checkpoint.pt"),
    "keras": ("model.keras",),
    "tf1": ("model.ckpt-10",),
    "optax": ("state.msgpack", "state_leaves.npz"),
}
SAVED, STEPS = 10, 20


def checkpoints():
    for folder in sorted(FOLDER.iterdir()):
        meta = json.loads((folder / "meta.json").read_text())
        for file in FILES[meta["framework"]]:
            yield pytest.param(folder, file, id=f"{folder.name}-{file}")


CHECKPOINTS = list(checkpoints())


class Run:
    """A recorded run: what it was started with, its gradients and its parameters."""

    def __init__(self, folder):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.framework = self.meta["framework"]
        self.is_torch = self.framework in ("torch", "timm", "sb3", "bnb")
        with np.load(folder / "trajectory.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.rates = self.arrays["lr"].reshape(STEPS, -1)

    def tree(self, kind, step):
        """Parameters or gradients as a Flax module would have them."""
        tree = {}
        for name, values in self.arrays.items():
            if name.startswith(f"{kind}/"):
                name, value = name.removeprefix(f"{kind}/"), jnp.asarray(values[step])
                if self.is_torch:
                    value, name = value.T, f"layers_{name.replace('.', '/')}"
                    name = name.replace("weight", "kernel")
                *path, leaf = name.split("/")
                branch = tree
                for part in path:
                    branch = branch.setdefault(part, {})
                branch[leaf] = value
        return tree

    def arguments(self, numbers=False):
        """What the file does not hold, and the learning rate as it went on."""
        rates = tuple(jnp.asarray(rates) for rates in self.rates.T)
        schedules = tuple(partial(jnp.take, rate) for rate in rates)
        if numbers:
            schedules = tuple(float(rate[SAVED]) for rate in rates)
        if self.is_torch:
            framework = {"framework": "sb3"} if self.framework == "sb3" else {}
            return {"lr": schedules, **framework}
        given = {"learning_rate": schedules[0]}
        if self.framework == "optax":
            return given | {"decay": 0.9, "eps": 1e-8} | self.meta["kwargs"]
        if self.framework == "tf1":
            defaults = {"decay": 0.9, "momentum": 0.0, "epsilon": 1e-10}
            kwargs = {k: v for k, v in self.meta["kwargs"].items() if k != "centered"}
            return given | defaults | kwargs
        return given

    def rule(self):
        if self.framework != "keras":
            return None
        modules = {name.rsplit("/", 1)[0] for name, _ in self.meta["model_variables"]}
        return convert.same({name: name.split("/", 1)[1] for name in modules})


def restore(folder, file, **arguments):
    if file.endswith(".pt"):
        pytest.importorskip("torch")
    run = Run(folder)
    source = folder / file
    if run.framework == "tf1" and find_spec("tensorflow") is None:
        with np.load(folder / "checkpoint_tensors.npz") as tensors:
            source = dict(tensors)
    arguments = run.arguments(**arguments)
    shapes = jax.eval_shape(lambda: run.tree("params", SAVED))
    return run, convert.load(source, shapes, rule=run.rule(), **arguments)


def worst(actual, expected):
    """The largest difference, against the largest value of its leaf."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    errors = [
        np.max(np.abs(np.asarray(a, float) - b)) / np.max(np.abs(b)) for a, b in pairs
    ]
    assert np.isfinite(errors).all()
    return max(errors)


@pytest.mark.optimized
@pytest.mark.parametrize(("folder", "file"), CHECKPOINTS)
def test_a_run_goes_on_as_it_did_in_its_framework(folder, file):
    run, restored = restore(folder, file)
    state, params = restored.state, run.tree("params", SAVED)
    assert restored.dialect == FRAMEWORKS.get(run.framework, run.framework)
    assert restored.step == SAVED
    eight_bit = run.framework == "bnb"
    moved = worst(run.tree("params", STEPS), params)
    assert moved > 1e-3
    for step in range(SAVED, STEPS):
        grads = run.tree("grads", step)
        updates, state = restored.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert worst(params, run.tree("params", step + 1)) < 1e-5
        if eight_bit:  # after every step bitsandbytes rounds its state to 8 bits
            nu = jax.tree.map(as_its_cpu_kernel_rounds, state[1].nu)
            state = (state[0], state[1]._replace(nu=nu), *state[2:])


def as_its_cpu_kernel_rounds(nu):
    """Codes of bitsandbytes 0.50 on CPUs: nearest to the middle of 65,536 bins."""
    qmap = _torch.load(FOLDER / "bnb_rmsprop8bit" / "checkpoint.safetensors")
    qmap = qmap["optimizer"]["state"][0]["__bnb_optimizer_quant_state__"]["qmap1"]
    kernel = np.asarray(nu).T  # its blocks are in torch's order
    scale = np.float32(np.abs(kernel).max())
    bins = np.minimum(np.floor((kernel / scale + 1) * 32768), 65535)
    middles = ((bins + 0.5) / 32768 - 1).astype(np.float32)
    codes = np.searchsorted((qmap[1:] + qmap[:-1]) / 2, middles)
    return jnp.asarray((qmap[codes] * scale).T)


@pytest.mark.parametrize(("folder", "file"), CHECKPOINTS)
def test_there_and_back_is_where_it_was(folder, file, tmp_path):
    if file == "model.ckpt-10":
        pytest.importorskip("tensorflow")
    optax_s = Run(folder).framework == "optax"  # its state has the schedule's count
    run, restored = restore(folder, file, numbers=not optax_s)
    params = run.tree("params", SAVED)
    target = tmp_path / ("state.msgpack" if optax_s else file)
    save = partial(convert.save, target, restored.state, params, restored.dialect)
    if optax_s:
        save(restored.hyperparameters)
    else:
        save(restored.groups, like=folder / file, rule=run.rule())
    read = partial(_arrays, run.framework)
    before, after = read(folder / file), read(target)
    assert list(before) == list(after)
    centered = any("mu" in key or "grad" in key or "_2" in key for key in before)
    inexact = centered or folder.name == "optax_rmsprop_bias_correction"
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape), (
            name
        )
        if inexact:
            np.testing.assert_allclose(after[name], array, rtol=3e-7, atol=1e-12)
        else:
            assert array.tobytes() == after[name].tobytes(), name


def _arrays(framework, path):
    """All arrays in a file by name, whatever the framework."""
    if framework == "optax":
        content = convert._optax.load(path)
        content = content.get("opt_state", content)
    elif framework == "keras":
        loaded = convert._keras.load(path)
        names = ("iteration", "lr", *(f"grad{i}" for i in range(12)))
        variables = dict(zip(names, loaded["variables"], strict=False))
        content = {"optimizer": variables, "model": loaded["weights"]}
    elif framework == "tf1":
        return convert._tf1.load(path)
    else:
        content = _torch.load(path)
    return {
        k: _torch_files.array(v)
        for k, v in _torch_files.flat(content)
        if hasattr(v, "shape")
    }


@pytest.mark.parametrize(("folder", "file"), CHECKPOINTS)
def test_our_own_file_keeps_everything(folder, file, tmp_path):
    run, restored = restore(folder, file, numbers=True)
    params, path = run.tree("params", SAVED), tmp_path / "state.safetensors"
    convert.save(path, restored.state, params, restored.dialect, restored.groups)
    again = convert.load(path, jax.eval_shape(lambda: params))
    assert again.hyperparameters == restored.hyperparameters
    assert (again.dialect, again.step) == (restored.dialect, restored.step)
    assert jax.tree.structure(again.state) == jax.tree.structure(restored.state)
    close = partial(np.testing.assert_allclose, rtol=3e-7, atol=1e-12)
    jax.tree.map(close, again.state, restored.state)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def torch_class(name):
    torch = pytest.importorskip("torch")
    if name == "torch":
        return torch.optim.RMSprop
    module = pytest.importorskip(
        {
            "timm": "timm.optim.rmsprop_tf",
            "sb3": "stable_baselines3.common.sb2_compat.rmsprop_tf_like",
        }[name]
    )
    return module.RMSpropTF if name == "timm" else module.RMSpropTFLike


@pytest.mark.parametrize("name", ["torch_default", "torch_centered_momentum_wd"])
def test_torch_loads_what_we_wrote_and_goes_on_the_same(name, tmp_path):
    torch = pytest.importorskip("torch")
    folder, file = FOLDER / name, "checkpoint.pt"
    run, restored = restore(folder, file, numbers=True)
    params = run.tree("params", SAVED)
    convert.save(
        tmp_path / file,
        restored.state,
        params,
        "torch",
        restored.groups,
        like=folder / file,
    )

    def go_on(path):
        content = torch.load(path, weights_only=True)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )
        model.load_state_dict(content["model"])
        optimizer = torch.optim.RMSprop(model.parameters())
        optimizer.load_state_dict(content["optimizer"])
        for step in range(SAVED, STEPS):
            for group, rate in zip(
                optimizer.param_groups, run.rates[step], strict=True
            ):
                group["lr"] = float(rate)
            x, y = (torch.from_numpy(run.arrays[k][step]) for k in "XY")
            optimizer.zero_grad()
            torch.mean((model(x) - y) ** 2).backward()
            optimizer.step()
        return [p.detach().numpy() for p in model.parameters()]

    for ours, theirs in zip(go_on(tmp_path / file), go_on(folder / file), strict=True):
        tolerance = 0 if name == "torch_default" else 2e-6
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_state_dict_of_torch_itself_needs_no_file():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.RMSprop(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    shapes = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    restored = convert.load(
        optimizer.state_dict(), shapes, names=[n for n, _ in layer.named_parameters()]
    )
    squares = optimizer.state[layer.weight]["square_avg"].numpy()
    np.testing.assert_array_equal(restored.state[0].nu["kernel"], squares.T)
    exported = convert.export(
        restored.state, shapes, "torch", restored.groups, names=["weight", "bias"]
    )
    tensors = _torch_files.as_tensors(torch, exported)
    other = torch.optim.RMSprop(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(tensors)
    assert other.param_groups[0]["momentum"] == 0.9
    assert torch.equal(
        next(iter(other.state.values()))["square_avg"], torch.tensor(squares)
    )


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"param_groups": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="pickled code would run"):
        convert.load(tmp_path / "evil.pt", {"w": jnp.ones(1)})
    (tmp_path / "state.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="would execute"):
        convert.load(tmp_path / "state.pkl", {"w": jnp.ones(1)})
    assert not (tmp_path / "ran").exists()


def numbered(**shapes):
    """A torch state dictionary and the names of its parameters."""
    rng = np.random.default_rng(0)
    state = {
        i: {"step": 3, "square_avg": rng.uniform(size=shape).astype(np.float32)}
        for i, shape in enumerate(shapes.values())
    }
    groups = [{"lr": 0.1, "alpha": 0.9, "foreach": None, "params": list(state)}]
    content = {"state": state, "param_groups": groups}
    squares = {name: state[i]["square_avg"] for i, name in enumerate(shapes)}
    return content, squares


def test_convolutions_norms_and_embeddings_find_their_layouts():
    shapes = {
        "c1.weight": (5, 2, 3),
        "c2.weight": (5, 2, 3, 4),
        "c3.weight": (5, 2, 3, 4, 6),
        "norm.weight": (5,),
        "norm.bias": (5,),
        "emb.weight": (7, 4),
        "head.weight": (3, 2 * 4 * 5),
    }
    content, squares = numbered(**shapes)
    tree = {
        "c1": {"kernel": jnp.zeros((3, 2, 5))},
        "c2": {"kernel": jnp.zeros((3, 4, 2, 5))},
        "c3": {"kernel": jnp.zeros((3, 4, 6, 2, 5))},
        "norm": {"scale": jnp.zeros(5), "bias": jnp.zeros(5)},
        "emb": {"embedding": jnp.zeros((7, 4))},
        "head": {"kernel": jnp.zeros((4 * 5 * 2, 3))},
    }
    rule = convert.torch_to_flax(channels_first={"head/kernel": (2, 4, 5)})
    restored = convert.load(content, tree, rule=rule, names=list(shapes))
    nu = restored.state[0].nu
    assert nu["c2"]["kernel"][1, 2, 0, 4] == squares["c2.weight"][4, 0, 1, 2]
    assert nu["c3"]["kernel"][1, 2, 3, 0, 4] == squares["c3.weight"][4, 0, 1, 2, 3]
    image = squares["head.weight"].reshape(3, 2, 4, 5)
    assert nu["head"]["kernel"].reshape(4, 5, 2, 3)[1, 2, 0, 2] == image[2, 0, 1, 2]
    back = convert.export(
        restored.state, tree, "torch", restored.groups, rule=rule, names=list(shapes)
    )
    for i, name in enumerate(shapes):
        np.testing.assert_array_equal(back["state"][i]["square_avg"], squares[name])


LSTM = {
    "lstm.weight_ih_l0": (20, 3),
    "lstm.weight_hh_l0": (20, 5),
    "lstm.bias_ih_l0": (20,),
    "lstm.bias_hh_l0": (20,),
}


def flax_lstms():
    linen = nn.RNN(nn.OptimizedLSTMCell(5), name="lstm")
    x = jnp.zeros((1, 2, 3))
    yield "linen", linen.init(jax.random.key(0), x)["params"], {"cell": "lstm"}
    for name, cell in (("nnx", nnx.LSTMCell), ("fused", nnx.OptimizedLSTMCell)):
        model = nnx.RNN(cell(3, 5, rngs=nnx.Rngs(0)))
        yield name, nnx.as_pure(nnx.state(model, nnx.Param)), {"cell": "lstm.l0"}


@pytest.mark.parametrize(("kind", "params", "rename"), list(flax_lstms()))
def test_an_lstm_s_gates_find_each_other(kind, params, rename):
    content, squares = numbered(**LSTM)
    content["state"][2] = content["state"][3]  # both biases get the same gradients
    rule = convert.torch_to_flax(rename)
    restored = convert.load(content, params, rule=rule, names=list(LSTM))
    nu = convert._record.names_of(restored.state[0].nu)
    nu = {name.removeprefix("cell/"): np.asarray(value) for name, value in nu.items()}
    if kind == "fused":
        np.testing.assert_array_equal(
            nu["dense_i/kernel"], squares["lstm.weight_ih_l0"].T
        )
    else:
        forget = "if_" if kind == "nnx" else "if"
        np.testing.assert_array_equal(
            nu[f"{forget}/kernel"], squares["lstm.weight_ih_l0"][5:10].T
        )
        np.testing.assert_array_equal(nu["ho/bias"], squares["lstm.bias_hh_l0"][15:])
    back = convert.export(
        restored.state, params, "torch", restored.groups, rule=rule, names=list(LSTM)
    )
    for i in range(4):
        np.testing.assert_array_equal(
            back["state"][i]["square_avg"], content["state"][i]["square_avg"]
        )


def test_torch_s_lstm_and_flax_s_agree_once_weights_are_moved():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(3, 5, batch_first=True)
    torch.nn.init.zeros_(theirs.bias_ih_l0)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    optimizer = torch.optim.RMSprop(theirs.parameters())
    expected, _ = theirs(torch.tensor(x))
    expected.sum().backward()
    expected = expected.detach().numpy()
    weights = {k: v.detach().clone() for k, v in theirs.named_parameters()}
    optimizer.step()
    content = {"model": weights, "optimizer": optimizer.state_dict()}
    model = nn.RNN(nn.OptimizedLSTMCell(5))
    params = model.init(jax.random.key(0), jnp.asarray(x))
    rule = convert.torch_to_flax({"params/cell": "l0"})
    restored = convert.load(content, params, rule=rule)
    np.testing.assert_allclose(
        model.apply(restored.params, jnp.asarray(x)), expected, atol=1e-6
    )
    grads = jax.grad(lambda p: model.apply(p, jnp.asarray(x)).sum())(restored.params)
    expected_nu = jax.tree.map(lambda g: 0.01 * g**2, grads)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        restored.state[0].nu,
        expected_nu,
    )


def test_groups_in_another_order_keep_their_parameters():
    run, _ = restore(FOLDER / "torch_two_groups", "checkpoint.safetensors")
    content = _torch.load(FOLDER / "torch_two_groups" / "checkpoint.safetensors")
    shuffled = json.loads(json.dumps(content["optimizer"]["param_groups"]))[::-1]
    content["optimizer"] = {**content["optimizer"], "param_groups": shuffled}
    shapes = run.tree("params", SAVED)
    restored = convert.load(content, shapes)  # named by their shapes, all different
    weight_decay = [h["weight_decay"] for h in restored.hyperparameters]
    assert weight_decay == [0, 0.01]
    assert restored.groups[0].names == ("layers_0/bias", "layers_2/bias")
    with pytest.raises(ValueError, match=r"calls parameter 2 2\.weight"):
        convert.load(
            content, shapes, names=["2.weight", "0.bias", "0.weight", "2.bias"]
        )


def test_what_went_on_here_is_what_torch_gets(tmp_path):
    folder, file = FOLDER / "torch_centered_momentum_wd", "checkpoint.safetensors"
    run, restored = restore(folder, file)
    params, state = run.tree("params", SAVED), restored.state
    updates, state = restored.optimizer.update(run.tree("grads", SAVED), state, params)
    params = optax.apply_updates(params, updates)
    target = tmp_path / file
    convert.save(target, state, params, "torch", restored.groups, like=folder / file)
    written = _torch.load(target)
    (group,) = written["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(run.rates[SAVED + 1, 0])
    assert (group["alpha"], group["foreach"]) == (0.95, None)
    assert written["step"] == SAVED + 1
    assert written["optimizer"]["state"][0]["step"] == SAVED + 1
    again = convert.load(target, params)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert str(again.places[1][1]) == "0.weight, transposed"
    if find_spec("torch"):
        convert.save(
            tmp_path / "c.pt",
            state,
            params,
            "torch",
            restored.groups,
            like=folder / file,
        )
        assert _torch.load(tmp_path / "c.pt").keys() == {"model", "optimizer", "step"}


def test_a_parameter_without_a_gradient_yet_starts_as_its_framework_starts_it():
    content, _ = numbered(**{"a.weight": (2, 3), "b.weight": (4, 2)})
    content["param_groups"][0]["decoupled_decay"] = False
    del content["state"][1]
    shapes = {"a": {"kernel": jnp.zeros((3, 2))}, "b": {"kernel": jnp.zeros((2, 4))}}
    load = partial(convert.load, content, shapes, names=["a.weight", "b.weight"])
    model = {"a.weight": np.ones((2, 3)), "b.weight": np.ones((4, 2))}
    with_model = convert.load({"optimizer": content, "model": model}, shapes)
    for restored in (load(), with_model):
        assert restored.dialect == "timm"
        np.testing.assert_array_equal(restored.state[0].nu["b"]["kernel"], 1)
        assert "b/kernel: without state" in restored.assumed[-1]


def test_a_state_goes_into_any_chain_of_optax_and_of_ours():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    options = {"decay": 0.95, "centered": True, "momentum": 0.9}
    theirs = optax.chain(optax.clip(1.0), optax.rmsprop(0.1, **options))
    state = theirs.init(params)
    for seed in range(3):
        noise = jax.random.normal(jax.random.key(seed), (2, 3))
        grads = {"a": noise, "b": noise[0]}
        _, state = theirs.update(grads, state, params)
    restored = convert.load(
        state,
        params,
        learning_rate=0.1,
        eps=1e-8,
        **{k: v for k, v in options.items() if k != "centered"},
    )
    clipped = optax.chain(optax.clip(1.0), restored.optimizer)
    ours, _ = clipped.update(grads, (optax.EmptyState(), restored.state), params)
    expected, _ = theirs.update(grads, state, params)
    assert worst(ours, expected) < 1e-5
    native = convert.export(restored.state, params, "optax", restored.hyperparameters)
    assert jax.tree.structure(native) == jax.tree.structure(state[1])
    assert worst(native, state[1]) < 1e-6


def test_our_own_state_is_not_taken_for_optax_s():
    params = {"w": jnp.ones(2)}
    for option in ({"centered": True}, {"decay": optax.constant_schedule(0.9)}):
        state = rmsprop(0.1, **option).init(params)
        for source in (state, flax.serialization.to_state_dict(state)):
            with pytest.raises(
                ValueError, match="a state of rmsprop_jax, not of Optax"
            ):
                convert.load(source, params, learning_rate=0.1, decay=0.9, eps=1e-8)


@pytest.mark.parametrize("name", ["keras_default", "keras_centered_momentum_wd"])
def test_a_keras_file_of_weights_needs_names_and_what_it_does_not_hold(name, tmp_path):
    run, restored = restore(FOLDER / name, "model.keras", numbers=True)
    path = tmp_path / "model.weights.h5"
    with zipfile.ZipFile(FOLDER / name / "model.keras") as archive:
        path.write_bytes(archive.read("model.weights.h5"))
    shapes = run.tree("params", SAVED)
    load = partial(convert.load, path, shapes, rule=convert.same())
    with pytest.raises(ValueError, match="does not name them: pass"):
        load()
    names = [variable for variable, _ in run.meta["model_variables"]]
    with pytest.raises(ValueError, match="does not hold `rho`, `momentum`, `epsilon`"):
        load(names=names)
    given = {
        k: restored.hyperparameters[k]
        for k in ("rho", "momentum", "epsilon", "weight_decay")
    }
    again = load(names=names, learning_rate=0.1, **given)
    jax.tree.map(np.testing.assert_array_equal, again.state, restored.state)
    target = tmp_path / "back.weights.h5"
    save = partial(
        convert.save, target, again.state, dialect="keras", names=names, like=path,
        hyperparameters=again.groups,
    )  # fmt: skip
    moved = jax.tree.map(lambda x: x + 1, shapes)
    save(params=moved)
    written = load(names=names, learning_rate=0.1, **given).params
    jax.tree.map(np.testing.assert_array_equal, written, shapes)
    path = target
    written = convert.load(
        target, shapes, rule=convert.same(), names=names, learning_rate=0.1, **given
    )
    jax.tree.map(np.testing.assert_array_equal, written.params, moved)
    path = tmp_path / "model.weights.h5"
    before, after = convert._keras.load(path), convert._keras.load(target)
    for i, (a, b) in enumerate(
        zip(after["variables"], before["variables"], strict=True)
    ):
        if i != 1:  # the learning rate
            np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-12)


def test_translation_keeps_the_momentum_s_steps_and_says_what_differs():
    params = jnp.ones(3)
    old = {"lr": 0.5, "momentum": 0.9, "eps": 1e-6}
    new = {"learning_rate": 0.5, "momentum": 0.9, "epsilon": 1e-6, "rho": 0.99}
    state = dialects.torch(**old).init(params)
    _, state = dialects.torch(**old).update(jnp.ones(3), state, params)
    with pytest.warns(UserWarning, match="`eps_in_sqrt` was False, is True"):
        keras = convert.translate(state, params, "torch", old, "keras", new)
    np.testing.assert_allclose(keras[2].trace, -0.5 * state[1].trace, rtol=1e-6)
    with pytest.warns(UserWarning, match="eps_in_sqrt"):
        back = convert.translate(keras, params, "keras", new, "torch", old)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), back, state)
    plain = {"lr": 0.5, "eps": 1e-6}
    state = dialects.torch(**plain).init(params)
    mlx = {"learning_rate": 0.5, "eps": 1e-6, "alpha": 0.99}
    convert.translate(state, params, "torch", plain, "mlx", mlx)  # the same rule


def test_one_error_lists_all_that_is_missing_extra_and_mis_shaped():
    content, _ = numbered(**{"a.weight": (2, 3), "b.weight": (4, 2), "c.bias": (5,)})
    names = ["a.weight", "b.weight", "c.bias"]
    tree = {
        "a": {"kernel": jnp.zeros((3, 2))},
        "b": {"kernel": jnp.zeros((3, 4))},
        "d": {"bias": jnp.zeros(5)},
    }
    with pytest.raises(ValueError) as caught:
        convert.load(content, tree, names=names)
    message = str(caught.value)
    assert "missing d/bias: the file has no d.bias" in message
    assert "extra c.bias (5,)" in message
    assert "mis-shaped b/kernel (3, 4): b.weight (4, 2) gives (2, 4)" in message


MALFORMED = {
    "numbers without names": (lambda c: c, {}, "pass `names`"),
    "too few names": (
        lambda c: c,
        {"names": ["a.weight"]},
        "2 different names, .* got 1",
    ),
    "a name twice": (lambda c: c, {"names": ["a.weight"] * 2}, "2 different names"),
    "Adam": (
        lambda c: {**c, "param_groups": [{"lr": 1, "eps": 1, "params": [0, 1]}]},
        {},
        "not RMSProp",
    ),
    "sb3 or torch": (
        lambda c: {**c, "param_groups": [{"lr": 1, "alpha": 0.9, "params": [0, 1]}]},
        {},
        'framework="sb3"',
    ),
    "not a framework": (lambda c: c, {"framework": "jax"}, "`framework`.*'jax'"),
    "no optimizer": (lambda c: {"optimizer": {"x": 1}}, {}, "no optimizer state"),
    "another state": (
        lambda c: {**c, "state": {0: {"exp_avg": 1}, 1: {}}},
        {},
        "exp_avg",
    ),
    "not a source": (lambda c: 3, {}, "`source`"),
    "TF1 without slots": (lambda c: {"w/RMSPropX": 1}, {}, "no slots 'RMSProp'"),
    "Keras without steps": (
        lambda c: {"variables": [1, 2]},
        {},
        "2 optimizer variables",
    ),
    "a dictionary of nothing": (lambda c: {"a": {}}, {}, "0 states with a `nu`"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_such_state_says_what_it_is(name):
    make, arguments, message = MALFORMED[name]
    content, _ = numbered(**{"a.weight": (2, 3), "b.weight": (4, 2)})
    with pytest.raises((ValueError, TypeError), match=message):
        convert.load(make(content), {"a": jnp.zeros(1)}, **arguments)


def test_hyperparameters_that_a_file_lacks_have_to_be_given():
    shapes = Run(FOLDER / "tf1_momentum").tree("params", SAVED)
    with np.load(FOLDER / "tf1_momentum" / "checkpoint_tensors.npz") as file:
        tensors = dict(file)
    with pytest.raises(ValueError, match="`learning_rate`, `decay`, `epsilon`"):
        convert.load(tensors, shapes, momentum=0.9)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    run, restored = restore(FOLDER / "keras_default", "model.keras", numbers=True)
    params, target = run.tree("params", SAVED), tmp_path / "model.keras"
    shutil.copy(FOLDER / "keras_default" / "model.keras", target)
    before = target.read_bytes()
    save = partial(
        convert.save, target, restored.state, params, "keras", restored.groups,
        like=target,
    )  # fmt: skip
    with pytest.raises(ValueError, match="missing sequential/dense/bias"):
        save(rule=convert.same({"sequential": "other"}))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(OSError, match="x"):
        save(rule=run.rule())
    monkeypatch.undo()
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
    save(rule=run.rule())
    assert convert._keras.load(target)["variables"][0] == SAVED


def test_state_of_other_parameters_and_schedules_are_refused(tmp_path):
    params = {"a": {"kernel": jnp.ones((2, 3))}}
    state = dialects.torch().init(params)
    with pytest.raises(ValueError, match="no accumulators of b/kernel"):
        convert.export(state, {"b": params["a"]}, "torch", {}, names=["b.weight"])
    schedule = optax.linear_schedule(0.5, 0.0, 10)
    written = convert.export(
        state, params, "torch", {"lr": schedule}, names=["a.weight"]
    )
    assert written["param_groups"][0]["lr"] == 0.5
    assert written["param_groups"][0]["alpha"] == 0.99
    with pytest.raises(ValueError, match="pass `names`"):
        convert.export(state, params, "torch", {})
    with pytest.raises(ValueError, match=r"extra c\.weight .*no leaf takes it"):
        convert.export(state, params, "torch", {}, names=["a.weight", "c.weight"])
    with pytest.raises(ValueError, match="no file format of 'mlx'"):
        convert.export(state, params, "mlx", {"learning_rate": 0.1})
    keras = dialects.keras().init(params)
    with pytest.raises(ValueError, match="pass `like`"):
        convert.save(tmp_path / "m.keras", keras, params, "keras", {})
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert.save(tmp_path / "no" / "s.safetensors", state, params, "torch", {})


def test_a_state_of_rmsprop_itself_can_be_kept(tmp_path):
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    options = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    tx = rmsprop(**options)
    _, state = tx.update(params, tx.init(params), params)
    path = tmp_path / "s.safetensors"
    convert.save(path, state, params, "rmsprop", options)
    again = convert.load(path, params)
    jax.tree.map(np.testing.assert_array_equal, again.state, state)
    assert again.hyperparameters == options
    assert again.params["a"].dtype == jnp.bfloat16


def command(*words):
    from rmsprop_jax.cli import main

    return main(["convert", *map(str, words)])


def write_params(path, run):
    leaves = convert._record.names_of(run.tree("params", SAVED))
    np.savez(path, **{name: np.asarray(leaf) for name, leaf in leaves.items()})


def test_the_command_converts_there_and_back_and_shows_what_went_where(
    tmp_path, capsys
):
    folder = FOLDER / "torch_centered_momentum_wd"
    source, ours = folder / "checkpoint.safetensors", tmp_path / "ours.safetensors"
    run = Run(folder)
    write_params(tmp_path / "params.npz", run)
    assert command(source, ours, "--params", tmp_path / "params.npz") == 0
    shown = capsys.readouterr().out
    for word in ("layers_0/kernel", "0.weight", "transposed", "momentum", "alpha=0.95"):
        assert word in shown
    restored = convert.load(ours, run.tree("params", SAVED))
    assert restored.hyperparameters["momentum"] == 0.9
    back = tmp_path / "back.safetensors"
    assert command(ours, back, "--like", source, "--quiet") == 0
    assert capsys.readouterr().out == ""
    before, after = _arrays("torch", source), _arrays("torch", back)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=3e-7, atol=1e-12)


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path, capsys):
    pytest.importorskip("tensorflow")
    source = FOLDER / "tf1_momentum" / "model.ckpt-10"
    target = tmp_path / "out.safetensors"
    assert command(source, target, "--rename", "a=b") == 2
    error = capsys.readouterr().err
    assert "rmsprop-jax convert: error: The file does not hold `learning_rate`" in error
    assert command(source, tmp_path / "x.pt", "--set", "learning_rate=1") == 2
    assert command(tmp_path / "missing.msgpack", target) == 2
    assert command(source, target, "--set", "learning_rate") == 2
    assert list(tmp_path.iterdir()) == []
    given = ("learning_rate=0.1", "decay=0.9", "momentum=0.9", "epsilon=1e-3")
    assert command(source, target, "--set", *given) == 0
    assert (
        convert.load(
            target, Run(FOLDER / "tf1_momentum").tree("params", SAVED)
        ).hyperparameters["epsilon"]
        == 1e-3
    )


def test_the_command_s_help_shows_an_example(capsys):
    assert command("--help") == 0
    assert "rmsprop-jax convert run.pt state.safetensors" in capsys.readouterr().out


def test_a_state_that_counts_nothing_is_written_with_the_step_that_is_known(tmp_path):
    content, _ = numbered(w=(3,))
    params, path = {"w": jnp.ones(3)}, tmp_path / "state.safetensors"
    restored = convert.load(content, params, names=["w"])
    assert isinstance(restored.state[0], optax.ScaleByRmsState)
    export = partial(convert.export, restored.state, params, "torch", names=["w"])
    hyperparameters = restored.hyperparameters
    with pytest.raises(ValueError, match=r"does not count its updates.*give `step`"):
        export(hyperparameters)
    assert export(restored.groups)["state"][0]["step"] == 3
    assert export(hyperparameters, like=content)["state"][0]["step"] == 3
    assert export(restored.groups, step=8)["state"][0]["step"] == 8
    state = TrainState.create(
        apply_fn=None, params=params, tx=restored.optimizer
    ).replace(step=9)
    save = partial(convert.save, path, restored.state)
    for tree, step, expected in ((params, None, 3), (params, 8, 8), (state, None, 9)):
        save(tree, "torch", restored.groups, step=step)
        assert convert.load(path, params).step == expected
    _, gone_on = restored.optimizer.update(params, restored.state, params)
    save = partial(convert.save, path, gone_on, params, "torch", restored.groups)
    with pytest.warns(UserWarning, match="counts no updates and has gone on"):
        save()
    assert convert.load(path, params).step is None
    export = partial(
        convert.export, gone_on, params, "torch", restored.groups, names=["w"]
    )
    with pytest.warns(UserWarning, match="as before: the step, 3: give `step`"):
        export(like=content)
    with pytest.warns(UserWarning, match="as before: the step, 3: give `step`"):
        export()
    save(step=4)
    assert export(like=content, step=4)["state"][0]["step"] == 4


def test_what_a_copy_has_that_is_older_is_said():
    content, _ = numbered(**{"w": (3,)})
    model = {"w": np.ones(3, np.float32), "norm.running_mean": np.ones(3)}
    content = {"optimizer": content, "model": model, "scheduler": {"last": 3}}
    params = {"w": jnp.ones(3)}
    restored = convert.load(content, params)
    assert restored.left_out == ("the entry 'scheduler'", "norm.running_mean")
    _, gone_on = restored.optimizer.update(params, restored.state, params)
    write = partial(convert.export, like=content)
    write(restored.state, params, "torch", restored.groups)  # nothing is older
    said = "of step 4, and as before: the entry 'scheduler', norm.running_mean"
    with pytest.warns(UserWarning, match=said):
        write(gone_on, params, "torch", restored.groups, step=4)
    shapes = jax.eval_shape(lambda: params)
    with pytest.warns(UserWarning, match="as before: the entry 'scheduler', w, norm"):
        write(gone_on, shapes, "torch", restored.groups, step=4)
