"""The manifest of a checkpoint, and checkpoints from before there was one."""

import json
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax
from rmsprop_jax import rmsprop
from rmsprop_jax.checkpoint import Checkpoints, _digests

pytestmark = pytest.mark.promotion

PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) / 10, "b": jnp.ones(3)}


def save(folder, tx, params=PARAMS, step=4):
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, params, state)
    return state


def manifest_in(folder, step=4):
    return json.loads((folder / str(step) / "manifest.json").read_text("utf-8"))


def test_it_says_what_is_in_a_checkpoint(tmp_path):
    tx = optax.inject_hyperparams(rmsprop)(0.1, nu_dtype="uint8", momentum=0.9)
    params = {**PARAMS, "key": jax.random.key(1), "n": 3, "empty": jnp.zeros((0, 2))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, params, tx.init(PARAMS))
    found = manifest_in(tmp_path)
    assert found["step"] == 4
    assert found["versions"]["rmsprop-jax"] == rmsprop_jax.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["optax"] == optax.__version__
    leaves = found["leaves"]
    assert leaves["params.w"] == {
        "dtype": "float32",
        "shape": [2, 3],
        "stored": "array",
    }
    assert leaves["params.key"]["stored"] == "random key of threefry2x32"
    assert leaves["params.n"]["stored"] == "Python int"
    assert leaves["params.empty"]["shape"] == [0, 2]
    (nu,) = [x for name, x in leaves.items() if name.endswith("nu.w")]
    assert nu["dtype"] == "uint8"
    assert "2 of mantissa" in nu["stored"]
    elements = found["elements"]
    injected = elements["opt_state"]["hyperparams"]
    assert abs(injected["learning_rate"] - 0.1) < 1e-7
    assert abs(injected["momentum"] - 0.9) < 1e-7
    (state,) = [x for x in elements.values() if "nu" in x]
    assert state["class"].startswith("rmsprop_jax.")
    assert state["count"] == 0
    assert state["nu"] == "uint8"
    assert "optax.TraceState" in {x["class"] for x in elements.values()}


def test_names_that_agree_are_not_enough(tmp_path):
    """Adam's averages have the names, shapes and dtypes of a centred RMSProp's."""
    tx = optax.scale_by_adam()
    save(tmp_path, tx)
    other = rmsprop_jax.scale_by_rms(centered=True)
    with pytest.raises(ValueError, match=r"optax\.ScaleByAdamState.*convert\.migrate"):
        Checkpoints(tmp_path).restore(PARAMS, other.init(PARAMS))
    restored = Checkpoints(tmp_path).restore(PARAMS, tx.init(PARAMS))
    assert restored.opt_state.count == 1


@pytest.mark.parametrize(
    ("saved", "given", "words"),
    [
        (jax.random.key(1), jax.random.key(1, impl="rbg"), "fry.*expected.*rbg"),
        (jnp.zeros((0, 3)), jnp.zeros((0, 4)), r"shape \[0, 3\].*\[0, 4\]"),
        (jnp.zeros((0, 3)), jnp.zeros((0, 3), int), "dtype float32.*int32"),
    ],
)
def test_what_orbax_does_not_compare(tmp_path, saved, given, words):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": saved, "w": jnp.ones(2)}, ())
    like = {"x": given, "w": jnp.ones(2)}
    with pytest.raises(ValueError, match=rf"params\.x was saved.*{words}"):
        Checkpoints(tmp_path).restore(like, ())


def test_that_of_a_later_version_names_the_version(tmp_path):
    save(tmp_path, rmsprop(0.1))
    path = tmp_path / "4" / "manifest.json"
    later = {**manifest_in(tmp_path), "format": 99}
    later["versions"]["rmsprop-jax"] = "7.0"
    path.write_text(json.dumps(later))
    _digests.write(tmp_path / "4")
    with pytest.raises(ValueError, match=r"rmsprop-jax 7\.0"):
        Checkpoints(tmp_path).restore(PARAMS, rmsprop(0.1).init(PARAMS))


def test_a_changed_manifest_is_damage(tmp_path):
    save(tmp_path, rmsprop(0.1))
    path = tmp_path / "4" / "manifest.json"
    path.write_text(path.read_text().replace("float32", "float16"))
    with pytest.raises(ValueError, match=r"manifest\.json is not what was written"):
        Checkpoints(tmp_path).restore(PARAMS, rmsprop(0.1).init(PARAMS))


# Written by version 0.1.0 itself after three updates; beside each, its arrays.
FIRST = Path(__file__).parent / "golden" / "first_version.zip"
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "schedule": {"learning_rate": optax.cosine_decay_schedule(0.1, 100)},
    "centred": {"centered": True},
    "bias": {"bias_correction": True},
    "uint8": {"nu_dtype": "uint8"},
    "uint16": {"nu_dtype": "uint16", "momentum": 0.9},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_checkpoints_of_the_first_version_go_on(tmp_path, name):
    with zipfile.ZipFile(FIRST) as archive:
        archive.extractall(tmp_path)
    tx = rmsprop(**{"learning_rate": 0.1, **OPTIONS[name]})
    with np.load(tmp_path / f"{name}.npz") as arrays:
        expected = dict(arrays)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = Checkpoints(tmp_path / name, settings={"seed": 1}).restore(
            PARAMS, tx.init(PARAMS)
        )
    assert (restored.step, restored.position) == (3, {"batch": 3})
    trees = {"params": restored.params, "opt_state": restored.opt_state}
    found = jax.tree_util.tree_leaves_with_path(trees)
    checked = 0
    for path, leaf in found:
        key = jax.tree_util.keystr(path)
        if key.endswith("lowest"):
            assert key not in expected
            continue
        assert leaf.dtype == expected[key].dtype
        np.testing.assert_array_equal(leaf, expected[key])
        checked += 1
    gone = set(expected) - {jax.tree_util.keystr(path) for path, _ in found}
    assert all(key.endswith("[0].count") for key in gone)
    said = any("is left out" in str(warning.message) for warning in caught)
    assert said == bool(gone)
    assert checked == len(expected) - len(gone)
    tx.update(PARAMS, restored.opt_state, restored.params)
