"""`convert.migrate` at its borders: Adam, wrappers, dictionaries, host memory."""

import functools
import pickle
from functools import partial

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from rmsprop_jax import RmsState, convert, diagnostics, rmsprop, scale_by_rms
from table import assert_close, rms_of, tree

pytestmark = pytest.mark.promotion

STEPS = 5
PARAMS = tree("float32")
watch, inject = diagnostics.watch, optax.inject_hyperparams
migrate = convert.migrate


def gradients(step):
    return tree("float32", seed=step + 1)


def ran(tx, steps=STEPS, params=PARAMS):
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        _, state = update(gradients(step), state, params)
    return state


def next_updates(tx, state, first=STEPS, steps=2):
    made, update = [], jax.jit(tx.update)
    for step in range(first, first + steps):
        updates, state = update(gradients(step), state, PARAMS)
        made.append(updates)
    return made


RULES = {
    "plain": rmsprop(0.1, momentum=0.9),
    "watch": watch(rmsprop)(0.1, momentum=0.9),
    "watch, also": watch(rmsprop, also=("gradients", "updates"))(0.1, momentum=0.9),
    "inject": inject(rmsprop)(0.1, momentum=0.9),
    "inject Optax": inject(optax.rmsprop)(0.1, momentum=0.9),
    "finite": optax.apply_if_finite(rmsprop(0.1, momentum=0.9), 3),
    "accumulate": optax.MultiSteps(rmsprop(0.1, momentum=0.9), 1),
    "schedule, all": optax.apply_if_finite(
        optax.MultiSteps(inject(rmsprop)(lambda count: 0.1, momentum=0.9), 1), 3
    ),
    "clip": optax.chain(optax.clip(1e9), rmsprop(0.1, momentum=0.9)),
}
NAMES = tuple(RULES)
PAIRS = [
    (NAMES[i], NAMES[(i + far) % len(NAMES)])
    for far in (0, 1, 4)
    for i in range(len(NAMES))
]
ran_once = functools.cache(lambda name: ran(RULES[name]))


@functools.cache
def expected_updates():
    return next_updates(RULES["plain"], ran_once("plain"))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_what_stands_around_comes_and_goes(old, new):
    """Whatever was around RMSProp, and is: the run goes on as under the new one."""
    state, new = ran_once(old), RULES[new]
    state = migrate(state, new, PARAMS, step=STEPS)
    fresh = new.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    dtypes = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (state, fresh)]
    assert dtypes[0] == dtypes[1]
    assert_close(next_updates(new, state), expected_updates(), 2e-6)


def test_counts_around_go_on():
    new = RULES["schedule, all"]
    state = migrate(ran_once("plain"), new, PARAMS, step=STEPS)
    inner = state.inner_state
    assert inner.gradient_step == STEPS
    assert inner.mini_step == 0
    assert inner.inner_opt_state.count == STEPS
    (schedule,) = inner.inner_opt_state.hyperparams_states.values()
    assert schedule.count == STEPS
    # And they tell the step where the average has no count.
    assert (
        migrate(state, rmsprop(0.1, centered=True, momentum=0.9), PARAMS)[0].count
        == STEPS
    )


def test_a_count_outside_of_what_skips_does_not_tell():
    old = inject(lambda rate: optax.MultiSteps(optax.rmsprop(rate), 2))(0.1)
    state = ran(old, 6)
    assert state.count == 6
    assert migrate(state, rmsprop(0.1, centered=True), PARAMS)[0].count == 3


def test_gathered_gradients_are_not_lost():
    state = ran(optax.MultiSteps(rmsprop(0.1), 4), 6)
    with pytest.raises(ValueError, match=r"acc_grads.*2 gradients.*mini_step is 0"):
        migrate(state, rmsprop(0.1), PARAMS)
    kept = migrate(state, optax.MultiSteps(rmsprop(0.1, nu_dtype="uint8"), 4), PARAMS)
    assert kept.mini_step == 2
    assert_close(kept.acc_grads, state.acc_grads)
    with pytest.raises(ValueError, match="2 gathered gradients, and `tx` gathers 2"):
        migrate(state, optax.MultiSteps(rmsprop(0.1), 2), PARAMS)


def test_changed_hyperparameters_stay_and_rounded_ones_do_not():
    """Optax keeps hyperparameters in the parameters' dtype: 0.999 is 1.0 there."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    old = inject(optax.rmsprop)(0.1, decay=0.999)
    state = old.init(params)
    state.hyperparams["learning_rate"] = jnp.bfloat16(0.75)
    new = inject(rmsprop)(0.1, decay=0.999)
    found = migrate(state, new, params, step=0).hyperparams
    assert found["learning_rate"] == 0.75
    assert found["decay"] == jnp.float32(0.999)
    assert found["decay"].dtype == jnp.float32


def test_an_element_that_has_values_of_its_own_is_named():
    new = optax.chain(rmsprop(0.1), optax.contrib.reduce_on_plateau())
    with pytest.raises(ValueError, match="`tx` has scale in"):
        migrate(ran(rmsprop(0.1)), new, PARAMS, step=1)
    with pytest.raises(ValueError, match=r"The state has .*best_value.*lost"):
        migrate(new.init(PARAMS), rmsprop(0.1), PARAMS)


def test_remainders_of_parameters_come_and_go():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    plain, kept = rmsprop(0.1), rmsprop(0.1, round_params="remainder")
    state = migrate(plain.init(params), kept, params, step=STEPS)
    assert state[-1].count == STEPS
    _, state = kept.update(params, state, params)
    assert any(x.any() for x in jax.tree.leaves(state[-1].remainder))
    for new in (plain, rmsprop(0.1, round_params="stochastic", nu_dtype="uint8")):
        with pytest.warns(UserWarning, match=r"remainders .*rounding\.merge"):
            found = migrate(state, new, params)
        new.update(params, found, params)


STORED = {
    "plain": (optax.rmsprop(0.1), rmsprop(0.1)),
    "momentum": (optax.rmsprop(0.1, momentum=0.9), rmsprop(0.1, momentum=0.9)),
    "centred": (optax.rmsprop(0.1, centered=True), rmsprop(0.1, centered=True)),
    "bias": (
        optax.rmsprop(0.1, bias_correction=True),
        rmsprop(0.1, bias_correction=True),
    ),
    "schedule": (
        optax.rmsprop(lambda c: 0.1),
        rmsprop(lambda c: 0.1, nu_dtype="uint8"),
    ),
    "accumulate": (optax.MultiSteps(optax.rmsprop(0.1), 1), rmsprop(0.1)),
    "ours": (rmsprop(0.1, nu_dtype="uint16"), rmsprop(0.1)),
    "ours, centred": (rmsprop(0.1, centered=True), rmsprop(0.1)),
}


def through_flax(state, folder):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


def through_orbax(handler, state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    return handler().restore(folder / "state")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "route",
    [
        through_flax,
        partial(through_orbax, ocp.StandardCheckpointer),
        partial(through_orbax, ocp.PyTreeCheckpointer),
    ],
    ids=["flax", "standard", "pytree"],
)
@pytest.mark.parametrize("name", STORED)
def test_dictionaries_and_lists_as_libraries_restore_them(tmp_path, name, route):
    old, new = STORED[name]
    state = ran(old, 2)
    options = {"step": 2, "decay": 0.9}
    expected = migrate(state, new, PARAMS, **options)
    found = migrate(route(state, tmp_path), new, PARAMS, **options)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_names_that_may_be_adams_need_the_transformation():
    old = optax.rmsprop(0.1, centered=True, bias_correction=True)
    state = flax.serialization.to_state_dict(ran(old))
    new = rmsprop(0.1, centered=True)
    with pytest.raises(ValueError, match=r"may be .*Adam.*`old_tx`"):
        migrate(state, new, PARAMS, decay=0.9)
    found = migrate(state, new, PARAMS, decay=0.9, old_tx=old)
    expected = migrate(ran(old), new, PARAMS, decay=0.9)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match=r"not one of `old_tx`: at 0\.trace"):
        migrate(state, new, PARAMS, decay=0.9, old_tx=optax.sgd(0.1, momentum=0.9))


def test_a_state_of_the_first_version():
    """It was (count, nu, mu) for all options, mu None where not centred."""
    nu = jax.tree.map(jnp.square, PARAMS)
    count = jnp.asarray(STEPS, jnp.int32)
    for first in (
        (count, nu, None),
        {"count": count, "nu": nu, "mu": None},
        RmsState(count, nu, None),
    ):
        for state in (first, (first, optax.EmptyState())):
            assert_close(rms_of(migrate(state, rmsprop(0.1), PARAMS)).nu, nu)
            narrow = migrate(state, rmsprop(0.1, nu_dtype="uint16"), PARAMS)
            assert rms_of(narrow).count == STEPS
    centred = {"count": count, "nu": nu, "mu": PARAMS}
    found = rms_of(migrate(centred, rmsprop(0.1, centered=True), PARAMS))
    assert_close(found.nu, nu, 1e-6)
    assert_close(found.mu, PARAMS)


def test_pickled_states_of_optax_go_on():
    state = pickle.loads(pickle.dumps(ran(optax.rmsprop(0.1, momentum=0.9))))
    new = rmsprop(0.1, momentum=0.9)
    assert_close(
        next_updates(new, state), next_updates(new, migrate(state, new, PARAMS)), 0
    )


def test_bfloat16_averages_of_optax_become_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state = optax.rmsprop(0.1).init(params)
    state = jax.tree.map(lambda x: x + jnp.bfloat16(0.3), state)
    new = rmsprop(0.1)
    with pytest.raises(TypeError, match=r"bfloat16.*convert\.migrate"):
        new.update(params, state, params)
    found = migrate(state, new, params)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_close(found[0].nu, state[0].nu)
    _, after = new.update(params, found, params)
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_complex_averages_of_optax_become_real():
    params = {"z": jnp.asarray([1 + 1j, -1j])}
    old, new = optax.rmsprop(0.1), rmsprop(0.1)
    _, state = old.update(params, old.init(params))
    expected, _ = old.update(params, state)
    with pytest.raises(TypeError, match=r"nu\['z'\] is complex64.*convert\.migrate"):
        new.update(params, state, params)
    found = migrate(state, new, params)
    assert found[0].nu["z"].dtype == jnp.float32
    assert_close(new.update(params, found, params)[0], expected, 1e-6)


def test_a_traced_state_is_named():
    new = rmsprop(0.1, nu_dtype="uint8")
    with pytest.raises(TypeError, match=r"`state` .* traced: .*outside of `jax\.jit`"):
        jax.jit(lambda state: migrate(state, new, PARAMS, step=1))(ran(rmsprop(0.1)))


def test_a_state_of_the_class_of_another_average_is_no_rmsprops():
    for old in (optax.adabelief(0.1), optax.novograd(0.1), optax.amsgrad(0.1)):
        with pytest.raises(ValueError, match="`state` has no average"):
            migrate(old.init(PARAMS), rmsprop(0.1), PARAMS, decay=0.9)


ADAMS = {"adam": optax.adam(0.1, b2=0.99), "adamw": optax.adamw(0.1, b2=0.99)}


@pytest.mark.parametrize("name", ADAMS)
def test_from_adam_and_back(name):
    """Its nu is the average of squared gradients, as bias correction makes it."""
    old = ADAMS[name]
    state, new = ran(old), rmsprop(0.1, decay=0.99, bias_correction=True)
    with pytest.warns(UserWarning, match="mu.*left out"):
        found = migrate(state, new, PARAMS, decay=0.99)
    expected = ran(new)
    assert_close(found[0].nu, expected[0].nu, 1e-5)
    assert found[0].count == STEPS
    with pytest.warns(UserWarning, match="mu.*starts at zero"):
        back = migrate(found, old, PARAMS, decay=0.99)
    assert_close(back[0].nu, state[0].nu, 1e-5)
    assert back[0].count == STEPS
    assert not any(x.any() for x in jax.tree.leaves(back[0].mu))
    assert jax.tree.structure(back) == jax.tree.structure(state)


@pytest.mark.parametrize("in_steps", [True, False])
def test_adams_mean_becomes_the_momentum_and_back(in_steps):
    state = ran(optax.adam(0.1, b1=0.8, b2=0.99))
    new = rmsprop(0.02, momentum=0.8, learning_rate_in_momentum=in_steps)
    options = {"decay": 0.99, "b1": 0.8}
    if in_steps:
        with pytest.raises(ValueError, match="pass `learning_rate`"):
            migrate(state, new, PARAMS, **options)
        options["learning_rate"] = 0.02
    found = migrate(state, new, PARAMS, **options)
    (trace,) = [x for x in found if isinstance(x, optax.TraceState)]
    scale = -0.02 if in_steps else 1
    nu = np.asarray(state[0].nu["w"], float) / (1 - 0.99**STEPS)
    expected = scale * np.asarray(state[0].mu["w"], float) / 0.2 / np.sqrt(nu)
    np.testing.assert_allclose(trace.trace["w"], expected, rtol=1e-5)
    back = migrate(found, optax.adam(0.1), PARAMS, step=STEPS, **options)
    assert_close(back[0].mu, state[0].mu, 1e-5)
    assert_close(back[0].nu, state[0].nu, 1e-5)


def test_adam_needs_its_b2_and_a_momentum_for_its_mean():
    state = ran(optax.adam(0.1))
    with pytest.raises(ValueError, match=r"`decay`.*b2"):
        migrate(state, rmsprop(0.1), PARAMS)
    with pytest.raises(ValueError, match="leave `b1` out"):
        migrate(state, rmsprop(0.1), PARAMS, decay=0.999, b1=0.9)
    with pytest.raises(ValueError, match="pass `step`"):
        migrate(ran(rmsprop(0.1)), optax.adam(0.1), PARAMS, decay=0.999)
    with pytest.raises(ValueError, match=r"`state` has no average.*not RMSProp"):
        migrate(state, optax.adam(0.1), PARAMS, decay=0.999)


def test_adam_beside_rmsprop_stays_what_it_is():
    labels = {"w": "rms", "b": "adam", "s": "adam"}
    old, new = (
        optax.partition({"rms": rms, "adam": optax.adam(0.1)}, labels)
        for rms in (optax.rmsprop(0.1), rmsprop(0.1, nu_dtype="uint8"))
    )
    state = ran(old)
    found = migrate(state, new, PARAMS, step=STEPS)
    adam, kept = (x.inner_states["adam"] for x in (state, found))
    jax.tree.map(np.testing.assert_array_equal, kept, adam)
    assert rms_of(found).nu["w"].dtype == jnp.uint8


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_state_in_host_memory_stays_there(dtype):
    device = jax.devices()[0]
    host = SingleDeviceSharding(device, memory_kind="pinned_host")
    params = jax.device_put(PARAMS, device)
    state = jax.device_put(ran(rmsprop(0.1, momentum=0.9)), host)
    new = rmsprop(0.1, momentum=0.9, nu_dtype=dtype)
    found = migrate(state, new, params, step=STEPS)
    for leaf in jax.tree.leaves(found):
        kind = "pinned_host" if leaf.ndim else leaf.sharding.memory_kind
        assert leaf.sharding.memory_kind == kind
    expected = migrate(ran(rmsprop(0.1, momentum=0.9)), new, params, step=STEPS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert rms_of(found).nu["w"].sharding.memory_kind == "pinned_host"


BAD = {
    "step -5": ({"step": -5}, ValueError, "`step`"),
    "step 2**40": ({"step": 2**40}, ValueError, "`step`.*2147483647"),
    "step 1.5": ({"step": 1.5}, TypeError, "`step`"),
    "step True": ({"step": True}, TypeError, "`step`"),
    "step text": ({"step": "x"}, TypeError, "`step`"),
    "decay 1.5": ({"decay": 1.5}, ValueError, "`decay`"),
    "decay text": ({"decay": "x"}, TypeError, "`decay`"),
    "b1": ({"b1": 1.0}, ValueError, "`b1`"),
    "learning_rate": ({"learning_rate": -1.0}, ValueError, "`learning_rate`"),
    "nu_dtype": ({"nu_dtype": "foo"}, (TypeError, ValueError), "`nu_dtype`"),
    "old_nu_dtype": ({"old_nu_dtype": 3}, (TypeError, ValueError), "`old_nu_dtype`"),
    "old_tx": ({"old_tx": rmsprop}, TypeError, "`old_tx`"),
    "tx": ({"tx": rmsprop}, TypeError, "`tx`.*transformation"),
    "state": ({"state": {}}, ValueError, "`state`"),
    "state, text": ({"state": "x"}, ValueError, "`state`"),
    "state, None": ({"state": None}, ValueError, "`state`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    arguments, kind, words = BAD[name]
    tx = rmsprop(0.1)
    with pytest.raises(kind, match=words):
        migrate(**{"state": tx.init(PARAMS), "tx": tx, "params": PARAMS, **arguments})


def test_scalars_of_numpy_and_jax_are_accepted():
    old, new = scale_by_rms(), scale_by_rms(centered=True)
    for step in (np.int64(STEPS), jnp.int32(STEPS), np.asarray(STEPS)):
        assert migrate(ran(old), new, PARAMS, step=step).count == STEPS
    corrected = optax.scale_by_rms(bias_correction=True)
    for decay in (np.float32(0.9), jnp.float32(0.9)):
        assert migrate(ran(corrected), new, PARAMS, decay=decay).count == STEPS
