"""What `Checkpoints` accepts: steps, folders, positions, settings and leaves."""

import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsprop_jax.checkpoint import Checkpoints

W = {"w": jnp.ones(3)}


@pytest.mark.parametrize(
    "step",
    [2.0, 1.5, np.float32(3), np.float64(3), jnp.float32(3), True, np.True_, "3", None]
    + [b"3", 3j, [3], np.asarray([3]), jnp.asarray([3]), float("nan")],
    ids=repr,
)
def test_what_is_no_integer_is_no_step(tmp_path, step):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(TypeError, match="`step` must be an integer"):
        checkpoints.save(step, W, ())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [-1, np.int8(-3), 2**63, 10**30])
def test_a_step_out_of_range(tmp_path, step):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(ValueError, match=r"`step` must be .* from 0"):
        checkpoints.save(step, W, ())
    assert not (tmp_path / "run").exists()


def test_integers_of_numpy_and_jax_are_steps(tmp_path):
    steps = [0, np.uint8(1), np.int64(2), jnp.int32(3), np.asarray(4), jnp.uint32(5)]
    with Checkpoints(tmp_path, keep=np.int32(9)) as checkpoints:
        for step in (*steps, 2**40, 2**63 - 1):
            checkpoints.save(step, W, ())
    assert checkpoints.steps == [0, 1, 2, 3, 4, 5, 2**40, 2**63 - 1]
    restored = checkpoints.restore(W, ())
    assert restored.step == 2**63 - 1
    assert type(restored.step) is int


FOREIGN = ["007", "٣", "1_000", "+8", "8 ", "8.0", "８", "99.damaged", "x"]


def test_only_canonical_numbers_are_steps(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs").write_text("kept")
    for step in (1, 2):  # the second run meets folders of the first and of others
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.restore(W, ())
            checkpoints.save(step, W, ())
    assert checkpoints.steps == [2]
    assert {x.name for x in tmp_path.iterdir()} == {*FOREIGN, "2"}
    assert all((tmp_path / name / "theirs").read_text() == "kept" for name in FOREIGN)


MODEL = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
DELETED = jnp.ones(3)
DELETED.delete()
UNWRITABLE = {
    "function": ({"net": MODEL}, TypeError, r"params\.net\.activation .*eqx\.is_array"),
    "string": ({"w": W, "name": "relu"}, TypeError, r"params\.name is a str, 'relu'"),
    "bytes": ([b"relu"], TypeError, r"params\.0 is a bytes"),
    "date": ({"at": np.datetime64("2020-01-01")}, TypeError, r"params\.at .*time64"),
    "dates": ({"at": np.zeros(2, "M8[s]")}, TypeError, r"params\.at has dtype"),
    "strings": (np.asarray(["a"]), TypeError, r"params has dtype <U1"),
    "objects": ({"o": np.asarray([None])}, TypeError, r"params\.o has dtype object"),
    "record": ({"r": np.zeros(2, "i4,f4")}, TypeError, r"params\.r has dtype"),
    "huge": ({"n": 2**70}, TypeError, r"params\.n has dtype object"),
    "uint4": ({"n": jnp.ones(2, jnp.uint4)}, TypeError, r"params\.n .*uint4.* Orbax"),
    "shape": (jax.eval_shape(lambda: W), TypeError, r"params\.w is a shape"),
    "deleted": ({"w": DELETED}, RuntimeError, r"params\.w .* deleted"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, name):
    tree, kind, words = UNWRITABLE[name]
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(kind, match=words):
            checkpoints.save(1, tree, ())
        with pytest.raises(kind, match=words.replace("params", "opt_state", 1)):
            checkpoints.save(1, (), tree)
        assert not (tmp_path / "run").exists()
        checkpoints.save(1, W, ())
    if name not in ("shape", "deleted"):
        with pytest.raises(kind, match=words):
            checkpoints.restore(tree, ())


def test_a_traced_leaf_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(TypeError, match=r"params\.w is traced: .*jax\.jit"):
        jax.jit(lambda w: checkpoints.save(1, {"w": w}, ()))(jnp.ones(3))
    with pytest.raises(TypeError, match=r"`step` must be known outside"):
        jax.jit(lambda step: checkpoints.save(step, W, ()))(1)


def test_the_arrays_of_an_equinox_model(tmp_path):
    arrays = eqx.filter(MODEL, eqx.is_array)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, arrays, ())
    restored = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: arrays), ())
    whole = eqx.combine(restored.params, MODEL)
    assert eqx.tree_equal(whole, MODEL)


def test_positions_hold_scalars_of_numpy_and_jax(tmp_path):
    position = {"batch": np.int64(3), "loss": np.float32(0.5), "at": jnp.int32(7)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, W, (), {**position, "seen": [np.True_, (1, "a")]})
    found = checkpoints.restore(W, ()).position
    assert found == {"batch": 3, "loss": 0.5, "at": 7, "seen": [True, [1, "a"]]}
    assert [type(x) for x in found.values()] == [int, float, int, list]


BAD = {
    "keys": (lambda c: c.save(1, W, (), {"a": [{1: 2}]}), TypeError, "key 1 is no"),
    "nan": (lambda c: c.save(1, W, (), {"x": float("nan")}), ValueError, "`position`"),
    "inf": (lambda c: c.save(1, W, (), [np.float64("inf")]), ValueError, "`position`"),
    "object": (lambda c: c.save(1, W, (), object()), TypeError, "`position`"),
    "array": (lambda c: c.save(1, W, (), np.ones(2)), TypeError, "`position`"),
    "keep 1.5": (lambda c: Checkpoints("x", keep=1.5), TypeError, "`keep`"),
    "keep True": (lambda c: Checkpoints("x", keep=True), TypeError, "`keep`"),
    "folder None": (lambda c: Checkpoints(None), TypeError, "`folder`"),
    "folder 3": (lambda c: Checkpoints(3), TypeError, "`folder`"),
    "folder bytes": (lambda c: Checkpoints(b"x"), TypeError, "`folder`"),
    "folder empty": (lambda c: Checkpoints(""), ValueError, "`folder`"),
    "bucket": (lambda c: Checkpoints("gs://a/b"), ValueError, "mount .*renam"),
    "a bucket's path": (lambda c: Checkpoints("s3:/a/b"), ValueError, "mount"),
    "settings list": (lambda c: Checkpoints("x", settings=[1]), TypeError, "`set"),
    "settings text": (lambda c: Checkpoints("x", settings="a"), TypeError, "`set"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_arguments(tmp_path, name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call(Checkpoints(tmp_path))
    assert not any(tmp_path.iterdir())


def test_settings_that_are_not_numbers_are_themselves(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path, settings={"floor": float("nan")}) as checkpoints:
            checkpoints.restore(W, ())
            checkpoints.save(len(checkpoints.steps), W, ())


WRITER = """
import sys, jax.numpy as jnp
from rmsprop_jax.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    print("ready", flush=True)
    for step in range(40):
        checkpoints.save(step, {"w": jnp.full(3, step)}, (), {"step": step})
"""


def test_a_reader_beside_a_writer_that_keeps_one(tmp_path):
    """What the reader was about to read goes away under it, again and again."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    reader, like, found = Checkpoints(tmp_path), {"w": jnp.ones(3, int)}, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        while writer.poll() is None:
            if (restored := reader.restore(like, ())) is None:
                time.sleep(0.01)
                continue
            assert (restored.params["w"] == restored.step).all()
            assert restored.position == {"step": restored.step}
            found.append(restored.step)
    assert writer.returncode == 0
    assert found == sorted(found)
    assert reader.restore(like, ()).step == 39
