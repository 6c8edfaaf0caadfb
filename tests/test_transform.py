"""The recursion: against an independent oracle, its laws, and the cases that trap."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmsprop_jax import _store, rmsprop, scale_by_rms
from rmsprop_jax.decay import power
from table import DTYPES, assert_close, rms_of, x64

pytestmark = pytest.mark.optimized

EPS = {name: float(jnp.finfo(name).eps) for name in DTYPES}
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def oracle(grads, rho, eps, *, start=0.0, mean=0.0, in_sqrt=True, centered=False):
    """RMSProp as in the textbooks, E[g²] - E[g]², in float64: (u, variance, mean)."""
    variance, mean = np.asarray(start, np.float64), np.asarray(mean, np.float64)
    for count, g in enumerate(np.asarray(grads, np.float64)):
        keep = rho(count) if callable(rho) else rho
        square = keep * (variance + mean**2) + (1 - keep) * g**2
        mean = keep * mean + (1 - keep) * g if centered else mean
        variance = square - mean**2
        root = np.sqrt(variance + eps) if in_sqrt else np.sqrt(variance) + eps
        yield g / root, variance, mean


@partial(jax.jit, static_argnums=0)  # compiled once for each transformation
def run(tx, grads):
    """The updates of all steps and the last state."""

    def step(state, g):
        u, state = tx.update(g, state)
        return state, u

    state, updates = jax.lax.scan(step, tx.init(grads[0]), grads)
    return updates, state


@cache
def transformation(decay=0.9, eps=1e-8, debias=False, **options):
    """One object for each set of arguments, so that `run` finds it compiled."""
    return scale_by_rms(decay, eps, bias_correction=debias, **options)


def floats(width, *, smallest, largest):
    """Zero, and normal numbers of both signs over the given magnitudes."""
    size = st.floats(smallest, largest, width=width, allow_subnormal=False)
    return st.one_of(st.just(0.0), size, size.map(lambda x: -x))


def streams(dtype, **bounds):
    width = np.dtype(dtype).itemsize * 8
    return hnp.arrays(dtype, (6, 4), elements=floats(width, **bounds))


@QUICK
@given(
    grads=streams(np.float32, smallest=2.0**-30, largest=2.0**30),
    rho=st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    eps=st.sampled_from([1e-2, 1e-8, 1e-16]),
    start=st.sampled_from([0.0, 1.0]),
    in_sqrt=st.booleans(),
)
def test_each_step_is_the_oracle_s_to_a_few_ulp(grads, rho, eps, start, in_sqrt):
    tx = scale_by_rms(rho, eps, initial_scale=start, eps_in_sqrt=in_sqrt)
    state = tx.init(grads[0])
    for g in grads:
        before = np.asarray(state.nu)  # the oracle starts each step where we did
        updates, state = tx.update(jnp.asarray(g), state)
        ((u, nu, _),) = oracle([g], rho, eps, start=before, in_sqrt=in_sqrt)
        np.testing.assert_allclose(state.nu, nu, rtol=4 * EPS["float32"], atol=1e-37)
        np.testing.assert_allclose(updates, u, rtol=6 * EPS["float32"])


@QUICK
@given(
    grads=streams(np.float32, smallest=2.0**-30, largest=2.0**30),
    rho=st.sampled_from([0.5, 0.9, 0.999]),
)
def test_each_centered_step_is_the_oracle_s_to_a_few_ulp(grads, rho):
    tx = scale_by_rms(rho, 1e-8, centered=True)
    state = tx.init(grads[0])
    for g in grads:
        start = {
            "start": np.asarray(state.nu, np.longdouble),
            "mean": np.asarray(state.mu, np.longdouble),
        }
        updates, state = tx.update(jnp.asarray(g), state)
        # In its own precision E[g²] - E[g]² has lost what this is to see.
        square = rho * (start["start"] + start["mean"] ** 2)
        square = square + (1 - rho) * np.asarray(g, np.longdouble) ** 2
        mean = rho * start["mean"] + (1 - rho) * np.asarray(g, np.longdouble)
        variance = square - mean**2
        seen = variance > 1e-12 * mean**2
        u = g / np.sqrt(np.maximum(variance, EPS["float32"] * g**2) + 1e-8)
        nus, us = np.asarray(state.nu, float), np.asarray(updates, float)
        np.testing.assert_allclose(nus[seen], variance[seen].astype(float), rtol=2e-6)
        np.testing.assert_allclose(us[seen], u[seen].astype(float), rtol=2e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_float64_trajectory_is_the_oracle_s(centered):
    grads = np.random.default_rng(0).normal(1.0, 1.0, (200, 5))
    grads *= [1e-4, 1e-2, 1, 1e2, 1e4]
    options = {"in_sqrt": False, "start": 0.25, "centered": centered}
    expected = list(oracle(grads, 0.99, 1e-6, **options))
    with jax.enable_x64(True):
        tx = scale_by_rms(0.99, 1e-6, 0.25, False, centered=centered)
        updates, state = run(tx, jnp.asarray(grads))
    np.testing.assert_allclose(updates, [u for u, _, _ in expected], rtol=1e-11)
    np.testing.assert_allclose(state.nu, expected[-1][1], rtol=1e-11)


@pytest.mark.parametrize("centered", [False, True])
@QUICK
@given(data=st.data())
def test_finite_input_never_gives_nan_or_a_negative_variance(centered, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    numbers = {"complex64": "float32", "bfloat16": "float32"}.get(dtype, dtype)
    # Larger ones are infinite in bfloat16.
    bound = float(np.float32(3e38)) if numbers == "float32" else None
    finite = {"allow_infinity": False, "allow_nan": False}
    if bound:
        finite |= {"min_value": -bound, "max_value": bound}
    draw = hnp.arrays(numbers, (6, 3), elements=finite)
    grads = data.draw(draw)
    if dtype == "complex64":
        grads = grads + 1j * data.draw(draw)
    rho, debias = data.draw(st.sampled_from([(0.0, 0), (0.999, 0), (0.9, 1)]))
    eps, in_sqrt = data.draw(st.sampled_from([(0.0, True), (1e-8, False)]))
    options = {"eps_in_sqrt": in_sqrt, "centered": centered}
    with x64(dtype):
        tx = transformation(rho, eps, bool(debias), **options)
        updates, state = run(tx, jnp.asarray(grads, dtype))
    assert updates.dtype == dtype
    kind = complex if dtype == "complex64" else float
    assert np.isfinite(np.asarray(updates, kind)).all()
    assert not np.isnan(state.nu).any()
    assert (np.asarray(state.nu) >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_gradients_give_zero_updates(dtype, eps):
    with x64(dtype):
        updates, _ = run(scale_by_rms(eps=eps), jnp.zeros((4, 3), dtype))
    assert updates.dtype == dtype
    assert not np.asarray(updates).any()


@QUICK
@given(
    grads=streams(np.float32, smallest=2.0**-20, largest=2.0**20),
    power=st.integers(-20, 20),
    centered=st.booleans(),
)
def test_without_eps_the_scale_of_the_gradients_does_not_matter(grads, power, centered):
    tx = transformation(eps=0.0, centered=centered)
    updates, _ = run(tx, jnp.asarray(grads))
    scaled, _ = run(tx, jnp.asarray(grads * np.float32(2.0**power)))
    np.testing.assert_array_equal(updates, scaled)  # powers of two do not round


@QUICK
@given(grads=streams(np.float32, smallest=2.0**-20, largest=2.0**20))
def test_complex_gradients_count_by_their_modulus(grads):
    angle = np.exp(0.7j)
    with jax.numpy_dtype_promotion("standard"):
        tx = transformation()
        real, real_state = run(tx, jnp.asarray(grads))
        turned, state = run(tx, jnp.asarray(grads * angle, jnp.complex64))
    assert state.nu.dtype == jnp.float32
    np.testing.assert_allclose(state.nu, real_state.nu, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(turned, np.asarray(real) * angle, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("rho", [0.9, 0.999])
def test_centered_survives_100000_constant_gradients(size, dtype, rho):
    tx = scale_by_rms(rho, centered=True)
    g = jnp.full((2,), size, dtype)

    def step(carry, _):
        state, largest, least = carry
        u, state = tx.update(g, state)
        u = u.astype(jnp.float32)
        return (state, jnp.maximum(largest, u), jnp.minimum(least, u)), None

    start = (tx.init(g), jnp.zeros(2), jnp.full(2, jnp.inf))
    (state, largest, least), _ = jax.lax.scan(step, start, length=100_000)
    # sqrt(variance) is not told from zero under 2^-11.5 of the gradient.
    assert (np.asarray(largest) <= 2**11.5 * 1.01).all()
    assert (np.asarray(least) > 0).all()
    assert (np.asarray(state.nu) >= 0).all()
    np.testing.assert_allclose(state.mu, np.asarray(g, np.float32), rtol=1e-3)


@pytest.mark.parametrize("start", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("rho", [0.9, 0.999])
def test_bias_correction_is_right_for_every_initial_value(start, rho):
    grads = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    tx = scale_by_rms(rho, 0.0, start, bias_correction=True)
    updates, state = run(tx, jnp.asarray(grads))
    weights = rho ** np.arange(30)[::-1]
    mean = (weights[:, None] * np.float64(grads) ** 2).sum(0) / weights.sum()
    np.testing.assert_allclose(state.nu, mean, rtol=1e-5)
    np.testing.assert_allclose(updates[-1], grads[-1] / np.sqrt(mean), rtol=1e-5)
    np.testing.assert_allclose(np.abs(updates[0]), 1, rtol=1e-6)


def test_centered_bias_correction_starts_gently_and_forgets_nothing_seen():
    grads = np.random.default_rng(2).normal(3.0, 1.0, (40, 5)).astype(np.float32)
    tx = scale_by_rms(0.9, 0.0, 7.0, bias_correction=True, centered=True)
    updates, state = run(tx, jnp.asarray(grads))
    weights = 0.9 ** np.arange(40)[::-1]
    mean, square = (
        (weights[:, None] * np.float64(grads) ** p).sum(0) / weights.sum()
        for p in (1, 2)
    )
    np.testing.assert_allclose(state.mu, mean, rtol=1e-5)
    np.testing.assert_allclose(state.nu, square - mean**2, rtol=1e-5)
    np.testing.assert_allclose(np.abs(updates[0]), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["uncentered", "centered", "coupled"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("hit", [0, 1, 4])
def test_skip_nonfinite_loses_one_element_and_nothing_else(name, bad, hit):
    options = {
        "uncentered": {},
        "centered": {"centered": True, "momentum": 0.9},
        "coupled": {"weight_decay": 0.1, "bias_correction": True},
    }[name]
    tx = rmsprop(0.1, skip_nonfinite=True, **options)
    grads = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    spoilt = grads.copy()
    spoilt[hit, 2] = bad
    params = jnp.ones(5)

    @jax.jit
    def path(grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            rms = rms_of(state)
            return (params, state), (params, updates, rms)

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    clean, seen = path(jnp.asarray(grads)), path(jnp.asarray(spoilt))
    others = np.asarray([0, 1, 3, 4])
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(seen), strict=True):
        assert np.isfinite(b).all()
        if np.ndim(a) > 1:  # the step count has no elements
            np.testing.assert_array_equal(a[:, others], b[:, others])
    before = path(jnp.asarray(grads))[2].nu[hit - 1, 2] if hit else 0.0
    assert seen[2].nu[hit, 2] == before
    if name != "centered":  # where momentum goes on
        assert seen[1][hit, 2] == 0
    # Without the flag, the element does not come back from NaN.
    if np.isnan(bad):
        _, state = run(scale_by_rms(), jnp.asarray(spoilt))
        assert np.isnan(state.nu[2])


def test_an_overflow_stops_an_element_only_until_it_is_forgotten():
    grads = jnp.ones((2000, 1)).at[0].set(3e38)
    updates, _ = run(scale_by_rms(0.9), grads)
    assert float(updates[1, 0]) < 1e-18
    np.testing.assert_allclose(updates[-1], 1, rtol=1e-5)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-8])
@pytest.mark.parametrize("in_sqrt", [True, False])
def test_the_update_can_be_differentiated_everywhere(centered, eps, in_sqrt):
    def total(g):
        tx = scale_by_rms(0.9, eps, eps_in_sqrt=in_sqrt, centered=centered)
        first, state = tx.update(g, tx.init(g))
        second, state = tx.update(0.5 * g, state)
        return first + second

    size = jnp.logspace(-44, 18, 125)
    g = jnp.concatenate([jnp.zeros(1), size, -size])
    assert np.isfinite(jax.vmap(total)(g)).all()
    assert np.isfinite(jax.vmap(jax.grad(total))(g)).all()


def test_the_gradient_of_an_update_is_right():
    def total(g, eps):
        tx = scale_by_rms(0.9, eps)
        return jnp.sum(tx.update(g, tx.init(g))[0])

    with jax.enable_x64(True):
        g, h = jnp.asarray([0.3, -2.0]), 1e-6
        numeric = [
            (total(g.at[i].add(h), 1e-2) - total(g.at[i].add(-h), 1e-2)) / (2 * h)
            for i in range(2)
        ]
        np.testing.assert_allclose(jax.grad(total)(g, 1e-2), numeric, rtol=1e-6)


def test_any_callable_is_a_decay_schedule():
    grads = np.random.default_rng(4).normal(size=(10, 3)).astype(np.float32)
    schedule = optax.linear_schedule(0.5, 0.99, 8)
    updates, _ = run(scale_by_rms(schedule, 1e-4), jnp.asarray(grads))
    expected = oracle(grads, lambda count: float(schedule(count)), 1e-4)
    np.testing.assert_allclose(updates, [u for u, _, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99, 0.999])
def test_hyperparameters_of_any_type_mean_the_same(rho):
    grads = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3)), jnp.bfloat16)
    expected, _ = run(scale_by_rms(rho), grads)
    for kind in (np.float32, np.float64, jnp.float32, jnp.asarray):
        updates, state = run(scale_by_rms(kind(rho), kind(1e-8), kind(0.0)), grads)
        assert updates.dtype == jnp.bfloat16
        assert state.nu.dtype == jnp.float32
        assert_close(updates, expected, EPS["bfloat16"])


@pytest.mark.parametrize("asked", ["float32", "float64"])
def test_store_have_the_dtype_that_is_asked_for(asked):
    names = ("nu_dtype", "mu_dtype", "accumulator_dtype")
    with jax.enable_x64(True):
        tx = rmsprop(0.1, centered=True, momentum=0.9, **dict.fromkeys(names, asked))
        params = {
            name: jnp.ones(2, name)
            for name in ("bfloat16", "float32", "float64", "complex64", "complex128")
        }
        state, real = tx.init(params), jnp.dtype(asked)
        pair = jnp.dtype({"float32": "complex64", "float64": "complex128"}[asked])
        for _ in range(3):
            dtypes = jax.tree.map(lambda x: x.dtype, state)
            assert set(dtypes[0].nu.values()) == {real}
            for accumulator in (dtypes[0].mu, dtypes[2].trace):
                for name, dtype in accumulator.items():
                    assert dtype == (pair if "complex" in name else real)
            updates, state = tx.update(params, state)
            assert all(u.dtype == name for name, u in updates.items())


def test_a_float64_average_holds_what_float32_would_lose():
    with jax.enable_x64(True):
        g = jnp.full((20_000, 1), 1e-3, jnp.float32)
        _, wide = run(scale_by_rms(0.999999, nu_dtype=jnp.float64), g)
        _, narrow = run(scale_by_rms(0.999999, nu_dtype=jnp.float32), g)
    exact = 1e-6 * (1 - 0.999999**20_000)
    assert abs(float(wide.nu[0]) / exact - 1) < 1e-6
    assert abs(float(narrow.nu[0]) / exact - 1) > 1e-6


def test_leaves_of_one_shape_are_traced_once_whatever_the_numbers(monkeypatch):
    traced = []
    read = _store.read

    def counted(stored, *rest):
        traced.append(stored.shape)
        return read(stored, *rest)

    monkeypatch.setattr(_store, "read", counted)
    # Shapes that no other test has: what is traced stays so in the process.
    shapes = [(3, 41), (2, 43)]
    params = {str(i): jnp.ones(shapes[i % 2]) for i in range(20)}
    for rho in (0.5, 0.6, np.float32(0.7), power()):
        tx = rmsprop(0.1, rho, momentum=0.9 if callable(rho) else rho)
        jax.jit(tx.update).lower(params, tx.init(params))
        tx.update(params, tx.init(params))
    assert sorted(traced) == sorted(2 * shapes)  # nu and momentum


def test_the_count_ends_at_its_largest_number():
    tx, params = scale_by_rms(power(0.8)), jnp.ones(2)
    most = np.iinfo(np.int32).max
    state = tx.init(params)._replace(count=jnp.int32(most))
    assert tx.update(params, state)[1].count == most


def test_complex128_is_computed_in_float64():
    with jax.enable_x64(True):
        g = jnp.asarray([3.0 + 4.0j], jnp.complex128)
        tx = scale_by_rms(0.9, 1e-3)
        updates, state = tx.update(g, tx.init(g))
        expected = np.asarray([3 + 4j]) / np.sqrt(2.501)
        np.testing.assert_allclose(updates, expected, rtol=1e-15)
        np.testing.assert_allclose(state.nu, [2.5], rtol=1e-15)
