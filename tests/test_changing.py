"""Hyperparameters that change while a run goes on, and schedules that only it knows."""

import inspect
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import decay, dialects, rmsprop, scale_by_rms
from rmsprop_jax._signature import canonical

MAKERS = {
    "rmsprop": partial(rmsprop, 0.1),
    **{
        name: partial(make, **({"learning_rate": 0.1} if required else {}))
        for name, make in dialects.DIALECTS.items()
        for required in [
            inspect.signature(make).parameters.get("learning_rate", None) is not None
        ]
        if name != "jax_example"
    },
    "jax_example": partial(dialects.jax_example, 0.1),
}
ONES = jnp.ones(2)
# By our names: what a run may make of a number, and whether the updates are then NaN.
REACHED = {
    "learning_rate": (np.nan, True),
    "decay": (1.01, True),
    "eps": (-1.0, True),
    "initial_scale": (-1.0, True),
    "momentum": (1.01, False),
    "weight_decay": (-0.1, False),
}
CASES = [
    (name, argument)
    for name, make in MAKERS.items()
    for argument in inspect.signature(make).parameters
    if canonical(argument) in REACHED
    and (name, argument) not in (("tf_keras", "decay"), ("tf_keras", "lr"))
]


def first(tx):
    return tx.update(ONES, tx.init(ONES), ONES)[0]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_an_array_may_leave_its_range_where_a_number_may_not(name, argument):
    value, lost = REACHED[canonical(argument)]
    make = MAKERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes' momentum, which it ignores
        for changed in (jnp.asarray(value), jnp.asarray(value, jnp.float32) + 0):
            eager = first(make(**{argument: changed}))
            assert np.isnan(eager).all() == lost
            if (name, argument) != ("tf_keras", "momentum"):  # it moves epsilon
                traced = jax.jit(lambda x: first(make(**{argument: x})))(changed)
                assert np.isnan(traced).all() == lost
        if (name, canonical(argument)) != ("bitsandbytes", "momentum"):
            with pytest.raises(ValueError, match=f"`{argument}`"):
                make(**{argument: value})


@pytest.mark.parametrize("nu_dtype", ["float32", "bfloat16", "uint16", "uint8"])
@pytest.mark.parametrize("options", [{}, {"centered": True}, {"skip_nonfinite": True}])
def test_a_decay_schedule_that_leaves_its_range_makes_nan_at_once(nu_dtype, options):
    for leave in (
        lambda count: jnp.where(count < 2, 0.9, 1.0001),
        lambda count: 0.9 if count < 2 else -0.1,
        lambda count: decay.Weights(jnp.where(count < 2, 0.9, 1.5)),
        lambda count: decay.Weights(0.5, jnp.where(count < 2, 0.5, -0.5)),
    ):
        tx = scale_by_rms(leave, nu_dtype=nu_dtype, eps=0.0, **options)
        state, seen = tx.init(ONES), []
        for _ in range(3):
            u, state = tx.update(ONES, state)
            seen.append(bool(jnp.isnan(u).any()))
        assert seen == [False, False, True]


@pytest.mark.promotion
@pytest.mark.parametrize("bias_correction", [False, True])
def test_a_decay_that_reaches_one_is_optax_s(bias_correction):
    """Population-based training sets it in the state, and goes on without compiling."""
    after = []
    for make in (rmsprop, optax.rmsprop):
        tx = optax.inject_hyperparams(make)(
            0.1, decay=0.9, initial_scale=0.5, bias_correction=bias_correction
        )
        state = tx.init(ONES)
        _, state = tx.update(ONES, state, ONES)
        state.hyperparams["decay"] = jnp.asarray(1.0)
        updates, state = tx.update(3 * ONES, state, ONES)
        after.append((updates, optax.tree_utils.tree_get(state, "nu")))
    (ours, nu), (theirs, their_nu) = after
    if bias_correction:  # Optax divides by 1 - 1; here all steps count alike
        np.testing.assert_allclose(ours, -0.3 / np.sqrt((1 + 9) / 2), rtol=1e-5)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(nu, their_nu, rtol=1e-6)


RATES = [
    (name, argument)
    for name, make in MAKERS.items()
    for argument in inspect.signature(make).parameters
    if canonical(argument) in ("learning_rate", "weight_decay", "decay")
    and (name, argument) not in (("tf_keras", "decay"), ("timm", "weight_decay"))
]


@pytest.mark.parametrize(("name", "argument"), RATES)
def test_a_schedule_may_need_what_only_a_run_has(name, argument):
    make, members = MAKERS[name], jnp.arange(3)

    def step(schedule):
        return first(make(**{argument: schedule}))

    def by_axis(count):
        return 0.1 + 0.2 * jax.lax.axis_index("members").astype(float)

    found = jax.vmap(lambda _: step(by_axis), axis_name="members")(members)
    for member, updates in enumerate(found):
        np.testing.assert_allclose(
            updates, step(lambda count, m=member: 0.1 + 0.2 * m), rtol=1e-6
        )


def test_timm_has_to_be_told_the_peak_of_such_a_schedule():
    def by_axis(count):
        return 0.1 * jax.lax.axis_index("members")

    options = {
        "weight_decay": 0.1, "decoupled_decay": True, "corrected_weight_decay": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match="pass its peak, `max_lr_snapshot`"):
        dialects.timm(by_axis, **options)
    dialects.timm(by_axis, max_lr_snapshot=0.1, **options)


@pytest.mark.promotion
def test_injected_schedules_of_every_number():
    schedule = optax.linear_schedule(0.9, 0.5, 4)
    tx = optax.inject_hyperparams(rmsprop)(
        schedule,
        decay=schedule,
        eps=schedule,
        initial_scale=schedule,
        momentum=schedule,
        weight_decay=schedule,
    )
    updates, state = tx.update(ONES, tx.init(ONES), ONES)
    assert np.isfinite(updates).all()
    assert state.hyperparams["momentum"] == jnp.float32(0.9)
    with pytest.raises(ValueError, match="`decay`"):
        optax.inject_hyperparams(rmsprop)(schedule, decay=1.0)
