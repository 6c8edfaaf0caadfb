"""A run goes on under another transformation: `convert.migrate`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax import (
    _store,
    convert,
    dialects,
    rmsprop,
    rounding,
    scale_by_rms,
    storage,
)
from table import assert_close, tree

pytestmark = [pytest.mark.promotion, pytest.mark.optimized]

STEPS = 5
PARAMS = tree("float32")


def gradients(step):
    return tree("float32", seed=step + 1)


def updates_of(tx, state, first, steps=STEPS):
    """The updates of some steps, and the state after them."""
    made = []
    for step in range(first, first + steps):
        updates, state = tx.update(gradients(step), state, PARAMS)
        made.append(updates)
    return made, state


def halved_from_now_on(count):
    return jnp.where(count < STEPS, 0.1, 0.05 * 0.9**count)


# name: what made the state, what goes on, arguments of `migrate`, and the tolerance: a
# run goes on as if it had been under the second from the start.
SAME_RULE = {
    "itself": (rmsprop(0.1, momentum=0.9), rmsprop(0.1, momentum=0.9), {}, 0),
    "itself, centred": (
        rmsprop(0.1, centered=True),
        rmsprop(0.1, centered=True),
        {},
        0,
    ),
    "itself, one byte": (rmsprop(0.1, nu_dtype="uint8"),) * 2 + ({}, 0),
    "skip_nonfinite": (rmsprop(0.1), rmsprop(0.1, skip_nonfinite=True), {}, 1e-6),
    "schedule": (rmsprop(0.1), rmsprop(halved_from_now_on), {"step": STEPS}, 1e-6),
    "no schedule": (rmsprop(lambda count: 0.1), rmsprop(0.1), {}, 1e-6),
    "weight decay": (rmsprop(0.1), rmsprop(0.1, weight_decay=0.0), {}, 0),
    "rounded parameters": (
        rmsprop(0.1),
        optax.chain(rmsprop(0.1), rounding.round_params()),
        {"step": STEPS},
        0,
    ),
    "clipping": (rmsprop(0.1), optax.chain(optax.clip(1e9), rmsprop(0.1)), {}, 0),
    "Optax": (optax.rmsprop(0.1), rmsprop(0.1), {"step": STEPS}, 1e-6),
    "Optax, momentum": (
        optax.rmsprop(0.1, momentum=0.9, nesterov=True),
        rmsprop(0.1, momentum=0.9, nesterov=True),
        {"step": STEPS},
        1e-6,
    ),
    "Optax, schedule": (optax.rmsprop(halved_from_now_on), rmsprop(0.1), {}, None),
    "Optax, centred": (
        optax.rmsprop(0.1, centered=True),
        rmsprop(0.1, centered=True),
        {"step": STEPS},
        1e-5,
    ),
    "Optax, corrected": (
        optax.rmsprop(0.1, decay=0.8, bias_correction=True),
        rmsprop(0.1, decay=0.8, bias_correction=True),
        {"decay": 0.8},
        1e-5,
    ),
    "scale_by_rms": (
        optax.chain(optax.scale_by_rms(), optax.scale(-0.1)),
        rmsprop(0.1),
        {"step": STEPS},
        1e-6,
    ),
    "scale_by_stddev": (
        optax.chain(optax.scale_by_stddev(), optax.scale(-0.1)),
        rmsprop(0.1, centered=True),
        {"step": STEPS},
        1e-5,
    ),
    "to Optax": (
        rmsprop(0.1, momentum=0.9),
        optax.rmsprop(0.1, momentum=0.9),
        {},
        1e-6,
    ),
}


@pytest.mark.parametrize("name", SAME_RULE)
def test_the_run_goes_on_as_under_the_new_one_alone(name):
    old, new, arguments, tolerance = SAME_RULE[name]
    _, state = updates_of(old, old.init(PARAMS), 0)
    state = convert.migrate(state, new, PARAMS, **arguments)
    assert jax.tree.structure(state) == jax.tree.structure(new.init(PARAMS))
    nodes = [x for x in jax.tree.leaves(state, is_leaf=_counts) if _counts(x)]
    assert {int(node.count) for node in nodes} <= {STEPS}
    if tolerance is None:
        return
    actual, _ = updates_of(new, state, STEPS)
    expected, _ = updates_of(new, new.init(PARAMS), 0, 2 * STEPS)
    assert_close(actual, expected[STEPS:], tolerance)


def _counts(node):
    return "count" in getattr(node, "_fields", ())


MOVED = storage.uint8(lowest=1e-15)


@pytest.mark.parametrize(
    ("old", "new", "arguments", "error"),
    [
        ("float32", "uint16", {}, 2.0**-9),
        ("float32", "bfloat16", {}, 2.0**-8),
        ("float32", "uint8", {}, 2.0**-3),
        ("uint8", "float32", {}, 0),
        ("uint16", "uint8", {}, 2.0**-3),
        ("bfloat16", "uint16", {}, 0),
        ("float32", MOVED, {"nu_dtype": MOVED}, 2.0**-3),
        (MOVED, "float32", {"old_nu_dtype": MOVED}, 0),
        ("uint8", MOVED, {"nu_dtype": MOVED}, 0),
    ],
)
def test_another_nu_dtype_keeps_the_values(old, new, arguments, error):
    old_tx, tx = (scale_by_rms(0.9, nu_dtype=dtype) for dtype in (old, new))
    _, state = updates_of(old_tx, old_tx.init(PARAMS), 0)
    migrated = convert.migrate(state, tx, PARAMS, step=STEPS, **arguments)
    assert "count" not in migrated._fields or migrated.count == STEPS

    def values(state, dtype):
        form = _store.as_format("nu_dtype", dtype, unsigned=True)
        return jax.tree.map(lambda nu: storage.decode(nu, form), state.nu)

    before, after = values(state, old), values(migrated, new)
    assert_close(after, before, error)
    assert jax.tree.map(lambda x: x.dtype, migrated.nu) == jax.tree.map(
        lambda x: x.dtype, tx.init(PARAMS).nu
    )
    tx.update(gradients(0), migrated)


def test_a_new_momentum_starts_at_zero():
    old, new = rmsprop(0.1, nu_dtype="uint16"), rmsprop(0.1, momentum=0.9)
    _, state = updates_of(old, old.init(PARAMS), 0)
    state = convert.migrate(state, new, PARAMS)
    plain = rmsprop(0.1)
    (first,), _ = updates_of(new, state, STEPS, 1)
    without = convert.migrate(state, plain, PARAMS)
    (expected,), _ = updates_of(plain, without, STEPS, 1)
    assert_close(first, expected)
    assert all(not x.any() for x in jax.tree.leaves(state[2].trace))


def test_states_of_other_elements_stay():
    old = optax.chain(rmsprop(0.1), optax.ema(0.5))
    new = optax.chain(optax.clip(1.0), rmsprop(0.1, momentum=0.9), optax.ema(0.5))
    _, state = updates_of(old, old.init(PARAMS), 0)
    migrated = convert.migrate(state, new, PARAMS)
    assert_close(migrated[2].ema, state[1].ema)
    injected = optax.inject_hyperparams(rmsprop)(0.3)
    state = injected.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.7)
    new = optax.inject_hyperparams(rmsprop)(0.3, nu_dtype="uint8")
    migrated = convert.migrate(state, new, PARAMS)
    assert migrated.hyperparams["learning_rate"] == jnp.float32(0.7)


def test_shardings_are_those_of_the_parameters():
    mesh = Mesh(jax.devices()[:8], ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((8, 3)), sharding)}
    old, new = rmsprop(0.1), rmsprop(0.1, momentum=0.9, nu_dtype="uint8")
    _, state = old.update({"w": jnp.ones((8, 3))}, old.init({"w": jnp.ones((8, 3))}))
    migrated = convert.migrate(state, new, params, step=1)
    fresh = new.init(params)
    shardings = [jax.tree.map(lambda x: x.sharding, t) for t in (migrated, fresh)]
    assert shardings[0] == shardings[1]


def test_nnx_optimizers():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    old = nnx.Optimizer(model, optax.rmsprop(0.1), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    old.update(model, grads)
    tx = rmsprop(0.1, momentum=0.9)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    state = convert.migrate(nnx.as_pure(old.opt_state), tx, params, step=1)
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(new.opt_state, nnx.state(state))
    np.testing.assert_allclose(new.opt_state[0].nu["kernel"][...], 0.1, rtol=1e-6)
    new.update(model, grads)


@pytest.mark.parametrize(
    ("old", "new", "arguments", "words"),
    [
        (optax.rmsprop(0.1), rmsprop(0.1, centered=True), {}, "pass `step`"),
        (optax.rmsprop(0.1, bias_correction=True), rmsprop(0.1), {}, "pass `decay`"),
        (optax.sgd(0.1, momentum=0.9), rmsprop(0.1), {}, "`state` has no average"),
        (rmsprop(0.1), optax.sgd(0.1), {}, "`tx` has no average"),
        (
            rmsprop(0.1, momentum=0.9),
            dialects.torch(lr=0.1, momentum=0.9),
            {},
            "rmsprop_jax.convert.translate",
        ),
        (optax.chain(rmsprop(0.1), optax.ema(0.5)), rmsprop(0.1), {}, "lost"),
        (rmsprop(0.1), optax.chain(rmsprop(0.1), optax.ema(0.5)), {}, "tx` has ema"),
    ],
)
def test_what_cannot_go_on_says_what_to_do(old, new, arguments, words):
    with pytest.raises(ValueError, match=words):
        convert.migrate(old.init(PARAMS), new, PARAMS, **arguments)


def test_other_parameters_are_named():
    tx = rmsprop(0.1)
    other = {"w": jnp.ones((8, 4)), "b": PARAMS["b"], "new": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"w has \(8, 3\) in the state, \(8, 4\)") as e:
        convert.migrate(tx.init(PARAMS), tx, other)
    assert "new has nothing" in str(e.value)
    assert "s has ()" in str(e.value)
