"""Codes of one byte carry their range: a run goes on under another one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax import (
    RmsState,
    convert,
    diagnostics,
    dialects,
    rmsprop,
    scale_by_rms,
    sharding,
    storage,
)
from rmsprop_jax.checkpoint import Checkpoints
from table import assert_close, rms_of

pytestmark = pytest.mark.optimized

RANGES = {"default": "uint8", "low": storage.uint8(1e-17), "high": storage.uint8(1e-12)}
PARAMS = {"w": jnp.ones((8, 16)), "b": jnp.ones(8)}
STEPS = 12


def gradients(step):
    """Whose squares are in the middle of all ranges.

    None is small: the first average keeps 0.9 of the smallest number of its range.
    """
    rng = np.random.default_rng(step)

    def gradient(p):
        normal = rng.normal(size=p.shape)
        return jnp.asarray(normal + np.sign(normal), jnp.float32)

    return jax.tree.map(gradient, PARAMS)


def run(tx, state, first, params=PARAMS):
    """Updates of some steps, and the state after them."""
    step = jax.jit(tx.update)
    found = []
    for number in range(first, first + STEPS):
        updates, state = step(gradients(number), state, params)
        found.append(updates)
    return found, state


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def everything(form):
    return rmsprop(
        1e-3,
        centered=True,
        momentum=0.9,
        weight_decay=1e-2,
        skip_nonfinite=True,
        nu_dtype=form,
        mu_dtype="bfloat16",
    )


WRAPPED = {
    "scale_by_rms": lambda form: scale_by_rms(nu_dtype=form),
    "everything": everything,
    "torch": lambda form: dialects.torch(1e-3, nu_dtype=form),
    "inject_hyperparams": lambda form: optax.inject_hyperparams(
        partial(rmsprop, nu_dtype=form)
    )(1e-3),
    "masked": lambda form: optax.masked(
        scale_by_rms(nu_dtype=form), {"w": True, "b": False}
    ),
    "partition": lambda form: optax.partition(
        {"w": rmsprop(1e-3, nu_dtype=form), "b": rmsprop(1e-2, nu_dtype=form)},
        {"w": "w", "b": "b"},
    ),
    "MultiSteps": lambda form: optax.MultiSteps(
        rmsprop(1e-3, nu_dtype=form), 2
    ).gradient_transformation(),
    "apply_if_finite": lambda form: optax.apply_if_finite(
        rmsprop(1e-3, nu_dtype=form), 3
    ),
    "watch": lambda form: diagnostics.watch(rmsprop)(1e-3, nu_dtype=form),
}


@pytest.mark.promotion  # Optax's own
@pytest.mark.parametrize("new", ["low", "high"])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_run_whose_range_changes_is_one_that_always_had_it(name, new):
    old, other = (WRAPPED[name](RANGES[form]) for form in ("default", new))
    _, state = run(old, old.init(PARAMS), 0)
    _, expected = run(other, other.init(PARAMS), 0)
    found, state = run(other, state, STEPS)
    expected, expected_state = run(other, expected, STEPS)
    same(found, expected)
    same(state, expected_state)


def test_the_range_is_an_exponent_and_only_of_one_byte():
    assert rms_of(rmsprop(1, nu_dtype="uint8").init(PARAMS)).lowest == -44
    for form in ("uint16", "bfloat16"):
        assert rms_of(rmsprop(1, nu_dtype=form).init(PARAMS)).lowest is None
    for lowest in (1e-6, np.float32(1e-6), np.float64(1e-6), jnp.float32(1e-6)):
        assert storage.uint8(lowest) == storage.uint8(2.0**-20)
    for lowest in (4, np.int64(4), np.asarray(4)):
        assert storage.uint8(lowest) == storage.uint8(4.0)
    assert storage.uint8(3.9).lowest == storage.uint8(2.0).lowest == 1  # down


def test_codes_that_no_gradient_replaces_move_too():
    tx, new = (scale_by_rms(nu_dtype=RANGES[name]) for name in ("default", "low"))
    _, state = tx.update(gradients(0), tx.init(PARAMS))
    before = storage.decode(state).nu
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    _, after = new.update({**nan, "b": None}, state)
    assert after.lowest == storage.uint8(1e-17).lowest
    same(storage.decode(after).nu, before)
    # What the new range does not reach becomes its end.
    _, after = scale_by_rms(nu_dtype=storage.uint8(1e3)).update(
        {**nan, "b": None}, state
    )
    assert (storage.decode(after).nu["b"] == 512).all()


def test_members_and_stacked_states_have_ranges_of_their_own():
    members = jax.tree.map(lambda p: jnp.broadcast_to(p, (3, *p.shape)), PARAMS)
    tx, new = (scale_by_rms(nu_dtype=RANGES[name]) for name in ("default", "low"))
    states = jax.vmap(tx.init)(members)
    grads = jax.tree.map(lambda *g: jnp.stack(g), *map(gradients, range(3)))
    _, states = jax.vmap(tx.update)(grads, states)
    mixed = states._replace(
        nu=jax.tree.map(lambda x: x.at[1].add(4), states.nu),
        lowest=states.lowest.at[1].add(-1),
    )
    same(storage.decode(mixed), storage.decode(states))
    same(*(jax.vmap(new.update)(grads, s) for s in (mixed, states)))
    same(*(diagnostics.values(s) for s in (mixed, states)))
    same(storage.encode(storage.decode(mixed), "uint8"), states)


def test_checkpoints_keep_the_range(tmp_path):
    old, new = (rmsprop(1e-3, nu_dtype=RANGES[name]) for name in ("default", "low"))
    _, state = run(old, old.init(PARAMS), 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(STEPS, PARAMS, state)
        restored = checkpoints.restore(PARAMS, new.init(PARAMS)).opt_state
    same(restored, state)
    same(run(new, restored, STEPS), run(new, state, STEPS))


@pytest.mark.parametrize("to", [*RANGES, "uint16", "float32"])
@pytest.mark.parametrize("name", RANGES)
def test_migrate_reads_the_range_of_the_state(name, to):
    old = rmsprop(1e-3, nu_dtype=RANGES[name])
    new = rmsprop(1e-3, nu_dtype=RANGES.get(to, to))
    _, state = run(old, old.init(PARAMS), 0)
    migrated = convert.migrate(state, new, PARAMS)
    same(storage.decode(migrated)[0].nu, storage.decode(state)[0].nu)
    if to in RANGES:
        assert migrated[0].lowest == rms_of(new.init(PARAMS)).lowest


def test_diagnostics_read_the_range_of_the_state():
    tx = scale_by_rms(nu_dtype=RANGES["low"], centered=True)
    _, state = run(tx, tx.init(PARAMS), 0)
    moved = storage.encode(state, "uint8")
    assert moved.lowest == -44
    same(diagnostics.values(state), diagnostics.values(moved))
    same(diagnostics.values(state), diagnostics.values(state, nu_dtype="uint8"))


def test_decoding_and_encoding_whole_states():
    tx = everything(RANGES["low"])
    _, state = run(tx, tx.init(PARAMS), 0)
    wide = storage.decode(state)
    assert rms_of(wide).lowest is None
    assert {x.dtype for x in jax.tree.leaves(rms_of(wide).nu)} == {jnp.dtype("float32")}
    same(storage.encode(wide, RANGES["low"]), state)
    # The rest stays: the momentum, counts, and the mean.
    same(rms_of(wide)._replace(nu=0), rms_of(state)._replace(nu=0, lowest=None))
    nu = rms_of(state).nu
    same(storage.decode(nu, RANGES["low"]), rms_of(wide).nu)
    same(storage.encode(rms_of(wide).nu, RANGES["low"]), nu)
    same(
        storage.encode(rms_of(wide).nu, "uint8"),
        rms_of(storage.encode(state, "uint8")).nu,
    )
    with pytest.raises(TypeError, match="has uint8: `decode` it first"):
        storage.encode(nu, "uint8")
    with pytest.raises(TypeError, match="`nu_dtype` is int8"):
        storage.encode(rms_of(wide).nu, "int8")


def test_a_state_that_does_not_say_its_range_is_refused_and_can_be_told():
    tx = scale_by_rms(nu_dtype=RANGES["low"])
    _, state = run(tx, tx.init(PARAMS), 0)
    without = RmsState(state.count, state.nu, None)
    with pytest.raises(ValueError, match=r"its `lowest`, .* is None: .*old_nu_dtype"):
        tx.update(gradients(0), without)
    told = convert.migrate(without, tx, PARAMS, old_nu_dtype=RANGES["low"])
    same(told, state)
    same(
        diagnostics.values(without, nu_dtype=RANGES["low"]).leaves.effective_rate,
        diagnostics.values(state).leaves.effective_rate,
    )


@pytest.mark.parametrize("explicit", [False, True])
def test_the_range_is_placed_and_lives_through_meshes(explicit):
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    old, new = (rmsprop(1e-3, nu_dtype=RANGES[name]) for name in ("default", "low"))
    expected = run(new, run(old, old.init(PARAMS), 0)[1], STEPS)
    spec = {"w": PartitionSpec("data", None), "b": PartitionSpec("data")}
    shardings = {k: NamedSharding(mesh, s) for k, s in spec.items()}
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, shardings)
        state = sharding.init(old, params)
        assert state[0].lowest.sharding.is_fully_replicated
        for number in range(2 * STEPS):
            tx = old if number < STEPS else new
            grads = jax.device_put(gradients(number), shardings)
            _, state = jax.jit(tx.update)(grads, state, params)
    same(state, expected[1])


def test_zero_carries_the_range():
    mesh = Mesh(jax.devices()[:8], ("data",))
    old, new = (rmsprop(1e-3, nu_dtype=RANGES[name]) for name in ("default", "low"))

    def both(wrap):
        a, b = wrap(old), wrap(new)
        first, second = gradients(0), gradients(1)

        def go(_):
            state = a.init(PARAMS)
            _, state = a.update(first, state, PARAMS)
            updates, state = b.update(second, state, PARAMS)
            return updates

        return go

    zero = both(lambda tx: sharding.zero(tx, "data"))
    whole = PartitionSpec()
    mapped = jax.shard_map(
        zero, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
    )
    expected = jax.jit(both(lambda tx: tx))(0)
    assert_close(jax.jit(mapped)(0), expected, 1e-6)  # as one program, so fused
