"""Random bits are random, rounding has no bias, and parameters of 16 bits move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import _bits, _grid, rmsprop, rounding
from table import train

pytestmark = pytest.mark.optimized


def uniforms(shape, step=0, seed=1):
    bits = rounding.random_bits(shape, step, seed)
    assert bits.dtype == jnp.uint32
    return np.asarray(bits >> 8, np.float64) / 2**24


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_the_bits_are_uniform_and_independent_of_neighbours_steps_and_leaves():
    x = uniforms((512, 256))
    noise = 1 / np.sqrt(x.size)
    assert abs(x.mean() - 0.5) < 4 * noise * np.sqrt(1 / 12)
    counts, _ = np.histogram(x, 256, (0, 1))
    chi2 = ((counts - x.size / 256) ** 2 / (x.size / 256)).sum()
    assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
    for other in (
        np.roll(x, 1, 0),
        np.roll(x, 1, 1),
        uniforms((512, 256), step=1),
        uniforms((512, 256), seed=2),
        uniforms((512, 256), step=2**20),
    ):
        assert abs(correlation(x, other)) < 5 * noise
    # And over the steps of one element, which is what an average sees.
    steps = jax.vmap(lambda step: rounding.random_bits((64,), step, 3))(
        jnp.arange(4096)
    )
    path = np.asarray(steps >> 8, np.float64) / 2**24
    assert np.abs(path.mean(0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 4096)
    assert np.abs([correlation(p[1:], p[:-1]) for p in path.T]).max() < 6 / np.sqrt(
        4096
    )


def test_the_bits_are_those_of_the_index_however_it_is_laid_out():
    x = uniforms((8, 16))
    np.testing.assert_array_equal(uniforms((128,)).reshape(8, 16), x)
    np.testing.assert_array_equal(uniforms((2, 4, 16)).reshape(8, 16), x)
    assert uniforms(()) == x[0, 0]
    assert uniforms((3, 0)).shape == (3, 0)
    compiled = jax.jit(lambda step: rounding.random_bits((8, 16), step, 1))(0)
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    for spec in (P("a"), P("a", "b"), P(None, ("a", "b"))):
        shards = jax.jit(
            lambda step: rounding.random_bits((8, 16), step, 1),
            out_shardings=NamedSharding(mesh, spec),
        )(0)
        np.testing.assert_array_equal(shards, compiled)


@pytest.mark.promotion  # Optax's addition
@pytest.mark.parametrize("axes", [("data",), ("data", "model")], ids=str)
@pytest.mark.parametrize("nu_dtype", ["uint8", "uint16", "bfloat16"])
def test_pieces_are_rounded_as_in_the_whole(nu_dtype, axes):
    tx = optax.chain(
        rmsprop(0.1, nu_dtype=nu_dtype, momentum=0.9, accumulator_dtype="bfloat16"),
        rounding.round_params(),
    )
    params = jnp.linspace(1, 2, 4096).astype(jnp.bfloat16)

    def step(params, state):
        updates, state = tx.update(grads_of(params), state, params)
        return optax.apply_updates(params, updates), state

    def step_of_pieces(params, state):
        with _bits.in_pieces(axes):
            return step(params, state)

    def grads_of(params):
        return params * jnp.cos(params.astype(float) * 1e3).astype(params.dtype)

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    state = tx.init(params)
    specs = (P(axes), jax.tree.map(lambda x: P(axes) if x.ndim else P(), state))

    def after(step, mapped):
        if mapped:
            step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs)
        found = params, state
        for _ in range(5):
            found = jax.jit(step)(*found)
        return [np.asarray(x.astype(float)) for x in jax.tree.leaves(found)]

    whole, pieces = after(step, False), after(step_of_pieces, True)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)
    # A function is traced again for pieces, also where it was traced without.
    alone = after(step, True)
    assert (alone[0] != whole[0]).any()
    assert (alone[2] != whole[2]).any()


ROUND = {"bfloat16": _grid.to_bfloat16, "float16": _grid.to_float16}


@pytest.mark.parametrize("dtype", ROUND)
def test_rounding_has_no_bias_and_goes_to_a_neighbour(dtype):
    steps = 4096
    values = jnp.asarray(
        [1.001, -1.001, 3.3, 1e-3, -7e-5, 3.1e-7, 1000.7, 0.0, 6e-8, -1e-9], jnp.float32
    )
    rounded = jax.vmap(
        lambda step: ROUND[dtype](values, rounding.random_bits(values.shape, step, 5))
    )(jnp.arange(steps))
    assert rounded.dtype == dtype
    rounded = np.asarray(rounded, np.float64)
    exact = np.asarray(values, np.float64)
    spread = rounded.max(0) - rounded.min(0)
    assert (np.abs(rounded.mean(0) - exact) <= 5 * spread / 2 / np.sqrt(steps)).all()
    info = jnp.finfo(dtype)
    lowest = float(info.smallest_subnormal) if dtype == "float16" else 0
    assert (spread <= np.maximum(float(info.eps) * np.abs(exact), lowest)).all()
    assert spread[0] > 0 == spread[7]


@pytest.mark.parametrize("dtype", ROUND)
def test_what_has_no_neighbours_stays_as_it_is(dtype):
    exact = jnp.asarray([0.0, 1.0, -1.5, 2.0**-10, jnp.inf, -jnp.inf, jnp.nan])
    for step in range(20):
        bits = rounding.random_bits(exact.shape, step, 0)
        np.testing.assert_array_equal(ROUND[dtype](exact, bits).astype(float), exact)
    largest = jnp.full(100, jnp.finfo(dtype).max, dtype).astype(jnp.float32)
    bits = rounding.random_bits((100,), 0, 0)
    np.testing.assert_array_equal(ROUND[dtype](largest, bits).astype(float), largest)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_of_16_bits_move(dtype):
    params, steps = {"w": jnp.ones(500, dtype), "none": None}, 1000
    step_size = {"bfloat16": 1e-3, "float16": 1e-4}[dtype]
    plain = optax.sgd(step_size)
    tx = optax.chain(plain, rounding.round_params())

    def run(tx):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.ones_like, params)
            with jax.numpy_dtype_promotion("standard"):  # Optax's addition
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

        (params_, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        assert params_["w"].dtype == dtype
        assert params_["none"] is None
        return np.asarray(params_["w"], float)

    np.testing.assert_array_equal(run(plain), 1.0)  # every one of them stays
    moved = run(tx)
    assert abs(moved.mean() - (1 - steps * step_size)) < 0.01
    assert moved.std() > 0.001


@pytest.mark.promotion
def test_it_works_in_nnx_and_in_linen_and_wide_parameters_pass():
    tx = optax.chain(rmsprop(1e-3), rounding.round_params(seed=3))
    model = nnx.Linear(4, 300, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(5):
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
    kernel = model.kernel[...]
    assert kernel.dtype == jnp.bfloat16
    total = 1e-3 * sum(1 / np.sqrt(1 - 0.9**t) for t in range(1, 6))
    assert abs(float(kernel.astype(float).mean()) - (1 - total)) < 1e-3
    params = {"w": jnp.ones(300, jnp.bfloat16), "wide": jnp.ones(3)}
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    for _ in range(5):
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    assert abs(float(state.params["w"].astype(float).mean()) - (1 - total)) < 2e-3
    plain = rmsprop(1e-3)
    wide, plain_state = params["wide"], plain.init(params["wide"])
    for _ in range(5):
        updates, plain_state = plain.update(jnp.ones(3), plain_state)
        wide = optax.apply_updates(wide, updates)
    np.testing.assert_array_equal(state.params["wide"], wide)


@pytest.mark.promotion
def test_it_is_reproducible_goes_on_and_differs_with_the_seed():
    params, grads = jnp.ones(64, jnp.bfloat16), jnp.ones(64, jnp.bfloat16)
    tx = optax.chain(optax.sgd(1e-3), rounding.round_params())
    (four, state) = train(tx, params, grads, steps=4)
    (two, half) = train(tx, params, grads, steps=2)
    for _ in range(2):
        updates, half = tx.update(grads, half, two)
        two = optax.apply_updates(two, updates)
    np.testing.assert_array_equal(two, four)
    assert half[1].count == state[1].count == 4
    other = optax.chain(optax.sgd(1e-3), rounding.round_params(seed=1))
    assert (np.asarray(train(other, params, grads, steps=4)[0]) != four).any()


def test_bad_calls_say_what_is_wrong():
    tx = rounding.round_params()
    with pytest.raises(TypeError, match=r"`seed` must be an integer, got 0\.5"):
        rounding.round_params(0.5)
    with pytest.raises(ValueError, match="`round_params` needs the parameters"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    with pytest.raises(TypeError, match="The state of `round_params` must be"):
        tx.update(jnp.ones(1), optax.EmptyState(), jnp.ones(1))


def test_nan_of_any_bits_stays_nan():
    patterns = jnp.asarray([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], jnp.uint32)
    nan = jax.lax.bitcast_convert_type(patterns, jnp.float32)
    bits = jnp.full(nan.shape, 0xFFFFFFFF, jnp.uint32)
    for to in ROUND.values():
        assert jnp.isnan(to(nan, bits)).all()


def test_the_momentum_rounds_with_other_bits_at_each_step():
    tx = rmsprop(0.1, momentum=1.0, accumulator_dtype="bfloat16", nu_dtype="uint16")
    g = jnp.full(1000, 1.0)
    first, *others = tx.init(g)
    traces = [
        tx.update(g, (first._replace(count=jnp.int32(count)), *others))[1][2].trace
        for count in (0, 1)
    ]
    assert 0.1 < np.mean(np.asarray(traces[0] != traces[1])) < 0.9
