"""Mapping equals stacking: a member of a `vmap` rounds as its row would."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rmsprop_jax import _bits, dialects, rmsprop, rounding, scale_by_rms

pytestmark = [pytest.mark.optimized, pytest.mark.promotion]  # Optax's addition

MEMBERS, SIZE = 4, 512


def narrow(nu_dtype="uint8", seed=0):
    """Every accumulator that is rounded, and parameters that are."""
    return optax.chain(
        rmsprop(
            1e-2,
            nu_dtype=nu_dtype,
            centered=True,
            mu_dtype="bfloat16",
            momentum=0.9,
            accumulator_dtype="bfloat16",
            seed=seed,
        ),
        rounding.round_params(seed),
    )


def start(*shape):
    # All members are equal: only their bits can tell them apart.
    rows = jnp.linspace(1, 2, SIZE).astype(jnp.bfloat16)
    return {"w": jnp.broadcast_to(rows, (*shape, SIZE)), "s": jnp.ones(shape)}


def gradients(params, step):
    return jax.tree.map(
        lambda p: jnp.cos((1 + step) * 7 * p.astype(jnp.float32)).astype(p.dtype),
        params,
    )


def advance(tx, params, state, step):
    updates, state = tx.update(gradients(params, step), state, params)
    return optax.apply_updates(params, updates), state


def after(tx, params, map_over=lambda function: function, steps=3):
    """Parameters and state after some steps; `map_over` maps a function or does not."""
    state = map_over(tx.init)(params)
    step_of = jax.jit(lambda p, s, i: map_over(partial(advance, tx, step=i))(p, s))
    for i in range(steps):
        params, state = step_of(params, state, i)
    return jax.tree.map(lambda x: np.asarray(x.astype(float)), (params, state))


def assert_equal(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        # A count is one number of the whole, or one of each member.
        other = other if other.ndim else np.full(one.shape, other)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("nu_dtype", ["uint8", "uint16", "bfloat16"])
def test_mapping_equals_stacking(nu_dtype):
    tx = narrow(nu_dtype)
    members = after(tx, start(MEMBERS), jax.vmap)
    assert_equal(members, after(tx, start(MEMBERS)))
    nested = after(tx, start(2, MEMBERS), lambda f: jax.vmap(jax.vmap(f)))
    assert_equal(nested, after(tx, start(2, MEMBERS)))
    w = members[0]["w"] - members[0]["w"].mean(0)
    expected = -1 / (MEMBERS - 1)  # of what is left when the mean is taken off
    assert abs(np.corrcoef(w[0], w[1])[0, 1] - expected) < 5 / np.sqrt(SIZE)


def test_one_state_mapped_over_gradients_alone_has_bits_of_each_row_too():
    tx = scale_by_rms(nu_dtype="uint8")
    params, grads = jnp.ones(SIZE), jnp.full((MEMBERS, SIZE), 0.37)
    state = tx.init(params)
    mapped = jax.vmap(tx.update, in_axes=(0, None))(grads, state)[1]
    whole = tx.update(grads, tx.init(jnp.ones((MEMBERS, SIZE))))[1]
    np.testing.assert_array_equal(mapped.nu, whole.nu)
    assert (mapped.nu[0] != mapped.nu[1]).any()


def test_members_may_be_at_different_steps_and_have_seeds_of_their_own():
    params, grads = jnp.ones(SIZE), jnp.full(SIZE, 0.37)

    def codes(seed, steps):
        tx = scale_by_rms(nu_dtype="uint8", seed=seed)
        state = tx.init(params)._replace(count=steps)
        return tx.update(grads, state)[1].nu

    seeds, steps = jnp.asarray([0, 0, 5, 5]), jnp.asarray([3, 9, 3, 9])
    mapped = jax.jit(jax.vmap(codes))(seeds, steps)
    for i, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
        tx = scale_by_rms(nu_dtype="uint8", seed=int(seed))
        whole = tx.init(jnp.ones((MEMBERS, SIZE)))._replace(count=step)
        found = tx.update(jnp.full((MEMBERS, SIZE), 0.37), whole)[1].nu[i]
        np.testing.assert_array_equal(mapped[i], found)


def test_members_on_a_mesh_and_pieces_of_members_have_the_same_bits():
    tx = narrow()
    params = {"w": start(MEMBERS)["w"]}
    expected = after(tx, params)
    mesh = jax.make_mesh((2, 4), ("members", "pieces"), (AxisType.Auto,) * 2)
    rows = jax.device_put(params, jax.NamedSharding(mesh, P("members", "pieces")))
    assert_equal(after(tx, rows, jax.vmap), expected)

    def in_pieces(function):
        def of_pieces(*trees):
            with _bits.in_pieces("pieces"):
                return function(*trees)

        def mapped(*trees):
            specs = jax.tree.map(lambda x: P(*["pieces"] * (x.ndim - 1)), trees)
            out = jax.eval_shape(jax.vmap(function), *trees)
            outs = jax.tree.map(lambda x: P(*["pieces"] * (x.ndim - 1)), out)
            return jax.vmap(
                jax.shard_map(of_pieces, mesh=mesh, in_specs=specs, out_specs=outs)
            )(*trees)

        return mapped

    assert_equal(after(tx, params, in_pieces), expected)


def test_bits_are_the_same_in_a_scan_and_derivatives_go_through():
    tx = rmsprop(1e-2, nu_dtype="uint8", momentum=0.5, accumulator_dtype="bfloat16")
    params = {"w": start(MEMBERS)["w"].astype(jnp.float32)}

    def scanned(params):
        def step(carry, i):
            return jax.vmap(partial(advance, tx, step=i))(*carry), None

        start = params, jax.vmap(tx.init)(params)
        return jax.lax.scan(step, start, jnp.arange(3))[0]

    found = jax.tree.map(np.asarray, jax.jit(scanned)(params))
    assert_equal(found[1][0].nu, after(tx, params)[1][0].nu)

    def loss(rate, rows):
        tx = rmsprop(rate, nu_dtype="uint8")
        grads = jnp.sin(rows * rate)
        update = tx.update(grads, tx.init(rows))[0]
        return jnp.sum(update * rows)

    rows = params["w"]
    for slope in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.checkpoint(f))):
        found = jax.jit(jax.vmap(slope(loss), (None, 0)))(0.3, rows)
        exact = [slope(loss)(0.3, row) for row in rows]
        np.testing.assert_allclose(found, exact, rtol=1e-4)
        assert (np.abs(found) > 0).all()


@pytest.mark.parametrize(
    "make",
    [
        partial(rmsprop, 1e-2),
        partial(dialects.torch, 1e-2),
        partial(dialects.keras, 1e-2),
        partial(scale_by_rms, 0.9),
    ],
)
def test_the_seed_changes_bits_and_a_traced_or_numpy_one_is_the_same(make):
    params, grads = jnp.ones(SIZE), jnp.full(SIZE, 0.37)

    def nu(seed):
        tx = make(nu_dtype="uint8", seed=seed)
        state = tx.update(grads, tx.init(params), params)[1]
        return next(x for x in jax.tree.leaves(state) if x.dtype == jnp.uint8)

    default = make(nu_dtype="uint8")
    plain = default.update(grads, default.init(params), params)[1]
    assert any((nu(0) == x).all() for x in jax.tree.leaves(plain) if x.ndim)
    assert (nu(0) != nu(1)).any()
    for seed in (7, -3):
        same = [np.int64(seed), np.asarray(seed, np.int16), jnp.int32(seed)]
        for found in (*map(nu, same), jax.jit(nu)(seed)):
            np.testing.assert_array_equal(found, nu(seed))


def test_the_seed_is_a_hyperparameter_of_the_momentum_too():
    params, grads = jnp.ones(SIZE), jnp.full(SIZE, 0.37)

    def trace(seed):
        tx = rmsprop(1e-2, momentum=0.9, accumulator_dtype="bfloat16", seed=seed)
        return tx.update(grads, tx.init(params))[1][2].trace

    assert (trace(0) != trace(1)).any()
    injected = optax.inject_hyperparams(rmsprop)(1e-2, nu_dtype="uint8", seed=3)
    state = injected.init(params)
    assert state.hyperparams["seed"] == 3
    found = injected.update(grads, state)[1].inner_state[0].nu
    tx = rmsprop(1e-2, nu_dtype="uint8", seed=3)
    np.testing.assert_array_equal(found, tx.update(grads, tx.init(params))[1][0].nu)


@pytest.mark.parametrize(
    "seed", [0.5, "1", None, True, np.float32(1), np.arange(2), jax.random.key(0)]
)
def test_a_seed_that_is_no_integer_is_refused(seed):
    for make in (
        lambda: rmsprop(0.1, seed=seed),
        lambda: scale_by_rms(seed=seed),
        lambda: rounding.round_params(seed),
    ):
        with pytest.raises(TypeError, match="`seed` must be an integer, got"):
            make()
