"""`weights=`: a user's own function moves the state, element by element, and back."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_convert import CHECKPOINTS, FOLDER, SAVED, _arrays, command, restore

from rmsprop_jax import convert
from rmsprop_jax.convert import _torch_files

GROUP = {"lr": 0.1, "alpha": 0.9, "momentum": 0.9, "centered": True, "foreach": None}


def source(shapes, names=None):
    """A torch run of random numbers; a sum's parts have the same accumulators."""
    rng = np.random.default_rng(0)
    trained = list(shapes) if names is None else names
    model = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    state = {}
    for i, name in enumerate(trained):
        mean, buffer = rng.normal(size=(2, *shapes[name])).astype(np.float32)
        square = mean**2 + rng.uniform(0.5, 1, mean.shape).astype(np.float32)
        state[i] = {
            "step": 7,
            "square_avg": square,
            "momentum_buffer": buffer,
            "grad_avg": mean,
        }
        if name.endswith("bias_hh"):
            state[i] = dict(state[i - 1])
    groups = [GROUP | {"params": list(state), "param_names": trained}]
    return {"model": model, "optimizer": {"state": state, "param_groups": groups}}


def heads(x):
    """Three projections in one array, as kernels of (features, heads, size)."""
    q, k, v = jnp.split(x, 3)
    return {n: y.T.reshape(-1, 2, 3) for n, y in zip("qkv", (q, k, v), strict=True)}


def image(x):
    """A Dense kernel behind a flattened (C, H, W), for one behind (H, W, C)."""
    return x.reshape(4, 2, 3, 5).transpose(2, 3, 1, 0).reshape(30, 4)


def gates(x, order):
    """Recurrent gates in another order."""
    parts = np.split(np.asarray(x), len(order))
    return np.concatenate([parts[i] for i in order]).T


def stacked(arrays, end):
    return jnp.stack([arrays[f"{i}.{end}"] for i in range(3)])


RECURRENT = {"weight_ih": (20, 3), "weight_hh": (20, 5)}
BIASES = {"bias_ih": (20,), "bias_hh": (20,)}
KINDS = {
    "a dense layer, behind an image": ({"w": (4, 30)}, lambda a: image(a["w"])),
    "a dense layer, behind features": ({"w": (4, 30)}, lambda a: a["w"].T),
    "a convolution": ({"w": (4, 2, 3, 5)}, lambda a: a["w"].transpose(2, 3, 1, 0)),
    "a transposed convolution, flipped": (
        {"w": (4, 4, 3, 3)},
        lambda a: jnp.flip(a["w"], (2, 3)).transpose(2, 3, 0, 1),
    ),
    "a transposed convolution, as it is": (
        {"w": (4, 4, 3, 3)},
        lambda a: a["w"].transpose(2, 3, 1, 0),
    ),
    "attention heads, split": ({"w": (18, 8)}, lambda a: heads(a["w"])),
    "attention heads, joined": (
        {"q": (6, 8), "k": (6, 8)},
        lambda a: jnp.concatenate([a["q"], a["k"]]).reshape(2, 2, 3, 8),
    ),
    "layers, stacked for lax.scan": (
        {f"{i}.{end}": s for i in range(3) for end, s in (("w", (2, 3)), ("b", (2,)))},
        lambda a: {"w": stacked(a, "w").swapaxes(1, 2), "b": stacked(a, "b")},
    ),
    "an LSTM of two biases": (
        RECURRENT | BIASES,
        lambda a: {n: gates(x, (0, 2, 1, 3)) for n, x in a.items()},
    ),
    "an LSTM of one bias": (
        RECURRENT | BIASES,
        lambda a: {
            "i": a["weight_ih"].T,
            "h": a["weight_hh"].T,
            "bias": jnp.asarray(a["bias_ih"]) + a["bias_hh"],
        },
    ),
    "an RNN of one bias": (BIASES, lambda a: a["bias_ih"] + a["bias_hh"]),
    "a GRU, whose candidate gate has both": (
        {"bias_ih": (15,), "bias_hh": (15,)},
        lambda a: {
            "rz": a["bias_ih"][:10] + a["bias_hh"][:10],
            "in": a["bias_ih"][10:],
            "hn": a["bias_hh"][10:],
        },
    ),
    "a sum of some elements": (
        BIASES,
        lambda a: np.concatenate([a["bias_ih"][:4], a["bias_ih"][4:] + a["bias_hh"][4:],
                                  a["bias_hh"][:4]]),
    ),
    "in bfloat16": ({"w": (40, 50)}, lambda a: jnp.asarray(a["w"], jnp.bfloat16).T),
    "in float16": ({"w": (40, 50)}, lambda a: a["w"].astype(np.float16).T),
    "compiled": ({"w": (4, 30)}, jax.jit(lambda a: {"w": a["w"].T})),
    "scalars and empty arrays": (
        {"s": (), "e": (0, 3), "w": (2,)},
        lambda a: {"s": a["s"][None], "e": a["e"].T, "w": a["w"][::-1]},
    ),
    "by a product of matrices": (
        {"w": (4, 30)},
        lambda a: jnp.einsum("ij,jk->ki", a["w"], np.eye(30, dtype=np.float32)),
    ),
}  # fmt: skip


@pytest.mark.promotion
@pytest.mark.parametrize("kind", KINDS)
def test_accumulators_go_where_the_weights_go_and_back(kind):
    shapes, function = KINDS[kind]
    content = source(shapes)
    state, model = content["optimizer"]["state"], content["model"]
    expected = function(model)
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), expected)
    restored = convert.load(content, tree, weights=function)
    joins = "sum" in kind or "one bias" in kind or "has both" in kind
    joined = {n: x for g in restored.groups for n, x in g.joined.items()}
    assert bool(joined) == joins
    close = partial(np.testing.assert_allclose, rtol=1e-2 if "float16" in kind else 0)
    jax.tree.map(close, restored.params, expected)
    columns = {
        key: {n: state[i][key] for i, n in enumerate(shapes)}
        for key in ("square_avg", "grad_avg", "momentum_buffer")
    }
    if not joins:
        nu, mu = restored.state[0].nu, restored.state[0].mu
        jax.tree.map(close, mu, function(columns["grad_avg"]))
        square = jax.tree.map(lambda v, m: v + jnp.square(m), nu, mu)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=2e-2 if "16" in kind else 1e-6),
            square,
            function(columns["square_avg"]),
        )
    back = convert.export(
        restored.state,
        restored.params,
        "torch",
        restored.groups,
        weights=function,
        like=content,
    )
    for i, name in enumerate(shapes):
        close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
        close(back["model"][name], model[name])
        for key, column in columns.items():
            close(back["optimizer"]["state"][i][key], column[name])


@pytest.mark.parametrize(("folder", "file"), CHECKPOINTS)
def test_it_moves_the_state_of_every_framework(folder, file, tmp_path):
    optax_s = folder.name.startswith("optax")
    if file == "model.ckpt-10":
        pytest.importorskip("tensorflow")
    run, usual = restore(folder, file, numbers=True)
    trained = {place.name for _, place in usual.places}

    def moved(arrays):
        return {n: jnp.ravel(arrays[n].T)[::-1] for n in sorted(trained)}

    model = usual.params or run.tree("params", SAVED)
    names = dict(usual.places)
    leaves = convert._record.names_of(model)
    flat = {place.name: (names[path], leaves[path]) for path, place in usual.places}
    shapes = jax.eval_shape(
        moved, {n: x if p.axes is None else x.T for n, (p, x) in flat.items()}
    )
    source = folder / file
    again = convert.load(source, shapes, weights=moved, **run.arguments(numbers=True))
    assert (again.step, again.dialect) == (usual.step, usual.dialect)
    first = [jax.tree.leaves(s) for s in (again.state, usual.state)]
    sizes = [sorted(float(jnp.sum(jnp.abs(x))) for x in s) for s in first]
    np.testing.assert_allclose(*sizes, rtol=1e-5)
    if optax_s:
        return
    target = tmp_path / file
    convert.save(
        target,
        again.state,
        again.params or shapes,
        again.dialect,
        again.groups,
        like=source,
        weights=moved,
    )
    read = partial(_arrays, run.framework)
    before, after = read(folder / file), read(target)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=3e-7, atol=1e-12)


WRONG = {
    "drops an array": (lambda a: {"v": a["v"]}, "extra w (2, 3): no leaf takes it"),
    "drops a row": (
        lambda a: {"w": a["w"][1:], "v": a["v"]},
        "extra w[0, 0]: no leaf takes it, one of 3 elements",
    ),
    "uses one twice": (
        lambda a: {"w": a["w"], "u": a["w"], "v": a["v"]},
        "ambiguous w[0, 0]: of u and of w",
    ),
    "uses one twice in a leaf": (
        lambda a: {"w": np.concatenate([a["w"], a["w"][:1]]), "v": a["v"]},
        "ambiguous w[0, 0]: of w, twice",
    ),
    "puts in a constant": (
        lambda a: {"w": np.concatenate([a["w"], np.ones((1, 3))]), "v": a["v"]},
        "w[2, 0] is a constant",
    ),
    "puts in zeros": (
        lambda a: {"w": np.pad(a["w"], ((0, 1), (0, 0))), "v": a["v"]},
        "w[2, 0] is a constant",
    ),
    "scales": (lambda a: {"w": 2 * a["w"], "v": a["v"]}, "w[0, 0] is w[0, 0] times 2"),
    "negates": (lambda a: {"w": -a["w"], "v": a["v"]}, "w[0, 0] times -1"),
    "shifts": (
        lambda a: {"w": a["w"] + 1, "v": a["v"]}, "w[0, 0] is an element plus 1"
    ),
    "subtracts": (
        lambda a: {"w": a["w"] - a["v"], "v": a["v"]},
        "w[0, 0] is a constant, or a difference",
    ),
    "adds three": (
        lambda a: {"w": a["w"] + a["v"] + a["v"][::-1]},
        "w[0, 0] is a sum of several elements",
    ),
    "is not linear": (
        lambda a: {"w": np.sort(a["w"], 0), "v": a["v"]}, "no rearrangement at all"
    ),
    "adds what had other gradients": (
        lambda a: {"w": a["w"] + a["v"]},
        "did not get the same gradients",
    ),
    "forgets a leaf": (
        lambda a: {"w": a["w"]}, "missing v: `weights` does not give it"
    ),
    "turns it wrongly": (
        lambda a: {"w": a["w"].T, "v": a["v"]},
        "mis-shaped w (2, 3): `weights` gives (3, 2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_rearrangement_is_named(kind):
    function, words = WRONG[kind]
    content = source({"w": (2, 3), "v": (2, 3)})
    tree = function({n: np.zeros((2, 3), np.float32) for n in "wv"})
    if "missing" in words or "mis-shaped" in words:
        tree = {"w": np.zeros((2, 3)), "v": np.zeros((2, 3))}
    with pytest.raises(ValueError) as error:
        convert.load(content, tree, weights=function)
    assert words in str(error.value)


def test_a_name_that_the_source_does_not_have_shows_those_that_it_has():
    with pytest.raises(ValueError, match="asks for 'nosuch', and the source has w"):
        convert.load(
            source({"w": (2,)}), {"w": np.ones(2)}, weights=lambda a: a["nosuch"]
        )
    with pytest.raises(TypeError, match="must be a function"):
        convert.load(source({"w": (2,)}), {"w": np.ones(2)}, weights=3)


def test_what_the_optimizer_does_not_train_may_be_left():
    content = source({"w": (2, 3), "mean": (3,)}, names=["w"])
    tree = {"w": jnp.zeros((3, 2))}
    load = partial(convert.load, content, tree, weights=lambda a: {"w": a["w"].T})
    restored = load()
    assert restored.left_out == ("mean",)
    assert load(strict=True).assumed == ()
    del content["optimizer"]["param_groups"][0]["param_names"]
    content["model"] = {"w": content["model"]["w"]}
    assert load().assumed == ()  # shapes tell
    content["model"]["v"] = content["model"]["w"]


def test_a_sum_moves_twice_as_far_and_says_where_it_cannot():
    content = source(BIASES)
    for entry in content["optimizer"]["state"].values():
        del entry["grad_avg"]
    content["optimizer"]["param_groups"][0] |= {"centered": False, "momentum": 0.9}
    function, tree = KINDS["an RNN of one bias"][1], jnp.zeros(20)
    restored = convert.load(content, tree, weights=function)
    parts = {n: jnp.asarray(x) for n, x in content["model"].items()}
    both = convert.load(content, parts, weights=dict)
    rng = np.random.default_rng(1)
    params, state, states = restored.params, restored.state, both.state
    for _ in range(5):
        g = jnp.asarray(rng.normal(size=20), jnp.float32)
        updates, state = restored.optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        updates, states = both.optimizer.update(dict.fromkeys(parts, g), states, parts)
        parts = optax.apply_updates(parts, updates)
    np.testing.assert_allclose(params, sum(parts.values()), rtol=1e-6)
    written = convert.export(
        state, params, "torch", restored.groups, weights=function, like=content, step=12
    )
    for name, part in parts.items():
        np.testing.assert_allclose(written["model"][name], part, rtol=1e-5)
    content["optimizer"]["param_groups"][0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="sum of two parameters"):
        convert.load(content, tree, weights=function)


def test_the_command_takes_a_function_in_a_file(tmp_path, capsys, monkeypatch):
    folder = FOLDER / "torch_centered_momentum_wd"
    given, ours = folder / "checkpoint.safetensors", tmp_path / "ours.safetensors"
    (tmp_path / "mine.py").write_text(
        "import beside\n\ndef to_jax(arrays):\n"
        "    return {n: beside.turned(a) for n, a in arrays.items()}\n"
    )
    (tmp_path / "beside.py").write_text("def turned(a):\n    return a.T[::-1]\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    arrays = convert._torch.load(given)["model"]
    tree = {n: np.asarray(a).T[::-1] for n, a in arrays.items()}
    np.savez(tmp_path / "params.npz", **tree)
    options = ("--params", tmp_path / "params.npz", "--weights")
    function = f"{tmp_path / 'mine.py'}:to_jax"
    assert command(given, ours, *options, function) == 0
    assert "0.weight, rearranged" in " ".join(capsys.readouterr().out.split())
    restored = convert.load(ours, tree)
    jax.tree.map(np.testing.assert_array_equal, restored.params, tree)
    back = tmp_path / "back.safetensors"
    there: tuple = (ours, back, "--like", given, *options, function)
    assert command(*there, "--quiet") == 0, capsys.readouterr().err
    before, after = _arrays("torch", given), _arrays("torch", back)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=3e-7, atol=1e-12)
    for wrong in (f"{tmp_path / 'no.py'}:to_jax", f"{tmp_path / 'mine.py'}:other"):
        assert command(given, ours, *options, wrong) == 2
    error = capsys.readouterr().err
    assert "--weights takes MODULE.py:FUNCTION" in error
    assert "has no function other" in error


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    text = (Path(convert.__file__).parents[1] / "CONVERT.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    content = source(
        {
            "conv.weight": (4, 1, 3, 3),
            "fc.weight": (10, 256),
            "in_proj": (12, 6),
            "bias_ih": (20,),
            "bias_hh": (20,),
        }
    )
    tensors = _torch_files.as_tensors(torch, content)
    monkeypatch.chdir(tmp_path)
    torch.save(tensors, "run.pt")
    known = {"np": np, "convert": convert}
    function, _, rest = code.partition("\nrestored")
    exec(function, known)
    known["params"] = known["to_jax"](content["model"])
    exec(f"restored{rest}", known)
    before, after = (
        _arrays("torch", tmp_path / name) for name in ("run.pt", "back.pt")
    )
    assert len(before) == 5 * 4
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-6, atol=1e-6)
