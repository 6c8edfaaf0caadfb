"""nu in two bytes and in one: unbiased, safe at its ends, the same bits everywhere."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import (
    _bits,
    _codes,
    _store,
    convert,
    dialects,
    rmsprop,
    scale_by_rms,
    storage,
)
from table import DTYPES, abstract, rms_of, tree, x64

pytestmark = pytest.mark.optimized

NARROW = ("bfloat16", "uint16", "uint8")
STEP = {
    "bfloat16": 2.0**-7,
    "uint16": 2.0**-8,
    "uint8": 2.0**-2,
}  # of the grid, at most
bits_of = partial(_bits.source, (), "test")


def run(tx, grads, state=None, params=None):
    """The state and all updates after the rows of `grads`."""

    def step(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    return jax.jit(partial(jax.lax.scan, step))(
        tx.init(jax.tree.map(lambda g: g[0], grads)) if state is None else state, grads
    )


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_every_code_reads_as_a_number_that_is_written_as_that_code(dtype):
    codes = jnp.arange(jnp.iinfo(dtype).max + 1).astype(dtype)
    values = storage.decode(codes)
    finite = np.isfinite(values)
    assert finite.sum() == {"uint16": 2**16 - 2**8, "uint8": 256}[dtype]
    assert (np.diff(np.asarray(values)[finite]) > 0).all()
    for step in range(5):
        again = _store.write(values, codes, bits_of(step))
        np.testing.assert_array_equal(again[finite], codes[finite])
    if dtype == "uint8":
        assert values[0] == 2.0**-44
        assert values[255] == 1.75 * 2.0**19
    else:
        assert values[0] == 0
        assert storage.decode(jnp.uint16(0x3F80 << 1)) == 1


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_the_platforms_code_paths_agree_on_every_code(dtype):
    codes = jnp.arange(-(2**17), 2**17)
    np.testing.assert_array_equal(
        _codes._narrowed(jnp.dtype(dtype), codes),
        _codes._narrowed_as_float(jnp.dtype(dtype), codes),
    )


@pytest.mark.parametrize("dtype", NARROW)
def test_writing_has_no_bias(dtype):
    values = jnp.asarray(2.0 ** np.linspace(-20.3, 15.1, 200), jnp.float32)
    old = scale_by_rms(nu_dtype=dtype).init(values).nu
    steps = 4000
    written = jax.vmap(
        lambda step: storage.decode(_store.write(values, old, bits_of(step)))
    )(jnp.arange(steps))
    ratio = np.asarray(written, np.float64) / np.asarray(values, np.float64)
    assert np.abs(ratio.mean(0) - 1).max() < 5 * STEP[dtype] / 2 / np.sqrt(steps)
    assert np.abs(ratio - 1).max() <= STEP[dtype]


@pytest.mark.parametrize("decay", [0.9, 0.999])
@pytest.mark.parametrize("dtype", NARROW)
def test_the_average_keeps_its_mean_where_nearest_rounding_loses_it(dtype, decay):
    scales = 10.0 ** np.linspace(-5, 2, 512)
    steps = 4000
    grads = np.random.default_rng(0).normal(size=(steps, 512)) * scales
    grads = jnp.asarray(grads, jnp.float32)
    exact, _ = run(scale_by_rms(decay), grads)
    state, _ = run(scale_by_rms(decay, nu_dtype=dtype), grads)
    assert state.nu.dtype == dtype
    ratio = np.asarray(storage.decode(state.nu), float) / np.asarray(exact.nu)
    # A random walk about 1: that of each coordinate, and the mean of all.
    walk = np.sqrt(STEP[dtype])
    assert abs(ratio.mean() - 1) < 5 * walk / np.sqrt(512)
    assert ratio.std() < walk
    if decay == 0.999 and dtype == "bfloat16":

        def nearest(nu, g):
            return (decay * nu.astype(jnp.float32) + (1 - decay) * g * g).astype(
                nu.dtype
            ), None

        stalled, _ = jax.lax.scan(nearest, jnp.ones(512, dtype), grads)
        assert np.median(np.asarray(stalled, float) / np.asarray(exact.nu)) > 100


@pytest.mark.parametrize(("decay", "steps"), [(0.9, 300), (0.99, 1000), (0.999, 6000)])
def test_one_byte_makes_steps_of_the_right_mean_size_and_none_that_is_larger(
    decay, steps
):
    size = 2**14
    scales = 2.0 ** jnp.linspace(-10, 6, size)
    exact, ours = scale_by_rms(decay, 0.0), scale_by_rms(decay, 0.0, nu_dtype="uint8")
    # In the steady state from the start on.
    start = exact.init(scales)._replace(nu=scales**2)
    codes = ours.init(scales)._replace(nu=storage.encode(scales**2, "uint8"))

    def step(carry, number):
        state, narrow = carry
        g = scales * jax.random.normal(jax.random.key(number), (size,))
        fresh = decay * storage.decode(narrow.nu) + (1 - decay) * g * g
        expected, state = exact.update(g, state)
        found, narrow = ours.update(g, narrow)
        larger = jnp.abs(found) > 1.000001 * jnp.abs(g) / jnp.sqrt(fresh)
        sums = jnp.abs(expected).sum(), jnp.abs(found).sum(), larger.sum()
        return (state, narrow), sums

    scanned = partial(jax.lax.scan, step, (start, codes), jnp.arange(steps))
    expected, found, larger = (np.asarray(x, float) for x in jax.jit(scanned)()[1])
    late = slice(steps // 3, None)
    assert found[late].mean() / expected[late].mean() == pytest.approx(1, abs=0.003)
    assert larger.sum() == 0


def test_a_jump_of_the_scale_is_followed_as_fast_as_in_float32():
    scale = np.where(np.arange(900) % 600 < 300, 100.0, 1.0)[:, None]
    grads = jnp.asarray(np.random.default_rng(1).normal(size=(900, 400)) * scale, "f")
    exact, _ = run(scale_by_rms(0.99), grads)
    for dtype in NARROW:
        state, _ = run(scale_by_rms(0.99, nu_dtype=dtype), grads)
        ratio = np.asarray(storage.decode(state.nu), float) / np.asarray(exact.nu)
        assert 0.97 < np.median(ratio) < 1.03, dtype


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    dtype=st.sampled_from(NARROW),
    code=st.integers(0, 255),
    g=st.floats(-(2.0**127), 2.0**127, width=32),
    decay=st.sampled_from([0.0, 0.5, 0.9, 0.999]),
)
def test_no_update_exceeds_what_one_gradient_can_make(dtype, code, g, decay):
    tx = scale_by_rms(decay, eps=0.0, nu_dtype=dtype)
    state = tx.init(jnp.zeros(1))
    old = jnp.asarray([code * (257 if dtype == "uint16" else 1)]).astype(state.nu.dtype)
    hypothesis.assume(np.isfinite(storage.decode(old)).all())
    updates, state = tx.update(jnp.asarray([g], jnp.float32), state._replace(nu=old))
    assert abs(float(updates[0])) <= 1.0001 / np.sqrt(1 - decay)
    assert not np.isnan(storage.decode(state.nu)).any()


def test_beyond_its_ends_one_byte_makes_smaller_steps_never_larger():
    tx = partial(scale_by_rms, 0.9, eps=0.0)
    for scale in (1e-12, 1e-9, 1e-7, 1e5):
        grads = (
            jnp.asarray(np.random.default_rng(2).normal(size=(300, 50)), "f") * scale
        )
        _, exact = run(tx(), grads)
        state, updates = run(tx(nu_dtype="uint8"), grads)
        most = 1.001 / np.sqrt(0.1)
        assert np.abs(updates).max() <= most
        ratio = np.abs(updates[200:]).mean() / np.abs(exact[200:]).mean()
        if scale < 1e-7:
            assert ratio < 0.5
            np.testing.assert_array_equal(state.nu, 0)
        moved = tx(nu_dtype=storage.uint8(lowest=(scale * 1e-4) ** 2))
        _, inside = run(moved, grads)
        assert np.abs(inside[200:]).mean() / np.abs(
            exact[200:]
        ).mean() == pytest.approx(1, abs=0.1)


def test_zeros_nan_and_infinity_do_what_is_said():
    grads = jnp.asarray([0.0, 1.0, jnp.nan, jnp.inf, 1e25], jnp.float32)
    for dtype in NARROW:
        tx = scale_by_rms(0.9, nu_dtype=dtype, initial_scale=0.5)
        before = tx.init(grads)
        updates, state = tx.update(grads, before)
        assert updates[0] == 0
        assert np.isnan(updates[2])
        assert np.isfinite(updates[1])
        assert updates[4] >= 0
        nu = np.asarray(storage.decode(state.nu), float)
        if dtype == "uint8":  # no code is NaN: the old one stays
            assert nu[2] == 0.5
            assert nu[3] == nu[4] == storage.decode(jnp.uint8(255))
        else:
            assert np.isnan(nu[2])
        skipping = scale_by_rms(
            0.9, nu_dtype=dtype, initial_scale=0.5, skip_nonfinite=True
        )
        updates, skipped = skipping.update(grads, before)
        np.testing.assert_array_equal(skipped.nu[2:], before.nu[2:])
        np.testing.assert_array_equal(skipped.nu[:2], state.nu[:2])
        np.testing.assert_array_equal(updates[2:], 0)
        # And no gradients for long: down to the floor, and no NaN on the way.
        state, updates = run(tx, jnp.zeros((3000, 5)), before)
        np.testing.assert_array_equal(updates, 0)
        floor = {"uint8": 2.0**-44}.get(dtype, 1e-37)
        assert (np.asarray(storage.decode(state.nu), float) <= 2 * floor).all()


FULL = {
    "nu": {"nu_dtype": "uint8"},
    "two_bytes": {"nu_dtype": "uint16", "weight_decay": 0.01},
    "all": {
        "nu_dtype": "uint8",
        "centered": True,
        "mu_dtype": "bfloat16",
        "momentum": 0.9,
        "accumulator_dtype": "bfloat16",
        "skip_nonfinite": True,
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FULL)
def test_nothing_changes_shape_or_dtype_and_one_compilation_is_enough(name, dtype):
    with x64(dtype):
        tx = rmsprop(0.1, **FULL[name])
        params, grads = tree(dtype), tree(dtype, seed=1)
        init = tx.init(params)
        shapes = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
        assert abstract(init) == abstract(shapes)
        step = jax.jit(tx.update, donate_argnums=1)
        state = init
        for _ in range(3):
            before = abstract(state)
            updates, state = step(grads, state, params)
            assert abstract(state) == before
            assert abstract(updates) == abstract(grads)
        assert step._cache_size() == 1
        assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", FULL)
def test_the_same_bits_on_eight_devices_in_any_layout_and_after_a_resume(name):
    tx = rmsprop(0.1, 0.99, **FULL[name])
    params = {"w": jnp.ones((16, 8)), "b": jnp.ones(8)}
    rng = np.random.default_rng(3)
    grads = [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), "f"), params)
        for _ in range(6)
    ]

    @jax.jit
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        return state, updates

    def trained(params, grads, state=None):
        state = tx.init(params) if state is None else state
        for g in grads:
            state, updates = step(g, state, params)
        return state, updates

    control = jax.jit(lambda g, state: optax.scale_by_rms(0.99).update(g, state))
    control_state = optax.scale_by_rms(0.99).init(params)
    state, updates = expected = trained(params, grads)
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    for spec in (P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))):
        put = {
            "w": lambda x, s=spec: jax.device_put(x, NamedSharding(mesh, s)),
            "b": lambda x: jax.device_put(x, NamedSharding(mesh, P())),
        }
        placed = [{k: put[k](x) for k, x in t.items()} for t in (params, *grads)]
        found, found_updates = trained(placed[0], placed[1:])
        jax.tree.map(np.testing.assert_array_equal, found, state)
        # The last bit of XLA's root is another one in some layouts of jax 0.12, then
        # Optax's too.
        ours, theirs = (control(g, control_state)[0] for g in (placed[1], grads[0]))
        roots_agree = all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))
        tolerance = 0 if roots_agree else 1e-6
        close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        jax.tree.map(close, found_updates, updates)
    half, _ = trained(params, grads[:3])
    half = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), half)  # as from a file
    jax.tree.map(
        np.testing.assert_array_equal, trained(params, grads[3:], half), expected
    )


def test_leaves_and_steps_are_rounded_independently():
    noise = jax.random.normal(jax.random.key(0), (200, 1))
    grads = {"a": noise, "b": noise}
    tx = scale_by_rms(0.9, nu_dtype="uint8")
    state = tx.init(jax.tree.map(lambda g: g[0], grads))
    paths = {"a": [], "b": []}
    update = jax.jit(tx.update)
    for t in range(200):
        _, state = update(jax.tree.map(lambda g, t=t: g[t], grads), state)
        for name in paths:
            paths[name].append(int(state.nu[name][0]))
    differ = np.mean(np.asarray(paths["a"]) != np.asarray(paths["b"]))
    assert 0.2 < differ < 1


def test_centred_and_momentum_track_in_narrow_state():
    grads = np.random.default_rng(4).normal(0.5, 1, (2000, 300))
    grads = jnp.asarray(grads, jnp.float32)
    options = {"centered": True, "momentum": 0.9}
    _, exact = run(rmsprop(1.0, 0.99, **options), grads)
    for dtype, tolerance in (("bfloat16", 0.05), ("uint16", 0.05), ("uint8", 0.25)):
        tx = rmsprop(
            1.0, 0.99, nu_dtype=dtype, mu_dtype="bfloat16",
            accumulator_dtype="bfloat16", **options,
        )  # fmt: skip
        state, updates = run(tx, grads)
        assert state[0].mu.dtype == state[2].trace.dtype == jnp.bfloat16
        error = np.abs(updates[500:] - exact[500:]).mean() / np.abs(exact[500:]).mean()
        assert error < tolerance, dtype
        assert abs(np.asarray(state[0].mu, float).mean() - 0.5) < 0.05


@pytest.mark.promotion
def test_it_goes_where_the_float32_state_goes():
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    grads = jax.tree.map(jnp.ones_like, params)
    for make in (
        optax.inject_hyperparams(rmsprop),
        optax.inject_hyperparams(dialects.torch),
    ):
        name = "learning_rate" if make.__name__ == "rmsprop" else "lr"
        tx = make(**{name: 0.1}, nu_dtype=storage.uint8(lowest=1e-20))
        _, state = jax.jit(tx.update)(grads, tx.init(params), params)
        kept = rms_of(state)
        assert kept.nu["w"].dtype == jnp.uint8
    tx = optax.chain(optax.masked(rmsprop(0.1, nu_dtype="uint16"), {"w": True}))
    many = optax.MultiSteps(tx, 2).gradient_transformation()
    state = many.init(params)
    for _ in range(3):
        _, state = jax.jit(many.update)(grads, state, params)
    seeds = jax.vmap(lambda g: tx.update({"w": g}, tx.init(params), params)[0])(
        jnp.ones((3, 4, 3), jnp.bfloat16)
    )
    assert seeds["w"].shape == (3, 4, 3)
    gradient = jax.grad(
        lambda g: tx.update({"w": g}, tx.init(params), params)[0]["w"].sum()
    )(jnp.zeros((4, 3)))
    assert np.isfinite(gradient).all()


def test_narrow_state_is_converted_like_any_other(tmp_path):
    params = {"w": jnp.ones(50)}
    options = {"lr": 0.1, "centered": True, "nu_dtype": "uint16"}
    tx = dialects.torch(**options)
    state = tx.init(params)
    for seed in range(5):
        grads = {"w": jax.random.normal(jax.random.key(seed), (50,))}
        _, state = tx.update(grads, state, params)
    there = convert.export(
        state, params, "torch", options, names=["w"], rule={"w": "w"}
    )
    square = there["state"][0]["square_avg"]
    mean = np.asarray(state[0].mu["w"])
    np.testing.assert_allclose(
        square - mean**2, storage.decode(state[0].nu["w"]), rtol=1e-4, atol=1e-7
    )
    back = convert.load(there, params, names=["w"], nu_dtype="uint16", rule={"w": "w"})
    np.testing.assert_allclose(
        np.asarray(back.state[0].nu["w"], int),
        np.asarray(state[0].nu["w"], int),
        atol=1,
    )


def test_sizes_counts_every_byte():
    params = {"w": jnp.ones((10, 10)), "b": jnp.ones(10)}
    tx = rmsprop(0.1, nu_dtype="uint8", momentum=0.9, accumulator_dtype="bfloat16")
    sizes = storage.sizes(jax.eval_shape(tx.init, params))
    assert sizes == storage.sizes(tx.init(params))
    assert sum(sizes.values()) == 4 + 110 * (1 + 2) + 4
    assert sizes["[0].nu['w']"] == 100


BAD = {
    "a signed code": (
        lambda: scale_by_rms(centered=True, mu_dtype="uint8"),
        TypeError,
        "`mu_dtype` is uint8; .*has a sign.*use bfloat16",
    ),
    "a code for momentum": (
        lambda: rmsprop(0.1, momentum=0.9, accumulator_dtype=storage.uint8()),
        TypeError,
        "`accumulator_dtype` is uint8",
    ),
    "int8": (lambda: scale_by_rms(nu_dtype="int8"), TypeError, "`nu_dtype` is int8"),
    "float16": (lambda: scale_by_rms(nu_dtype="float16"), TypeError, "is float16"),
    "no dtype": (lambda: scale_by_rms(nu_dtype=3.5), TypeError, "must be a dtype"),
    "an end of zero": (lambda: storage.uint8(0.0), ValueError, "`lowest` must be"),
    "an end too high": (lambda: storage.uint8(2.0**65), ValueError, "`lowest` must be"),
    "an end that is NaN": (lambda: storage.uint8(float("nan")), ValueError, "`lowest`"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_place_is_refused(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
