"""The README's table and list: what Optax 0.2.8 does, and what we do instead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import dialects, rmsprop

pytestmark = [pytest.mark.promotion, pytest.mark.optimized]


def updates(tx, grads, steps):
    """The last update and the state after so many equal gradients, compiled."""

    def step(carry, _):
        u, state = tx.update(grads, carry[1])
        return (u, state), None

    return jax.lax.scan(step, (grads, tx.init(grads)), length=steps)[0]


def test_nu_of_bfloat16_parameters():
    grads = jnp.full(2, 0.1, jnp.bfloat16)
    theirs, ours = (
        updates(make(1.0, 0.999, initial_scale=1.0), grads, 20_000)[1][0].nu
        for make in (optax.rmsprop, rmsprop)
    )
    assert (theirs == 1.0).all()
    np.testing.assert_allclose(ours, 0.01, rtol=0.01)


def test_float32_gradients_of_bfloat16_parameters_in_a_scan():
    def run(tx):
        start = tx.init(jnp.ones(2, jnp.bfloat16))
        grads = jnp.ones(2, jnp.float32)
        return jax.lax.scan(
            lambda s, _: (tx.update(grads, s)[1], None), start, length=2
        )

    with pytest.raises(TypeError, match="carry"):
        run(optax.rmsprop(0.1))
    assert run(rmsprop(0.1))[0][0].nu.dtype == jnp.float32


def test_injected_decay_of_bfloat16_parameters():
    theirs, ours = (
        optax.inject_hyperparams(make)(0.1, decay=0.999)
        .init(jnp.ones(2, jnp.bfloat16))
        .hyperparams["decay"]
        for make in (optax.rmsprop, rmsprop)
    )
    assert theirs == 1
    assert ours == jnp.float32(0.999)


def test_float16_zeros():
    grads = jnp.zeros(2, jnp.float16)
    assert np.isnan(updates(optax.rmsprop(1.0), grads, 1)[0]).all()
    assert (updates(rmsprop(1.0), grads, 1)[0] == 0).all()


def test_centered_constant_gradients_not_compiled():
    grads = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1000, 1000), jnp.float32)
    broken = {}
    for make in (optax.rmsprop, rmsprop):
        tx = make(1.0, centered=True)
        state, broken[make] = tx.init(grads), np.zeros(1000, bool)
        for _ in range(600):
            u, state = tx.update(grads, state)
            broken[make] |= ~(np.abs(u) < 2900)
    assert broken[optax.rmsprop].mean() > 0.05
    assert not broken[rmsprop].any()


def test_bias_correction_with_an_initial_scale():
    theirs, ours = (
        updates(make(-1.0, 0.9, 0.0, 1.0, bias_correction=True), jnp.ones(1), 1)[0]
        for make in (optax.rmsprop, rmsprop)
    )
    np.testing.assert_allclose(theirs, 0.32, atol=0.005)
    np.testing.assert_allclose(ours, 1.0, rtol=1e-6)


def test_bias_correction_and_centered():
    grads = jnp.asarray([[0.5, -2.0], [1.0, 3.0], [-0.3, 0.1]])
    paths = []
    with jax.enable_x64(True):
        for make in (optax.rmsprop, rmsprop):
            tx = make(-1.0, centered=True, bias_correction=True)
            state, path = tx.init(grads[0].astype(float)), []
            for g in grads.astype(float):
                u, state = tx.update(g, state)
                path.append(np.asarray(u))
            paths.append(path)
    theirs, ours = paths
    np.testing.assert_allclose(theirs[0], grads[0] * 1e4, rtol=1e-5)
    np.testing.assert_allclose(ours[0], np.sign(grads[0]), rtol=1e-5)
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, 1e20])
def test_one_bad_gradient(bad):
    good = jnp.ones(1)
    lost, kept = optax.rmsprop(1.0), rmsprop(1.0, skip_nonfinite=True)
    for tx, expected in ((lost, False), (kept, True)):
        _, state = tx.update(good * bad, tx.init(good))

        def step(state, _, tx=tx):
            u, state = tx.update(good, state)
            return state, u

        _, u = jax.lax.scan(step, state, length=5000)
        assert np.allclose(u[-1], -1, rtol=1e-3) == expected


def test_the_gradient_of_the_update_at_zero():
    def first(make):
        tx = make(1.0, eps_in_sqrt=False)
        return jax.grad(lambda g: tx.update(g, tx.init(g))[0])(0.0)

    assert np.isnan(first(optax.rmsprop))
    assert np.isfinite(first(rmsprop))


def test_a_port_of_tf1_or_timm_with_the_same_numbers_in_the_call():
    """`dialects` is compared with recorded runs of both, in test_golden.py."""
    grads = jnp.full(3, 0.01)
    longer = optax.rmsprop(0.01, 0.9, 1e-10)
    for same in (dialects.tf1(0.01, 0.9), dialects.timm(lr=0.01, alpha=0.9)):
        ratio = updates(longer, grads, 1)[0] / updates(same, grads, 1)[0]
        np.testing.assert_allclose(ratio, 300, rtol=0.01)
