"""Parameters of 16 and 8 bits go where updates lead, however these are applied."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import _grid, _round_params, rmsprop, rounding, sharding

pytestmark = pytest.mark.optimized

FLOAT8 = ["float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn",
          "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]  # fmt: skip
NARROW = ["bfloat16", "float16", *FLOAT8]
FORMS = ["stochastic", "remainder"]
APPLY = {
    "optax": optax.apply_updates,
    "equinox": eqx.apply_updates,
    "sum": partial(jax.tree.map, lambda p, u: p + u),
}


def parameters(dtype, size):
    """Normally distributed, within a quarter of the largest number."""
    p = np.random.default_rng(0).normal(size=size)
    p = jnp.asarray(p * min(1.0, float(jnp.finfo(dtype).max) / 16), dtype)
    return jnp.where(p == 0, jnp.ones_like(p), p)


def with_updates(dtype, size, relative):
    """Parameters, the same in float32, and updates of `relative` their size."""
    p = parameters(dtype, size)
    wide = np.asarray(p, np.float32)
    signs = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    u = np.float32(relative) * signs * np.abs(wide)
    largest = float(jnp.finfo(dtype).max) * 0.9
    return p, wide, np.where(np.abs(u) > largest / 2, np.float32(0.25) * wide, u)


def moved(tx, params, u, draws, apply):
    """Parameters after one update each, in `draws` equal rows, and the state."""
    rows = jnp.broadcast_to(params, (draws, *params.shape))
    updates, state = tx.update(jnp.broadcast_to(u, rows.shape), tx.init(rows), rows)
    assert updates.dtype == params.dtype
    found = apply(rows, updates)
    assert found.dtype == params.dtype
    return found, state


# Of the size of the parameter.
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1, 0.25, 0.4, 1.0, 1e3])
@pytest.mark.parametrize("dtype", NARROW)
def test_the_mean_is_the_target_and_small_updates_land_next_to_it(dtype, size):
    draws, size_of = 2048, 128
    p, wide, u = with_updates(dtype, size_of, size)
    target = wide + u
    found = {
        name: np.asarray(
            moved(rounding.round_params(), p, u, draws, apply)[0], np.float64
        )
        for name, apply in APPLY.items()
    }
    for other in found.values():
        np.testing.assert_array_equal(other, found["optax"])
    rows = found["optax"]
    grid = _grid.grid_of(jnp.dtype(dtype))
    spacing = np.asarray(_grid.spacing(jnp.asarray(target), grid)[0], np.float64)
    if size <= 0.25:
        assert (np.abs(rows - target) < spacing).all()
    # At most two values, of which one may be too rare to be seen.
    low, high = rows.min(0), rows.max(0)
    assert ((rows == low) | (rows == high)).all()
    error = np.abs(rows.mean(0) - target)
    variance = np.maximum((target - low) * (high - target), 0)
    rare = 12 * np.maximum(high - low, spacing) / draws
    assert (error <= 5 * np.sqrt(variance / draws) + rare).all()
    # All together they tell apart what rounding to nearest loses.
    lost = np.asarray(jnp.asarray(target, dtype), np.float64) - wide == 0
    if lost.sum() > 8:
        went = ((rows.mean(0) - wide) / u)[lost]
        assert abs(np.average(went, weights=np.abs(u[lost]) / spacing[lost]) - 1) < 0.2


@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.4, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("dtype", NARROW)
def test_parameter_and_remainder_together_are_the_target(dtype, size):
    draws, size_of = 512, 128
    p, wide, u = with_updates(dtype, size_of, size)
    tx = rounding.round_params(form="remainder")
    grid = _grid.grid_of(jnp.dtype(dtype))
    for apply in APPLY.values():
        found, state = moved(tx, p, u, draws, apply)
        assert state.remainder.dtype == jnp.int8
        merged = np.asarray(rounding.merge(found, state), np.float64)
        spacing = np.asarray(
            _grid.spacing(jnp.asarray(found, jnp.float32), grid)[0], np.float64
        )
        target = np.float64(wide) + u
        # What is drawn is a part of the spacing, or that of a large update.
        part = spacing.max(0) / 256
        of_update = np.asarray(_grid.spacing(jnp.asarray(u), grid)[0], np.float64)
        is_small = np.abs(u) < np.abs(target) / 2
        most = np.where(is_small, 2 * part, of_update + 2 * part)
        assert (np.abs(merged - target) <= most).all()
        error = np.abs(merged.mean(0) - target)
        assert (error <= 5 * most / 2 / np.sqrt(draws) + part / 128).all()
        kept = np.asarray(found, np.float64)
        assert (np.abs(merged - kept) <= spacing / 2).all()


def test_a_run_with_remainders_is_that_of_wider_weights():
    steps, size = 2000, 512
    p = parameters("bfloat16", size)
    noise = np.random.default_rng(2).normal(size=(steps, size)).astype(np.float32)

    def run(tx, params):
        def step(carry, g):
            params, state = carry
            g = (params.astype(jnp.float32) - 1 + g).astype(jnp.float32)
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), noise)[0]

    exact, _ = run(rmsprop(1e-4), p.astype(jnp.float32))
    distance = {}
    for form in FORMS:
        tx = rmsprop(1e-4, round_params=form)
        merged = rounding.merge(*jax.jit(partial(run, tx))(p))
        assert merged.dtype == jnp.float32
        distance[form] = float(jnp.sqrt(jnp.mean((merged - exact) ** 2)))
    assert distance["remainder"] < 1e-3 < 5e-3 < distance["stochastic"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_what_is_not_finite_or_too_large_is_so_in_the_sum(dtype, form):
    most = float(jnp.finfo(dtype).max)
    p = jnp.asarray([1, most, -most, 1, 1, -most / 2, most / 2, jnp.nan], dtype)
    u = jnp.asarray(
        [jnp.inf, most, -most, jnp.nan, -jnp.inf, most, -most, 1], jnp.float32
    )
    tx = rounding.round_params(form=form)
    updates, state = tx.update(u, tx.init(p), p)
    plain = np.asarray((p.astype(jnp.float32) + u).astype(dtype), np.float32)
    found = np.asarray(p + updates, np.float32)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(plain))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(plain))
    if form == "remainder":
        np.testing.assert_array_equal(state.remainder[~np.isfinite(plain)], 0)


@pytest.mark.parametrize("form", FORMS)
def test_dtypes_without_an_unbiased_rounding_are_refused_by_name(form):
    for dtype in ("float8_e8m0fnu", "float4_e2m1fn"):
        params = {"a": jnp.ones(2), "b": [jnp.ones(2).astype(dtype)]}
        message = re.escape(f"params['b'][0] has dtype {dtype}")
        for tx in (rounding.round_params(form=form), rmsprop(1, round_params=form)):
            with pytest.raises(TypeError, match=message):
                tx.init(params)


@pytest.mark.parametrize("form", FORMS)
def test_wide_parameters_pass_and_take_no_memory(form):
    params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.complex64), "c": None}
    tx = rounding.round_params(form=form)
    state = tx.init(params)
    assert [x.shape for x in jax.tree.leaves(state)] == [()]
    updates, _ = tx.update(params, state, params)
    assert updates["a"] is params["a"]
    assert updates["b"] is params["b"]
    with pytest.raises(TypeError, match="update is complex64, but its parameter is"):
        tx.update(jnp.ones(3, jnp.complex64), tx.init(jnp.ones(3, "bfloat16")),
                  jnp.ones(3, jnp.bfloat16))  # fmt: skip


WRAPPERS = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **_: step < 2
    ),
    "conditionally_mask": lambda tx: optax.conditionally_mask(
        tx, lambda step, **_: step < 2
    ),
    "masked": lambda tx: optax.masked(tx, True),
    "partition": lambda tx: optax.partition({"all": tx}, "all"),
    "inject": lambda tx: optax.with_extra_args_support(tx),
}


BY_GRADIENT = ("apply_if_finite", "conditionally_transform", "conditionally_mask")


@pytest.mark.promotion  # Optax's own
@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_optax_keep_dtypes(name, form, gradients):
    inner = rmsprop(1e-3, nu_dtype="uint8", round_params=form)
    if gradients == "float32" and name in BY_GRADIENT:
        pytest.skip("the other branch has the dtype of the gradients")
    tx = WRAPPERS[name](inner)
    params = {"a": jnp.ones(300, jnp.bfloat16), "b": jnp.ones(2, gradients)}
    grads = jax.tree.map(lambda x: x.astype(gradients), params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
    assert params["a"].dtype == jnp.bfloat16
    assert 0.9 < params["a"].astype(float).mean() < 1 or "conditionally" in name


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_placed_and_a_mesh_changes_no_bit(form, kind):
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    tx = rmsprop(1e-3, nu_dtype="uint8", round_params=form)
    alone = {
        "w": parameters("bfloat16", 512).reshape(64, 8),
        "b": jnp.ones(3, "bfloat16"),
    }
    # As the outputs are written, or parameters alone would compile the step anew.
    auto = kind == AxisType.Auto
    specs = {"w": P("data") if auto else P("data", None), "b": P() if auto else P(None)}
    placed = {
        name: jax.device_put(p, NamedSharding(mesh, specs[name]))
        for name, p in alone.items()
    }

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    def run(params):
        state = tx.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return params, state

    expected = run(alone)
    with jax.set_mesh(mesh):
        assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(tx.init(placed)))
        before = step._cache_size()
        found = run(placed)
        assert step._cache_size() == before + 1
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one, float), np.asarray(other, float))
    followed = sharding.init(tx, placed)
    for leaf in jax.tree.leaves(followed):
        spec = P("data", None) if leaf.shape == (64, 8) else P()
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
    abstract = jax.eval_shape(tx.init, alone)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), alone)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(shapes)) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    )


def test_the_argument_of_rmsprop_is_the_last_element_of_the_chain():
    params = {"w": parameters("bfloat16", 512), "wide": jnp.ones(3)}
    grads = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    options = {"momentum": 0.9, "nu_dtype": "uint8", "weight_decay": 0.1}

    def after(tx):
        state, p = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(grads, state, p)
            p = APPLY["sum"](p, updates)
        return p, updates["w"].dtype

    for form in FORMS:
        chained = optax.chain(
            rmsprop(1e-3, **options), rounding.round_params(form=form)
        )
        expected, _ = after(chained)
        found, dtype = after(rmsprop(1e-3, **options, round_params=form))
        assert dtype == jnp.bfloat16
        np.testing.assert_array_equal(found["w"], expected["w"])
        np.testing.assert_array_equal(found["wide"], expected["wide"])
    np.testing.assert_array_equal(
        after(rmsprop(1e-3, **options, round_params=True))[0]["w"],
        after(rmsprop(1e-3, **options, round_params=_round_params.DEFAULT))[0]["w"],
    )
    for off in (False, None):
        tx = rmsprop(1e-3, **options, round_params=off)
        updates, _ = tx.update(grads, tx.init(params), params)
        assert updates["w"].dtype == jnp.float32


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="`round_params` needs `learning_rate`, which"):
        rmsprop(None, round_params=True)
    with pytest.raises(ValueError, match="'stochastic' or 'remainder', got 'nearest'"):
        rmsprop(0.1, round_params="nearest")
    with pytest.raises(TypeError, match="`round_params` must be True or False, got 2"):
        rmsprop(0.1, round_params=2)
    with pytest.raises(ValueError, match="`form` must be 'stochastic' or 'remainder'"):
        rounding.round_params(form="nearest")
    params = jnp.ones(2, jnp.bfloat16)
    tx = rmsprop(0.1, round_params=True)
    with pytest.raises(ValueError, match="`round_params` needs the parameters"):
        tx.update(params, tx.init(params))
    for form, has in (("remainder", "no"), ("stochastic", "a")):
        other = FORMS[1 - FORMS.index(form)]
        state = rounding.round_params(form=other).init(params)
        with pytest.raises(ValueError, match=f"the state has {has} remainder"):
            rounding.round_params(form=form).update(params, state, params)


def test_numpy_numbers_are_seeds():
    params = parameters("bfloat16", 64)
    found = [
        moved(rounding.round_params(seed), params, jnp.float32(1e-3), 1, APPLY["sum"])
        for seed in (3, np.int64(3), np.uint8(3), np.asarray(3), jnp.int32(3))
    ]
    for one, _ in found:
        np.testing.assert_array_equal(one, found[0][0])


@pytest.mark.promotion  # Optax's own
def test_merging_finds_remainders_in_wrappers_and_what_follows():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": None, "c": jnp.ones(3)}
    tx = rmsprop(1e-4, round_params="remainder")
    expected = 1 - 1e-4 / np.sqrt(0.1)
    for wrapped in (
        tx,
        optax.chain(optax.clip(1.0), tx),
        optax.inject_hyperparams(rmsprop)(1e-4, round_params="remainder"),
        optax.masked(tx, {"a": True, "b": None, "c": True}),
        optax.apply_if_finite(tx, 3),
        optax.partition({"x": tx, "y": rmsprop(1e-4)}, {"a": "x", "b": None, "c": "y"}),
    ):
        updates, state = wrapped.update(params, wrapped.init(params), params)
        merged = rounding.merge(optax.apply_updates(params, updates), state)
        np.testing.assert_allclose(merged["a"], expected, atol=2**-15)
        np.testing.assert_allclose(merged["c"], expected, rtol=1e-6)
        assert merged["b"] is None
    end = rounding.round_params()
    for chain in (
        optax.chain(end, optax.scale(1.0)),
        optax.chain(optax.chain(optax.sgd(1.0), end), optax.scale(1.0)),
        optax.chain(tx, optax.add_decayed_weights(0.1)),
    ):
        with pytest.raises(ValueError, match="is not the last element of its chain"):
            rounding.merge(params, chain.init(params))
    with pytest.raises(ValueError, match="there is nothing to merge"):
        rounding.merge(params, rmsprop(0.1).init(params))
    with pytest.raises(ValueError, match=r"params\['a'\] has shape \(3,\), its"):
        rounding.merge({**params, "a": jnp.ones(3, "bfloat16")}, tx.init(params))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_weight_halfway_between_two_parameters_gets_across(sign):
    part = 2.0**-15  # of bfloat16 between 1 and 2
    tx = rounding.round_params(form="remainder")
    params = jnp.full(512, 1.5, jnp.bfloat16)
    state = tx.init(params)._replace(remainder=jnp.full(512, 120 * sign, jnp.int8))

    def step(carry, _):
        params, state = carry
        u = jnp.full(512, sign * part / 4, jnp.float32)
        updates, state = tx.update(u, state, params)
        return (params + updates, state), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=64)
    found = np.asarray(rounding.merge(params, state), np.float64)
    assert abs(found.mean() - (1.5 + 136 * sign * part)) < part
    assert (np.asarray(params, float) != 1.5).mean() > 0.95


@pytest.mark.parametrize("form", ["stochastic", "remainder"])
def test_wide_parameters_alone_pass_whatever_the_form(form):
    tx, params = rmsprop(0.1, round_params=form), jnp.ones(2)
    expected, _ = rmsprop(0.1).update(params, rmsprop(0.1).init(params), params)
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates, expected)
    tx.update(params, state, params)


@pytest.mark.parametrize("form", ["stochastic", "remainder"])
def test_a_remainder_that_is_missing_or_too_much_is_named(form):
    both = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    one = {**both, "b": jnp.ones(2)}
    other = {"stochastic": "remainder", "remainder": "stochastic"}[form]
    tx = rounding.round_params(form=form)
    states = [rounding.round_params(form=other).init(both)]
    if form == "remainder":  # of parameters that had other dtypes
        states += [tx.init(one)]
        with pytest.raises(ValueError, match=r"has a remainder for params\['b'\]"):
            tx.update(one, tx.init(both), one)
    for state in states:
        with pytest.raises(
            ValueError, match=r"remainder for params\['[ab]'\].*migrate"
        ):
            tx.update(both, state, both)
