"""Decay schedules against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsprop_jax import decay

COUNTS = np.asarray([0, 1, 2, 5, 24, 999, 99_999, 2**31 - 2])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.999, 0.999999])
def test_debiased_is_the_formula(rho):
    expected = rho * (1 - rho**COUNTS) / (1 - np.float64(rho) ** (COUNTS + 1))
    actual = jax.jit(jax.vmap(decay.debiased(rho)))(COUNTS)
    np.testing.assert_allclose(actual, expected, rtol=3e-7, atol=1e-30)
    traced = jax.vmap(lambda r: decay.debiased(r)(COUNTS))(jnp.asarray([rho]))
    np.testing.assert_allclose(traced[0], expected, rtol=3e-7 / (1.00001 - rho))


def test_debiased_survives_a_decay_that_float32_takes_for_one():
    for rho in (1 - 1e-8, 1 - 1e-12):
        actual = jax.vmap(decay.debiased(rho))(jnp.arange(4))
        np.testing.assert_allclose(actual, [0, 1 / 2, 2 / 3, 3 / 4], rtol=1e-6)
    traced = jax.vmap(lambda rho: decay.debiased(rho)(jnp.arange(4)))(jnp.ones(1))
    np.testing.assert_allclose(traced[0], [0, 1 / 2, 2 / 3, 3 / 4], rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.0])
def test_power_is_the_formula(exponent):
    actual = jax.vmap(decay.power(exponent))(COUNTS)
    expected = 1 - (COUNTS + 1.0) ** -exponent
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_power_one_averages_over_all_steps():
    from rmsprop_jax import scale_by_rms

    tx, g = scale_by_rms(decay.power(1.0), initial_scale=5.0), np.arange(1.0, 9.0)
    state = tx.init(jnp.zeros(()))
    for value in g:
        _, state = tx.update(jnp.asarray(value), state)
    np.testing.assert_allclose(state.nu, np.mean(g**2), rtol=1e-6)


def test_constant_keeps_a_number_s_own_precision():
    assert decay.constant(0.999)(3) == 0.999
    assert decay.constant(jnp.bfloat16(0.5))(0).dtype == jnp.float32


@pytest.mark.parametrize("schedule", [decay.debiased(0.999), decay.power()])
def test_schedules_follow_the_64_bit_mode(schedule):
    assert schedule(jnp.int32(3)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert schedule(jnp.int32(3)).dtype == jnp.float64
