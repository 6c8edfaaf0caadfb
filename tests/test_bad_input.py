"""Malformed calls: each error names the argument or the leaf, and what to do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import decay, rmsprop, scale_by_rms

NAN = float("nan")
ONES = {"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(3)}

# Call, the error, and what its message has to say (names, values, remedies).
CONSTRUCTION = [
    (lambda: rmsprop(0.1, 1.0), ValueError, ["`decay`", "[0, 1)", "1.0"]),
    (lambda: rmsprop(0.1, -0.1), ValueError, ["`decay`", "-0.1"]),
    (lambda: rmsprop(0.1, NAN), ValueError, ["`decay`", "nan"]),
    (lambda: scale_by_rms(2), ValueError, ["`decay`", "2"]),
    (lambda: scale_by_rms("0.9"), TypeError, ["`decay`", "'0.9'", "schedule"]),
    (lambda: scale_by_rms(None), TypeError, ["`decay`", "None"]),
    (lambda: scale_by_rms(1j), TypeError, ["`decay`", "complex"]),
    (lambda: scale_by_rms(lambda count: 1.5), ValueError, ["`decay(0)`", "1.5"]),
    (lambda: scale_by_rms(lambda: 0.9), ValueError, ["`decay`", "schedule", "int32"]),
    (lambda: scale_by_rms(jnp.bfloat16(0.999)), ValueError, ["bfloat16", "float32"]),
    (
        lambda: scale_by_rms(decay.power(), bias_correction=True),
        ValueError,
        ["`bias_correction`", "`decay`", "debiased"],
    ),
    (lambda: decay.debiased(1.0), ValueError, ["`decay`", "1.0"]),
    (lambda: decay.constant(-1), ValueError, ["`decay`", "-1"]),
    (lambda: decay.power(0), ValueError, ["`exponent`", "greater than 0"]),
    (lambda: rmsprop(0.1, eps=-1e-8), ValueError, ["`eps`", "-1e-08"]),
    (lambda: rmsprop(0.1, eps=NAN), ValueError, ["`eps`", "nan"]),
    (lambda: scale_by_rms(eps=None), TypeError, ["`eps`", "None"]),
    (lambda: scale_by_rms(eps=True), TypeError, ["`eps`", "True"]),
    (lambda: rmsprop(0.1, initial_scale=-1), ValueError, ["`initial_scale`", "-1"]),
    (lambda: rmsprop(0.1, 0.9, 1e-8, 0, 1e-5), TypeError, ["`eps_in_sqrt`", "1e-05"]),
    (lambda: rmsprop(0.1, centered="yes"), TypeError, ["`centered`", "'yes'"]),
    (lambda: rmsprop(0.1, maximize=3), TypeError, ["`maximize`", "3"]),
    (lambda: rmsprop(0.1, skip_nonfinite=2), TypeError, ["`skip_nonfinite`", "2"]),
    (lambda: rmsprop(0.1, momentum=-0.9), ValueError, ["`momentum`", "-0.9"]),
    (lambda: rmsprop(0.1, momentum=1.9), ValueError, ["`momentum`", "1.9"]),
    (lambda: rmsprop(0.1, nesterov=True), ValueError, ["`nesterov`", "`momentum`"]),
    (
        lambda: rmsprop(0.1, accumulator_dtype=jnp.float32),
        ValueError,
        ["`accumulator_dtype`", "`momentum`"],
    ),
    (lambda: rmsprop(NAN), ValueError, ["`learning_rate`", "nan"]),
    (lambda: rmsprop(lambda: 0.1), ValueError, ["`learning_rate`", "schedule"]),
    (lambda: rmsprop("0.1"), TypeError, ["`learning_rate`", "'0.1'"]),
    (lambda: rmsprop(0.1, weight_decay=-1), ValueError, ["`weight_decay`", "-1"]),
    (
        lambda: rmsprop(0.1, weight_decay=lambda count: -1.0),
        ValueError,
        ["`weight_decay(0)`", "-1.0"],
    ),
    (
        lambda: rmsprop(0.1, weight_decay=0.1, weight_decay_mode="adamw"),
        ValueError,
        ["`weight_decay_mode`", "'adamw'", "'decoupled'"],
    ),
    (
        lambda: rmsprop(0.1, weight_decay_mask={"b": True}),
        ValueError,
        ["`weight_decay_mask`", "`weight_decay`"],
    ),
    (lambda: rmsprop(0.1, mu_dtype="float32"), ValueError, ["`mu_dtype`", "centered"]),
    (lambda: rmsprop(0.1, nu_dtype="int8"), TypeError, ["`nu_dtype`", "int8"]),
    (lambda: rmsprop(0.1, nu_dtype=jnp.float16), TypeError, ["float16", "uint8"]),
    (lambda: rmsprop(0.1, nu_dtype="floaty"), TypeError, ["`nu_dtype`", "floaty"]),
    (lambda: rmsprop(0.1, nu_dtype=jnp.float64), ValueError, ["jax_enable_x64"]),
    (
        lambda: rmsprop(0.1, momentum=0.9, accumulator_dtype=jnp.float16),
        TypeError,
        ["`accumulator_dtype`", "float16"],
    ),
    (lambda: rmsprop(), TypeError, ["learning_rate"]),
    (lambda: rmsprop(lr=0.1), TypeError, ["`lr`", "`learning_rate`", "rmsprop"]),
    (lambda: scale_by_rms(lr=0.1), TypeError, ["`lr`", "`learning_rate`", "rmsprop"]),
    (lambda: rmsprop(0.1, alpha=0.9), TypeError, ["`alpha`", "`decay`"]),
    (lambda: rmsprop(0.1, rho=0.9), TypeError, ["`rho`", "`decay`"]),
    (lambda: scale_by_rms(beta=0.9), TypeError, ["`beta`", "`decay`"]),
    (lambda: scale_by_rms(epsilon=1e-8), TypeError, ["`epsilon`", "`eps`"]),
    (lambda: rmsprop(0.1, centred=True), TypeError, ["`centred`", "`centered`"]),
    (lambda: rmsprop(0.1, foreach=True), TypeError, ["`foreach`", "`learning_rate`"]),
    (
        lambda: optax.inject_hyperparams(rmsprop)(0.1, epsilon=0.9),
        TypeError,
        ["`epsilon`", "`eps`"],
    ),
    (
        lambda: optax.inject_hyperparams(partial(rmsprop, decay=0.5))(lr=0.1),
        TypeError,
        ["`lr`", "`learning_rate`"],
    ),
    (
        lambda: optax.inject_hyperparams(rmsprop)(0.1, nu_dtype="flaot").init(ONES),
        TypeError,
        ["`nu_dtype`", "flaot"],
    ),
    (
        lambda: rmsprop(0.1, weight_decay=1, weight_decay_mask={"z": True}).init(ONES),
        ValueError,
        ["`weight_decay_mask`", "booleans"],
    ),
    (
        lambda: rmsprop(0.1, weight_decay=1, weight_decay_mask="all").init(ONES),
        ValueError,
        ["`weight_decay_mask`", "booleans"],
    ),
    (
        lambda: optax.inject_hyperparams(rmsprop)(0.1, eps=-1.0).init(ONES),
        ValueError,
        ["`eps`", "-1.0"],
    ),
]


@pytest.mark.parametrize("number", range(len(CONSTRUCTION)))
def test_construction(number):
    call, error, words = CONSTRUCTION[number]
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value), str(raised.value)


def ones(**leaves):
    return {"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(3), **leaves}


BUFFER = ones(n=jnp.arange(3))
TREES = [
    (
        lambda tx: tx.update(BUFFER, tx.init(BUFFER), BUFFER),
        TypeError,
        ["gradients['n']", "int32", "eqx.is_inexact_array", "wrt=nnx.Param", "masked"],
    ),
    (
        lambda tx: tx.update(ones(n=jnp.ones(3)), tx.init(BUFFER), BUFFER),
        TypeError,
        ["params['n']", "int32"],
    ),
    (lambda tx: tx.init(ones(n="abc")), TypeError, ["params['n']", "str"]),
    (lambda tx: tx.init(ones(n=print)), TypeError, ["params['n']", "function"]),
    (
        lambda tx: tx.update(ones(n=jnp.ones(2)), tx.init(ones(n=None)), ones(n=None)),
        ValueError,
        ["gradients['n']", "(2,)", "None in `init`"],
    ),
    (
        lambda tx: tx.update(ones(b=jnp.arange(3)), tx.init(ONES), ONES),
        TypeError,
        ["gradients['b']", "int32"],
    ),
    (
        lambda tx: tx.update(ones(b=jnp.ones(4)), tx.init(ONES), ONES),
        ValueError,
        ["gradients['b']", "(4,)", "(3,)"],
    ),
    (
        lambda tx: tx.update({"a": {"w": jnp.ones(3)}}, tx.init(ONES), ONES),
        ValueError,
        ["gradients", "missing", "['b']", "init"],
    ),
    (
        lambda tx: tx.update(ones(c=jnp.ones(3)), tx.init(ONES), ONES),
        ValueError,
        ["gradients", "extra", "['c']"],
    ),
    (
        lambda tx: tx.update([jnp.ones(3)], tx.init(ONES), ONES),
        ValueError,
        ["gradients", "missing", "['a']['w']"],
    ),
]


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    "make", [scale_by_rms, lambda: rmsprop(0.1, weight_decay=0.1, centered=True)]
)
@pytest.mark.parametrize("number", range(len(TREES)))
def test_trees(number, make, jitted):
    call, error, words = TREES[number]
    tx = make()
    if jitted:
        update = jax.jit(tx.update)
        tx = optax.GradientTransformation(tx.init, update)
    with pytest.raises(error) as raised:
        call(tx)
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_weight_decay_without_params():
    for mode in ("coupled", "decoupled", "independent"):
        tx = rmsprop(0.1, weight_decay=0.1, weight_decay_mode=mode)
        with pytest.raises(ValueError, match=r"`weight_decay` needs .*params"):
            tx.update(ONES, tx.init(ONES))
    for nothing in (None, 0, 0.0):  # as the frameworks' defaults have it
        tx = rmsprop(0.1, weight_decay=nothing)
        tx.update(ONES, tx.init(ONES))


def test_a_state_of_another_transformation():
    centered, plain = scale_by_rms(centered=True), scale_by_rms()
    counted = scale_by_rms(decay.power())
    with pytest.raises(ValueError, match=r"`centered` is True.*no mu.*migrate"):
        centered.update(ONES, counted.init(ONES))
    with pytest.raises(ValueError, match=r"`centered` is False.*a mu.*migrate"):
        counted.update(ONES, centered.init(ONES))
    with pytest.raises(TypeError, match=r"ScaleByRmsState, got .*RmsState.*migrate"):
        plain.update(ONES, centered.init(ONES))


def test_a_state_of_optax_or_with_other_options():
    for options in ({"centered": True}, {"bias_correction": True}, {}):
        theirs = optax.rmsprop(0.1, **options).init(ONES)
        narrow = rmsprop(0.1, nu_dtype="uint8", **options)
        with pytest.raises(TypeError, match=r"rmsprop_jax.*, got optax.*migrate\("):
            narrow.update(ONES, theirs)
    narrow = {"b": jnp.ones(3, jnp.bfloat16)}
    for options in ({}, {"momentum": 0.9}):  # its state would change dtype in a step
        theirs = optax.rmsprop(0.1, **options).init(narrow)
        with pytest.raises(TypeError, match=r"nu\['b'\] is bfloat16.*migrate\("):
            rmsprop(0.1, **options).update(narrow, theirs, narrow)
    mixed = (optax.ScaleByRmsState({"b": jnp.ones(3)}), *theirs[1:])
    with pytest.raises(TypeError, match=r"trace\['b'\] is bfloat16.*migrate\("):
        rmsprop(0.1, momentum=0.9).update(narrow, mixed, narrow)
    plain, momentum = rmsprop(0.1), rmsprop(0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"`momentum` must be .*TraceState, got"):
        momentum.update(ONES, plain.init(ONES))


def test_complex_and_real_do_not_mix():
    real, both = {"a": jnp.ones(2)}, {"a": jnp.ones(2, jnp.complex64)}
    said = r"gradient\['a'\] is complex64, .* is float32"
    for tx in (rmsprop(0.1, centered=True), rmsprop(0.1, momentum=0.9)):
        with pytest.raises(TypeError, match=said):
            tx.update(both, tx.init(real))
    for tx in (scale_by_rms(), rmsprop(0.1), rmsprop(0.1, weight_decay=0.1)):
        with pytest.raises(TypeError, match=said):
            tx.update(both, tx.init(real), real)
        # As in Optax, a real gradient is one without an imaginary part.
        assert tx.update(real, tx.init(both), both)[0]["a"].dtype == jnp.complex64


def test_hyperparameters_that_are_arrays_do_not_make_the_state_grow():
    wide, g = jnp.full((2, 1), 0.9), jnp.ones(2)
    for tx in (
        rmsprop(0.1, wide),
        rmsprop(0.1, eps=wide),
        rmsprop(0.1, eps=wide, eps_in_sqrt=False),
        rmsprop(0.1, momentum=wide),
        rmsprop(wide),
        rmsprop(lambda count: wide),
        rmsprop(0.1, lambda count: wide),
        rmsprop(0.1, weight_decay=wide),
        rmsprop(0.1, weight_decay=wide, weight_decay_mode="decoupled"),
        rmsprop(0.1, centered=True, decay=wide),
        rmsprop(0.1, nu_dtype="uint8", decay=wide),
        scale_by_rms(wide),
    ):
        said = r"`\w+` is .*\(2, 1\), .*broadcast to gradients\['g'\] of shape \(2,\)"
        with pytest.raises(ValueError, match=said):
            tx.update({"g": g}, tx.init({"g": g}), {"g": g})
    narrow = rmsprop(0.1, jnp.full(2, 0.9))
    assert narrow.update(g, narrow.init(g))[0].shape == (2,)


def test_tracers_are_not_looked_at():
    def build(value):
        tx = rmsprop(value, value, value, value, momentum=value, weight_decay=value)
        return tx.init(jnp.ones(3))[1].nu

    assert jax.jit(build)(0.5).shape == (3,)


def test_every_call_of_optax_s_own_defaults_is_accepted():
    rmsprop(learning_rate=-0.1)  # ascent, in Optax's way
    rmsprop(None)
    rmsprop(0.1, np.float64(0.9), jnp.float32(1e-8), np.zeros(()), 1, 0, momentum=0)
    scale_by_rms(0, 0, 0, np.bool_(True), False)
    rmsprop(0.1, centered=None, nesterov=None, eps_in_sqrt=None, bias_correction=None)
