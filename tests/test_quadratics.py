"""How far narrow parameters stay from an optimum: theory predicts it.

Noisy quadratics: the gradient at p is p - c plus σ times a normal number, σ = 0.1, and
c lies in 1 to 2, where the spacing Δ of a dtype is constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import rmsprop, rounding

pytestmark = [pytest.mark.optimized, pytest.mark.promotion]  # Optax's schedule

SIZE, SIGMA, DECAY = 1024, 0.1, 0.99
OPTIMA = np.linspace(1.05, 1.95, SIZE, dtype=np.float32)
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 0.0}


def distances(rate, dtype, form, nu_dtype=None):
    """Mean squared distances of weights and of parameters alone from the optima.

    They start 0.03 away. With a constant rate it takes 10 times σ / rate steps, and the
    last half is averaged; a schedule falls for 4,000, and the last one counts.
    """
    steps = 4000 if callable(rate) else round(10 * SIGMA / rate)
    tx = rmsprop(
        rate, DECAY, initial_scale=SIGMA**2, nu_dtype=nu_dtype, round_params=form
    )

    def step(carry, number):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(0), number)
        noise = SIGMA * jax.random.normal(key, (SIZE,))
        g = params.astype(jnp.float32) - OPTIMA + noise
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        weights = rounding.merge(params, state) if form else params
        both = [(x.astype(jnp.float32) - OPTIMA) ** 2 for x in (weights, params)]
        return (params, state), jnp.stack([jnp.mean(x) for x in both])

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]

    found = np.asarray(run(jnp.asarray(OPTIMA - 0.03, dtype)))
    return found[-1] if callable(rate) else found[steps // 2 :].mean(axis=0)


def predicted(rate, spacing):
    """Returns the variance V around the optimum in the steady state.

    A step of rate · g / √ν, where ν = σ² + V, leaves 1 - a of a distance, where
    a = rate / √ν. It adds the variance of the noise, (a σ)², and that of rounding,
    f (1 - f) Δ², where f is the fractional part of |u| / Δ. So
    V = ((a σ)² + E[f (1 - f)] Δ²) / (2 a - a²).
    """
    normal = np.abs(np.random.default_rng(0).normal(size=200_000))
    v = 0.0
    for _ in range(30):
        a = rate / np.sqrt(SIGMA**2 + v)
        f = np.mod(rate * normal / spacing, 1) if spacing else np.zeros(1)
        v = ((a * SIGMA) ** 2 + np.mean(f * (1 - f)) * spacing**2) / (2 * a - a * a)
    return v


CASES = [
    ("bfloat16", 1e-3, None),
    ("bfloat16", 1e-3, "uint8"),
    ("bfloat16", 1e-4, None),
    ("float16", 1e-4, None),
]


@pytest.mark.parametrize(("dtype", "rate", "nu_dtype"), CASES)
def test_the_variance_of_stochastic_rounding_is_predicted(dtype, rate, nu_dtype):
    found, _ = distances(rate, dtype, "stochastic", nu_dtype)
    assert found == pytest.approx(predicted(rate, SPACING[dtype]), rel=0.15)
    # It is a floor: smaller rates do not lower it.
    assert found > 5 * predicted(rate, 0)


@pytest.mark.parametrize(("dtype", "rate", "nu_dtype"), CASES)
def test_with_the_remainder_it_is_that_of_float32(dtype, rate, nu_dtype):
    weights, params = distances(rate, dtype, "remainder", nu_dtype)
    assert weights == pytest.approx(predicted(rate, 0), rel=0.15)
    # Parameters alone lack what rounding to nearest loses.
    lost = SPACING[dtype] ** 2 / 12
    assert params == pytest.approx(predicted(rate, 0) + lost, rel=0.25)


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_float32_is_as_predicted_and_nearest_rounding_stalls(rate):
    found, _ = distances(rate, "float32", False)
    assert found == pytest.approx(predicted(rate, 0), rel=0.15)
    stalled, _ = distances(rate, "bfloat16", False)
    assert stalled > 0.9 * 0.03**2


def test_a_rate_that_falls_to_zero_reaches_the_optimum_with_the_remainder_alone():
    rate = optax.cosine_decay_schedule(1e-2, 4000)
    exact, _ = distances(rate, "float32", False)
    weights, params = distances(rate, "bfloat16", "remainder")
    lost = SPACING["bfloat16"] ** 2 / 12
    assert weights == pytest.approx(exact, rel=0.15)
    assert params == pytest.approx(exact + lost, rel=0.25)
    for form in (False, "stochastic"):
        assert distances(rate, "bfloat16", form)[0] > 5 * exact
