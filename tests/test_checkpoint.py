"""Checkpoints: what comes back, what is refused, and what damage does."""

import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax import convert, rmsprop
from rmsprop_jax.checkpoint import Checkpoints
from table import tree

pytestmark = pytest.mark.promotion

PARAMS = tree("float32")
TX = rmsprop(0.1, momentum=0.9, nu_dtype="uint8")


def trained(tx=TX, params=PARAMS, steps=3):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(params, state, params)
    return state


def mesh(devices):
    return Mesh(np.asarray(jax.devices()[:devices]), ("x",))


def on(devices, tree):
    """Leaves of 8 rows split over devices, the others replicated."""

    def place(x):
        spec = PartitionSpec("x") if x.ndim and x.shape[0] % 8 == 0 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh(devices), spec))

    return jax.tree.map(place, tree)


def identical(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_everything_comes_back(tmp_path):
    """All dtypes, random keys, numbers, empty leaves; with its position."""
    params = {
        **{dtype: jnp.asarray([1, 2, 3], dtype) for dtype in
           ("float32", "bfloat16", "float16", "uint8", "uint16", "int32", "complex64")},
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "numpy": np.arange(4.0),
        "number": 2.5,
        "whole": 3,
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "list": [jnp.ones(2), (jnp.zeros(()),)],
        "a/b": jnp.ones(1),
    }  # fmt: skip
    state, position = trained(), {"epoch": 1, "batch": 17, "seen": [0.1, "a"]}
    with Checkpoints(tmp_path / "new" / "run") as checkpoints:
        assert checkpoints.restore(params, state) is None
        checkpoints.save(3, params, state, position)
    blank = jax.tree.map(lambda x: x * 0 if isinstance(x, np.ndarray) else x, params)
    restored = Checkpoints(tmp_path / "new" / "run").restore(blank, TX.init(PARAMS))
    assert restored.step == 3
    assert restored.position == position
    identical(restored.params, params)
    identical(restored.opt_state, state)
    abstract = jax.eval_shape(lambda: (params["key"], TX.init(PARAMS)))
    key = {**params, "key": abstract[0]}
    restored = Checkpoints(tmp_path / "new" / "run").restore(key, abstract[1])
    identical(restored.params, params)
    identical(restored.opt_state, state)


def test_arrays_may_be_donated_or_changed_when_save_returns(tmp_path):
    """A hundred megabytes a time, which are still being written then."""

    @partial(jax.jit, donate_argnums=0)
    def add_one(x):
        return x + 1

    x, y = jnp.zeros((2000, 2000)), np.zeros((2000, 2000))
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(4):
            checkpoints.save(step, x, y)
            for _ in range(2):
                x = add_one(x)
                y += 1
    for step in reversed(range(4)):
        restored = Checkpoints(tmp_path).restore(x, y)
        assert restored.step == step
        assert {*np.unique(restored.params), *np.unique(restored.opt_state)} == {
            2 * step
        }
        shutil.rmtree(tmp_path / str(step))


def test_the_last_few_are_kept_and_steps_ascend(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 5, 7):
            checkpoints.save(step, PARAMS, ())
        checkpoints.wait()
        assert checkpoints.steps == [5, 7]
        for step in (7, 6):
            with pytest.raises(ValueError, match="more than 7, the newest"):
                checkpoints.save(step, PARAMS, ())
    assert sorted(x.name for x in tmp_path.iterdir()) == ["5", "7"]


def test_what_a_kill_left_unfinished_goes_with_the_next_save(tmp_path):
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "9.orbax-checkpoint-tmp" / "x").write_text("half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(PARAMS, ()) is None
    assert (tmp_path / "9.orbax-checkpoint-tmp").exists()  # of a run that goes on, say
    checkpoints.save(1, PARAMS, ())
    checkpoints.close()
    assert [x.name for x in tmp_path.iterdir()] == ["1"]


def test_nnx_models_and_optimizers_are_restored_in_place(tmp_path):
    class Net(nnx.Module):
        def __init__(self, seed):
            rngs = nnx.Rngs(seed)
            self.inner = nnx.Linear(3, 3, rngs=rngs)
            self.shared = self.inner
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def start(seed):
        model = Net(seed)
        return model, nnx.Optimizer(model, TX, wrt=nnx.Param)

    model, optimizer = start(0)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, model, optimizer)
    other, other_optimizer = start(1)
    restored = Checkpoints(tmp_path).restore(other, other_optimizer)
    assert restored.params is other
    assert other.shared is other.inner
    identical(nnx.state(other), nnx.state(model))
    identical(nnx.state(other_optimizer), nnx.state(optimizer))
    # A state, or pure dictionaries, have the same names.
    state = nnx.state(start(2)[0])
    identical(
        Checkpoints(tmp_path).restore(state, nnx.state(optimizer)).params,
        nnx.state(model),
    )


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [(8, 2, "init"), (2, 1, "shapes"), (1, 8, "shapes"), (8, None, "init")],
)
def test_restores_onto_another_mesh(tmp_path, before, after, how):
    params = on(before, PARAMS)
    state = trained(params=params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, state)
    wanted = PARAMS if after is None else on(after, PARAMS)
    like = wanted, TX.init(wanted)
    if how == "shapes":
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding if x.committed else None
            ),
            like,
        )
    restored = Checkpoints(tmp_path).restore(*like)
    for found, expected, target in zip(
        jax.tree.leaves(restored[1:3]),
        jax.tree.leaves((params, state)),
        jax.tree.leaves((wanted, TX.init(wanted))),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        assert found.sharding == target.sharding
        assert found.committed == target.committed
    identical(trained(params=wanted), restored.opt_state)
    TX.update(restored.params, restored.opt_state)  # all are on the same devices


CHILD = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rmsprop_jax import rmsprop
from rmsprop_jax.checkpoint import Checkpoints
folder, steps = sys.argv[1], int(sys.argv[2])
mesh = Mesh(np.asarray(jax.devices()), ("x",))
w = np.linspace(-1, 1, 80, dtype=np.float32).reshape(16, 5)
params = {"w": jax.device_put(w, NamedSharding(mesh, PartitionSpec("x")))}
tx = rmsprop(0.01, momentum=0.9, nu_dtype="uint8")
state, start = tx.init(params), 0
@jax.jit
def update(params, state):
    updates, state = tx.update(params, state)
    return jax.tree.map(jnp.add, params, updates), state
def show(*trees):
    print(*(np.asarray(x).tobytes().hex() for x in jax.tree.leaves(trees)))
with Checkpoints(folder) as checkpoints:
    if restored := checkpoints.restore(params, state):
        start, params, state, _ = restored
    show(params, state)
    for step in range(start + 1, steps + 1):
        params, state = update(params, state)
    checkpoints.save(steps, params, state)
assert len(params["w"].sharding.device_set) == len(jax.devices())
show(params, state)
print(start)
"""


def child(folder, devices, steps):
    """Trains in a process of its own: what it had at its start and end, in bytes."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    )
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(steps)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    *states, start = run.stdout.splitlines()
    return *(tuple(map(bytes.fromhex, s.split())) for s in states), int(start)


@pytest.mark.slow
def test_processes_of_8_then_2_then_1_device(tmp_path):
    _, of_8, start = child(tmp_path / "run", 8, 3)
    assert start == 0
    restored, of_2, start = child(tmp_path / "run", 2, 6)
    assert (restored, start) == (of_8, 3)
    restored, of_1, start = child(tmp_path / "run", 1, 9)
    assert (restored, start) == (of_2, 6)
    _, alone, _ = child(tmp_path / "alone", 1, 9)
    # XLA's root may differ in the last bit from layout to layout.
    params = [np.frombuffer(state[0], np.float32) for state in (of_1, alone)]
    np.testing.assert_allclose(*params, rtol=1e-5, atol=1e-7)


# What was saved; what is wanted; what the error says of it.
MISFITS = {
    "nu_dtype": (
        rmsprop(0.1), rmsprop(0.1, nu_dtype="uint8"),
        "opt_state.0.nu.b was saved as float32[3], expected is uint8[3]",
    ),
    "momentum": (
        rmsprop(0.1), rmsprop(0.1, momentum=0.9),
        "opt_state.2.trace.b was not saved, expected is float32[3]",
    ),
    "schedule": (
        rmsprop(0.1), rmsprop(lambda count: 0.1),
        "opt_state.1.count was not saved, expected is int32[]",
    ),
    "no schedule": (
        rmsprop(lambda count: 0.1), rmsprop(0.1),
        "opt_state.1.count was saved as int32[], and is not expected",
    ),
    "Optax, centred": (
        optax.rmsprop(0.1, centered=True), rmsprop(0.1, centered=True),
        "opt_state.0 was saved as optax.ScaleByRStdDevState, expected is "
        "rmsprop_jax.RmsState; opt_state.0.count was not saved, expected is int32[]",
    ),
    "Optax, corrected": (
        optax.rmsprop(0.1, bias_correction=True), rmsprop(0.1, bias_correction=True),
        "opt_state.0 was saved as optax.ScaleByRmsWithCountState",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_another_transformation_fails_with_the_call_that_migrates(tmp_path, name):
    old, new, words = MISFITS[name]
    state = trained(old)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, PARAMS, state)
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            checkpoints.restore(PARAMS, new.init(PARAMS))
        assert "rmsprop_jax.convert.migrate(old.opt_state, tx, params)" in str(
            error.value
        )
        restored = checkpoints.restore(PARAMS, old.init(PARAMS))
    migrated = convert.migrate(
        restored.opt_state, new, PARAMS, step=restored.step, decay=0.9
    )
    if "count" in migrated[0]._fields:
        assert migrated[0].count == 3
    new.update(PARAMS, migrated)


def test_skip_nonfinite_changes_nothing_in_the_state(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, PARAMS, trained())
        tx = rmsprop(0.1, momentum=0.9, nu_dtype="uint8", skip_nonfinite=True)
        identical(checkpoints.restore(PARAMS, tx.init(PARAMS)).opt_state, trained())


def test_another_model_is_named_and_long_lists_are_cut(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, PARAMS, ())
        with pytest.raises(ValueError, match=r"params.w .*\[8,3\].*\[8,4\]") as error:
            checkpoints.restore({**PARAMS, "w": jnp.ones((8, 4))}, ())
        assert "migrate" not in str(error.value)
        many = {**PARAMS, "many": [jnp.ones(1)] * 20}
        with pytest.raises(ValueError, match="and 14 more"):
            checkpoints.restore(many, ())


def test_other_settings_are_named(tmp_path):
    settings = {"seed": 1, "rates": (0.1, 0.2), "nu_dtype": jnp.dtype("uint8")}
    with Checkpoints(tmp_path, settings=settings) as checkpoints:
        checkpoints.save(1, PARAMS, ())
    assert Checkpoints(tmp_path, settings=settings).restore(PARAMS, ()).step == 1
    assert Checkpoints(tmp_path).restore(PARAMS, ()).step == 1
    other = Checkpoints(tmp_path, settings={**settings, "seed": 2})
    with pytest.raises(ValueError, match=r"settings: `seed` was 1, is 2\. Use those"):
        other.restore(PARAMS, ())


BAD = {
    "keep": (lambda folder: Checkpoints(folder, keep=0), ValueError, "`keep`"),
    "bucket": (lambda folder: Checkpoints("gs://a/b"), ValueError, "mount"),
    "file": (lambda folder: Checkpoints(__file__), NotADirectoryError, "is a file"),
    "position": (
        lambda folder: Checkpoints(folder).save(1, PARAMS, (), {"at": np.ones(2)}),
        TypeError,
        "`position` must be what JSON can hold",
    ),
    # Orbax would write one over the other.
    "names": (
        lambda folder: Checkpoints(folder).save(
            1, {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, ()
        ),
        ValueError,
        "Two leaves have one name, params.a.b",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call(tmp_path)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, PARAMS, trained(steps=step), {"batch": step})
    return tmp_path


def flip(path, generator):
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def truncate(path, generator):
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def remove(path, generator):
    path.unlink()


NEEDLESS = {"_CHECKPOINT_METADATA", "commit_success.txt"}
"""Files that Orbax writes last: nothing in them is restored."""


@pytest.mark.parametrize(("damage", "times"), [(flip, 4), (truncate, 2), (remove, 1)])
def test_damage_anywhere_is_told_and_the_one_before_is_used(saved, damage, times):
    """Every file of the newest checkpoint, at random places."""
    generator = random.Random(0)
    files = [path for path in (saved / "2").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= NEEDLESS | {"SHA256SUMS", "metadata"}
    like = PARAMS, TX.init(PARAMS)
    for path in files:
        whole = path.read_bytes()
        needed = path.relative_to(saved / "2").as_posix() not in NEEDLESS
        for _ in range(times):
            damage(path, generator)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                restored = Checkpoints(saved).restore(*like)
            step = 1 if needed else 2
            assert restored.step == step, path
            assert restored.position == {"batch": step}
            identical(restored.opt_state, trained(steps=step))
            said = [str(w.message) for w in caught if "Damaged" in str(w.message)]
            assert len(said) == needed, path
            assert all("step 2: " in x and "step 1 is used" in x for x in said)
            path.write_bytes(whole)
    assert Checkpoints(saved).restore(*like).step == 2


def test_a_run_goes_on_from_the_one_before_and_keeps_the_damaged_one_aside(saved):
    remove(saved / "2" / "SHA256SUMS", None)
    with Checkpoints(saved) as checkpoints:
        with pytest.warns(UserWarning, match=r"step 2: it has no SHA256SUMS"):
            checkpoints.restore(PARAMS, TX.init(PARAMS))
        checkpoints.save(2, PARAMS, trained(steps=2), {"batch": 2})
        checkpoints.close()
        checkpoints.save(3, PARAMS, trained(steps=3), {"batch": 3})
    assert {x.name for x in saved.iterdir()} == {"1", "2", "2.damaged", "3"}
    assert Checkpoints(saved).restore(PARAMS, TX.init(PARAMS)).step == 3


def test_digests_that_were_cut_at_a_line_hide_nothing(saved):
    digests = saved / "2" / "SHA256SUMS"
    *lines, last = digests.read_text().splitlines(keepends=True)
    digests.write_text("".join(lines))
    name = last.split()[1]
    with pytest.warns(UserWarning, match=f"{name} is not in SHA256SUMS"):
        assert Checkpoints(saved).restore(PARAMS, TX.init(PARAMS)).step == 1


def test_none_whole_is_one_error(saved):
    for step in ("1", "2"):
        remove(saved / step / "position" / "metadata", None)
    with pytest.raises(ValueError, match="No checkpoint in") as error:
        Checkpoints(saved).restore(PARAMS, TX.init(PARAMS))
    assert "step 1: position/metadata is missing" in str(error.value)
    assert "step 2: position/metadata is missing" in str(error.value)


def test_a_person_can_check_the_digests(saved):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    for step in ("1", "2"):
        check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
        subprocess.run(check, cwd=saved / step, check=True)


LIMITED = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from rmsprop_jax.checkpoint import Checkpoints
noise = jnp.asarray(np.random.default_rng(0).normal(size=100_000), jnp.float32)
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, noise, ())
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for step in (2, 3):
    try:
        checkpoints.save(step, noise + 1, ())
        checkpoints.wait()
    except OSError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(checkpoints.steps)
assert (checkpoints.restore(noise, ()).params == noise).all()
checkpoints.save(4, noise + 2, ())
checkpoints.close()
print(checkpoints.steps)
"""


def test_a_failed_write_leaves_the_last_one_and_saving_works_again(tmp_path):
    """Files may not grow beyond a limit: what a full disk does, without a disk."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    *errors, during, after = run.stdout.splitlines()
    assert len(errors) == 2
    for step, error in zip((2, 3), errors, strict=True):
        assert f"step {step} could not be written" in error
        assert "that of step 1 is as it was" in error
    assert (during, after) == ("[1]", "[4]")
    assert [x.name for x in tmp_path.iterdir()] == ["4"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="not root")
def test_a_full_disk_leaves_the_last_one(tmp_path):
    size = ["-o", "size=1m"]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(tmp_path)])
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        noise = np.random.default_rng(0).normal(size=80_000)
        checkpoints = Checkpoints(tmp_path, keep=2)
        checkpoints.save(1, noise, ())
        checkpoints.save(2, noise + 1, ())
        with pytest.raises(OSError, match="could not be written") as error:
            checkpoints.wait()
        assert "that of step 1 is as it was" in str(error.value)
        np.testing.assert_array_equal(checkpoints.restore(noise, ()).params, noise)
        checkpoints.save(3, noise[:10], ())
        checkpoints.close()
        assert Checkpoints(tmp_path).steps == [1, 3]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
