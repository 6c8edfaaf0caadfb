"""Drop-in: the same calls as Optax, the same numbers, and inside its wrappers."""

import inspect
import itertools
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from optax import tree_utils as otu

from rmsprop_jax import RmsState, decay, dialects, rmsprop, scale_by_rms
from table import DTYPES, FACTORIES, abstract, assert_close, train, tree, x64


@pytest.mark.parametrize("ours", [rmsprop, scale_by_rms, dialects.optax])
def test_signature_begins_with_optax_s(ours):
    theirs = getattr(optax, ours.__name__.replace("optax", "rmsprop"))
    theirs = inspect.signature(theirs)
    mine = inspect.signature(ours)
    parameters = list(mine.parameters.values())
    assert parameters[: len(theirs.parameters)] == list(theirs.parameters.values())
    rest = parameters[len(theirs.parameters) :]
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)
    assert mine.return_annotation == theirs.return_annotation
    assert ours.__annotations__ == {
        **{p.name: p.annotation for p in parameters},
        "return": mine.return_annotation,
    }


def test_every_annotation_is_an_object():
    returned = optax.GradientTransformationExtraArgs
    for make in (rmsprop, scale_by_rms, *dialects.DIALECTS.values()):
        assert not any(isinstance(x, str) for x in make.__annotations__.values())
        assert make is scale_by_rms or make.__annotations__["return"] is returned


def test_binding_is_plain_and_starts_no_backend():
    program = """
import inspect
from jax._src import xla_bridge
from rmsprop_jax import dialects, rmsprop, scale_by_rms

def mask(params):
    return params

for make, given in (
    (rmsprop, {"learning_rate": 1e-3, "weight_decay_mask": mask}),
    (scale_by_rms, {"decay": 0.99, "nu_dtype": float}),
    (dialects.torch, {"lr": 1e-3}),
):
    signature = inspect.signature(make)
    for bind in (signature.bind, signature.replace().bind, signature.bind_partial):
        assert bind(**given).arguments == given
assert inspect.signature(rmsprop).bind(1e-3).arguments == {"learning_rate": 1e-3}
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_injection_refuses_a_wrong_number_at_construction():
    rebound = partial(rmsprop, eps_in_sqrt=False)
    for make in (rmsprop, rebound, dialects.optax):
        for wrong in ({"decay": 1.0}, {"eps": -1.0}):
            (name,) = wrong
            with pytest.raises(ValueError, match=f"`{name}`"):
                optax.inject_hyperparams(make)(0.1, **wrong)
    without_a_rate = optax.inject_hyperparams(partial(rmsprop, 0.5))
    assert without_a_rate(decay=0.5).init(jnp.ones(1)).hyperparams["decay"] == 0.5


SCHEDULE = optax.exponential_decay(0.1, 2, 0.5)
CALLS = [
    (args, dict(zip(names, options, strict=True)))
    for names, values in (
        (
            ("eps_in_sqrt", "momentum", "nesterov", "centered"),
            ((True, False), (None, 0.9), (False, True), (False, True)),
        ),
        (("bias_correction", "eps_in_sqrt"), ((True,), (True, False))),
    )
    for options in itertools.product(*values)
    for args in ((0.1,), (SCHEDULE, 0.99, 1e-4, 0.5), (None, 0.5))
    if not ("nesterov" in names and options[2] and options[1] is None)
    and not ("bias_correction" in names and len(args) > 3)  # wrong in Optax
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_numbers_are_optax_s(number):
    args, options = CALLS[number]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, grads = tree("float64"), tree("float64", seed=1)
        ours, _ = train(rmsprop(*args, **options), params, grads, 5)
        theirs, _ = train(optax.rmsprop(*args, **options), params, grads, 5)
    assert_close(ours, theirs, 1e-12)


@pytest.mark.promotion
def test_scale_by_rms_is_optax_s():
    grads = tree("float32")
    for call in ((), (0.99, 1e-3, 1.0, False), (0.9, 1e-8, 0.0, True, True)):
        ours, theirs = scale_by_rms(*call), optax.scale_by_rms(*call)
        a, b = ours.init(grads), theirs.init(grads)
        for _ in range(3):
            u, a = ours.update(grads, a)
            v, b = theirs.update(grads, b)
            assert_close(u, v, 2e-6)


@pytest.mark.optimized
@pytest.mark.promotion
@pytest.mark.parametrize(("rho", "theirs_off"), [(0.999, 5e-6), (0.9999, 5e-5)])
def test_bias_correction_is_that_of_exact_arithmetic(rho, theirs_off):
    """Why `test_rms_match_adam` and `test_schedule_free_adamw` of Optax fail for ours.

    They compare with Optax's Adam to 1e-6, and so with the error of 1 - rho^t there.
    """
    path = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    nu, exact, errors = 0.0, [], []
    for t, g in enumerate(path.astype(np.float64), 1):
        nu = rho * nu + (1 - rho) * g**2
        exact.append(g / (np.sqrt(nu / (1 - rho**t)) + 1e-8))
    for make in (scale_by_rms, optax.scale_by_rms):
        tx = make(rho, eps_in_sqrt=False, bias_correction=True)
        step = jax.jit(lambda state, g, tx=tx: tx.update(g, state)[::-1])
        _, updates = jax.lax.scan(step, tx.init(path[0]), path)
        errors.append(np.abs(np.float64(updates) / np.asarray(exact) - 1).max())
    ours, theirs = errors
    assert ours < 5e-7
    assert theirs > theirs_off


def test_scale_by_rms_centered_is_optax_s_scale_by_stddev():
    params, grads = tree("float32"), tree("float32", seed=1)
    theirs = optax.chain(optax.scale_by_stddev(0.9, 1e-3), optax.scale(-0.1))
    ours = optax.chain(scale_by_rms(0.9, 1e-3, centered=True), optax.scale(-0.1))
    assert_close(train(ours, params, grads)[0], train(theirs, params, grads)[0], 4e-6)


def lookahead(tx):
    """`optax.lookahead` between two plain trees."""
    inner = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)

    def init(params):
        return inner.init(optax.LookaheadParams.init_synced(params))

    def update(updates, state, params=None):
        both = optax.LookaheadParams.init_synced(params)
        updates, state = inner.update(updates, state, both)
        return updates.fast, state

    return optax.GradientTransformation(init, update)


MASK = {"w": True, "b": False, "s": True}
WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, MASK),
    "partition": lambda tx: optax.partition(
        {"ours": tx, "frozen": optax.set_to_zero()},
        {"w": "ours", "b": "frozen", "s": "ours"},
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "lookahead": lookahead,
    "schedule_free": lambda tx: contrib.schedule_free(tx, 0.1, b1=0.9),
    "flatten": optax.flatten,
}


@pytest.mark.promotion
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("rmsprop", "float32"), *(("everything", dtype) for dtype in DTYPES)],
)
def test_inside_a_wrapper(name, wrapper, dtype):
    if dtype == "complex64" and wrapper in ("chain", "named_chain", "MultiSteps"):
        pytest.skip("this one of Optax's is for real gradients")
    with x64(dtype):
        tx, params = FACTORIES[name](0.1), tree(dtype)
        wrapped = WRAPPERS[wrapper](tx)
        grads = tree(dtype, seed=1, scale=0.1)
        start = abstract(wrapped.init(params))
        after, state = train(wrapped, params, grads, 4)
        assert abstract(state) == start
        assert abstract(after) == abstract(params)
        plain, _ = train(tx, params, grads, 4)
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, params)
    if wrapper in ("chain", "named_chain", "apply_if_finite", "flatten"):
        scale = 1.0 if wrapper != "chain" else 0.1  # eps weighs more after clipping
        close = jax.tree.map(lambda a, b: np.allclose(a, b, 0.05 / scale), after, plain)
        assert all(jax.tree.leaves(close))
    assert moved["w"]
    assert moved["b"] == (wrapper not in ("masked", "partition") or wrapper == "masked")


def test_masked_leaves_keep_their_gradients_and_have_no_state():
    tx, grads = optax.masked(rmsprop(0.1), MASK), tree("float32")
    updates, state = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    assert len(jax.tree.leaves(state.inner_state[0].nu)) == 2


@pytest.mark.promotion
def test_multisteps_is_the_mean_gradient():
    params, grads = tree("float32"), [tree("float32", seed) for seed in (1, 2)]
    multi = optax.MultiSteps(rmsprop(0.1, momentum=0.9), 2)
    state, after = multi.init(params), params
    for g in grads:
        updates, state = multi.update(g, state, after)
        after = optax.apply_updates(after, updates)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    expected, _ = train(rmsprop(0.1, momentum=0.9), params, mean, 1)
    assert_close(after, expected, 1e-5)


@pytest.mark.parametrize("hyperparam_dtype", [None, jnp.float32])
def test_injected_decay_stays_what_it_is_under_bfloat16(hyperparam_dtype):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = optax.inject_hyperparams(rmsprop, hyperparam_dtype=hyperparam_dtype)(
        0.1, decay=0.999, nu_dtype=jnp.float32
    )
    state = tx.init(params)
    start = abstract(state)
    for count in range(1, 4):
        _, state = jax.jit(tx.update)(params, state, params)
        nu = otu.tree_get(state, "nu")["w"]
        np.testing.assert_allclose(nu, 1 - 0.999**count, rtol=1e-4)
    assert abstract(state) == start
    assert state.hyperparams["decay"] == jnp.float32(0.999)
    assert state.hyperparams["eps"] == jnp.float32(1e-8)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 0.999,  # a Python number, which Optax casts to bfloat16
        lambda count: 0.999 + 0.0 * count,  # weakly typed, likewise
        optax.constant_schedule(0.999),
    ],
)
def test_injected_schedules_keep_their_values_too(schedule):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = optax.inject_hyperparams(scale_by_rms)(decay=schedule)
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(params, tx.init(params))
    np.testing.assert_allclose(otu.tree_get(state, "nu")["w"], 0.001, rtol=1e-4)


class Halving(optax.schedules.StatefulSchedule):
    """A schedule with a state and an argument of its own."""

    def init(self):
        return jnp.float32(0.4)

    def update(self, state, value=1.0, **extra_args):
        return state * value

    def __call__(self, state, **extra_args):
        return state


def test_injected_stateful_schedules_keep_their_state():
    params = {"w": jnp.ones(3)}
    tx = optax.inject_hyperparams(rmsprop)(learning_rate=Halving())
    state = tx.init(params)
    for rate in (0.4, 0.2, 0.1):
        _, state = tx.update(params, state, params, value=jnp.float32(0.5))
        assert state.hyperparams["learning_rate"] == jnp.float32(rate)


def test_an_injected_mask_is_a_mask_and_no_schedule():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optax.inject_hyperparams(rmsprop)(
        0.1,
        weight_decay=0.5,
        weight_decay_mode="independent",
        weight_decay_mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert_close(updates, {"w": jnp.full((2, 2), -0.5), "b": jnp.zeros(2)})


def test_a_mask_sees_the_parameters_as_they_are():
    params = {"k": jnp.ones(2, jnp.bfloat16), "n": jnp.ones(2), "off": jnp.ones(2)}
    seen = []

    def narrow(params):
        seen.append(jax.tree.map(lambda x: x.dtype.name, params))
        return jax.tree.map(lambda x: x.dtype == jnp.bfloat16, params)

    tx = rmsprop(
        0.1,
        weight_decay=0.5,
        weight_decay_mode="independent",
        weight_decay_mask=narrow,
    )
    grads = {**jax.tree.map(jnp.zeros_like, params), "off": None}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert all(dtypes == seen[0] for dtypes in seen)
    assert_close(updates["k"], jnp.full(2, -0.5, jnp.bfloat16))
    assert_close(updates["n"], jnp.zeros(2))
    assert updates["off"] is None


def test_no_weight_decay_may_have_a_mask():
    for nothing in (0, 0.0, np.float64(0)):
        tx = rmsprop(0.1, weight_decay=nothing, weight_decay_mask={"w": True})
        assert abstract(tx.init(jnp.ones(2))) == abstract(
            rmsprop(0.1).init(jnp.ones(2))
        )


def test_decoupled_rate_and_decay_may_have_any_dtype():
    grads = tree("float32")
    for rate, weight in (
        (jnp.bfloat16(0.5), jnp.float32(0.25)),
        (np.float64(0.5), jnp.bfloat16(0.25)),
        (0.5, np.float16(0.25)),
    ):
        tx = rmsprop(rate, weight_decay=weight, weight_decay_mode="decoupled")
        plain = rmsprop(0.5, weight_decay=0.25, weight_decay_mode="decoupled")
        assert_close(train(tx, grads, grads), train(plain, grads, grads), 1e-6)


def test_injected_float64_hyperparameters_are_not_rounded():
    with jax.enable_x64(True):
        params, grads = tree("float64"), tree("float64", seed=1)
        injected = optax.inject_hyperparams(rmsprop)(0.1, decay=0.9, momentum=0.9)
        plain = rmsprop(0.1, 0.9, momentum=0.9)
        after = train(injected, params, grads)[0]
        assert_close(after, train(plain, params, grads)[0], 1e-14)
        narrow = train(injected, tree("bfloat16"), tree("bfloat16"))[0]
    assert {x.dtype.name for x in jax.tree.leaves(narrow)} == {"bfloat16"}


def test_tree_utils_find_set_and_map():
    tx, params = rmsprop(0.1, centered=True, momentum=0.9), tree("float32")
    _, state = train(tx, params, params)
    assert isinstance(otu.tree_get(state, "RmsState"), RmsState)
    assert otu.tree_get(state, "count") == 3
    assert abstract(otu.tree_get(state, "nu")) == abstract(params)
    zeroed = otu.tree_set(state, nu=otu.tree_zeros_like(params), count=jnp.int32(0))
    assert otu.tree_get(zeroed, "count") == 0
    assert not np.asarray(otu.tree_get(zeroed, "nu")["w"]).any()
    assert abstract(tx.update(params, zeroed, params)[1]) == abstract(state)
    names = {"w": "W", "b": "B", "s": "S"}
    mapped = otu.tree_map_params(
        tx,
        lambda _, name: name,
        state,
        names,
        transform_non_params=lambda _: "scalar",
    )
    assert mapped[0] == RmsState("scalar", names, names)
    assert mapped[2].trace == names


def test_decoupled_and_independent_decay_is_outside_the_average():
    params, grads = tree("float32"), tree("float32", seed=1)
    plain, state = train(rmsprop(0.1), params, grads, 1)
    for mode, rate in (("decoupled", 0.1 * 0.3), ("independent", 0.3)):
        tx = rmsprop(0.1, weight_decay=0.3, weight_decay_mode=mode)
        after, decayed = train(tx, params, grads, 1)
        expected = jax.tree.map(lambda a, p, r=rate: a - r * p, plain, params)
        assert_close(after, expected, 1e-5)
        assert_close(decayed[0], state[0])


def test_coupled_decay_is_the_gradient_of_half_the_squared_norm():
    params, grads = tree("float32"), tree("float32", seed=1)
    l2 = jax.tree.map(lambda g, p: g + 0.3 * p, grads, params)
    expected = train(rmsprop(0.1, momentum=0.9), params, l2, 1)[0]
    after = train(rmsprop(0.1, momentum=0.9, weight_decay=0.3), params, grads, 1)[0]
    assert_close(after, expected, 1e-5)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "independent"])
@pytest.mark.parametrize("mask", [MASK, lambda params: {**MASK}])
def test_masked_weight_decay_leaves_the_rest_alone(mode, mask):
    params, grads = tree("float32"), tree("float32", seed=1)
    options = {"weight_decay": 0.3, "weight_decay_mode": mode}
    masked = train(rmsprop(0.1, weight_decay_mask=mask, **options), params, grads)[0]
    plain = train(rmsprop(0.1), params, grads)[0]
    full = train(rmsprop(0.1, **options), params, grads)[0]
    for name, decays in MASK.items():
        assert_close(masked[name], (full if decays else plain)[name], 1e-6)
        assert not np.allclose(full[name], plain[name])


def test_scheduled_weight_decay_and_rate_multiply_step_by_step():
    params, grads = tree("float32"), tree("float32", seed=1)
    rates, decays = jnp.asarray([0.1, 0.01, 0.2]), jnp.asarray([0.3, 0.5, 0.0])
    tx = rmsprop(
        lambda count: rates[count],
        weight_decay=lambda count: decays[count],
        weight_decay_mode="decoupled",
    )
    after, _ = train(tx, params, grads, 3)
    expected, state = params, scale_by_rms().init(params)
    for rate, weight in zip(rates, decays, strict=True):
        u, state = scale_by_rms().update(grads, state)
        expected = jax.tree.map(
            lambda p, u, r=rate, w=weight: p - r * u - r * w * p, expected, u
        )
    assert_close(after, expected, 1e-5)


def test_where_the_rate_stands_shows_when_it_changes():
    grads, params = tree("float32", seed=1), tree("float32")
    rates = jnp.asarray([1.0, 0.1, 0.1])

    def schedule(count):
        return rates[count]

    def by_hand(inside):
        p, state, b = params, scale_by_rms().init(params), otu.tree_zeros_like(params)
        for rate in rates:
            u, state = scale_by_rms().update(grads, state)
            gain = rate if inside else 1.0
            b = jax.tree.map(lambda b, u, a=gain: 0.9 * b + a * u, b, u)
            step = 1.0 if inside else rate
            p = jax.tree.map(lambda p, b, a=step: p - a * b, p, b)
        return p

    for inside in (True, False):
        tx = rmsprop(schedule, momentum=0.9, learning_rate_in_momentum=inside)
        assert_close(train(tx, params, grads, 3)[0], by_hand(inside), 1e-5)
    assert not np.allclose(by_hand(True)["w"], by_hand(False)["w"])


def test_extra_arguments_for_other_links_of_a_chain_are_let_through():
    grads = tree("float32")
    for tx in (rmsprop(0.1), optax.chain(scale_by_rms(), rmsprop(0.1))):
        assert isinstance(tx, optax.GradientTransformationExtraArgs)
        updates, _ = tx.update(grads, tx.init(grads), grads, value=1.0)
        assert abstract(updates) == abstract(grads)


@pytest.mark.parametrize("mode", ["coupled", "decoupled", "independent"])
def test_weight_decay_shrinks_also_where_we_ascend(mode):
    params = tree("float32")
    grads = jax.tree.map(lambda p: jnp.zeros_like(p), params)
    tx = rmsprop(0.01, maximize=True, weight_decay=0.1, weight_decay_mode=mode)
    after, _ = train(tx, params, grads)
    for name in params:
        assert (np.abs(after[name]) < np.abs(params[name])).all()


def test_nesterov_with_the_rate_outside_is_the_rule_by_hand():
    params, grads = tree("float32"), tree("float32", seed=1)
    tx = rmsprop(0.1, momentum=0.9, nesterov=True, learning_rate_in_momentum=False)
    after, _ = train(tx, params, grads, 3)
    b, state = otu.tree_zeros_like(params), scale_by_rms().init(params)
    for _ in range(3):
        u, state = scale_by_rms().update(grads, state)
        b = jax.tree.map(lambda b, u: 0.9 * b + u, b, u)
        params = jax.tree.map(lambda p, b, u: p - 0.1 * (0.9 * b + u), params, b, u)
    assert_close(after, params, 1e-5)


def test_maximize_ascends():
    params, grads = tree("float32"), tree("float32", seed=1)
    up = train(rmsprop(0.1, maximize=True), params, grads)[0]
    down = train(rmsprop(0.1), params, jax.tree.map(jnp.negative, grads))[0]
    assert_close(up, down)


def test_bias_correction_is_short_for_a_schedule():
    params, grads = tree("float32"), tree("float32", seed=1)
    short = train(rmsprop(0.1, 0.99, bias_correction=True), params, grads)
    long = train(rmsprop(0.1, decay.debiased(0.99)), params, grads)
    assert_close(short, long)
