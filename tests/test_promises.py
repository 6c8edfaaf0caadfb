"""What holds for every factory in every dtype."""

import pickle
from functools import partial

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import RmsState, ScaleByRmsState, decay, rmsprop, scale_by_rms
from table import DTYPES, FACTORIES, abstract, assert_close, train, tree, x64

RESOLUTION = {name: float(jnp.finfo(name).eps) for name in DTYPES}


ALL = [(name, dtype) for name in FACTORIES for dtype in DTYPES]
# Every factory, every dtype, and every dtype with everything at once and scheduled.
SOME = [
    (name, dtype)
    for name, dtype in ALL
    if dtype == "float32" or name in ("everything", "scheduled")
]
everywhere, representative = (
    pytest.mark.parametrize(("factory", "dtype"), cases, indirect=True)
    for cases in (ALL, SOME)
)


@pytest.fixture
def dtype(request):
    with x64(request.param):
        yield request.param


@pytest.fixture
def factory(request):
    return FACTORIES[request.param]


def compiled_step(tx, **options):
    @partial(jax.jit, **options)
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    return step


@everywhere
def test_init_takes_shapes_for_arrays(factory, dtype):
    tx, params = factory(0.1), tree(dtype)
    state = abstract(tx.init(params))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert abstract(tx.init(shapes)) == state
    assert abstract(jax.eval_shape(tx.init, params)) == state
    assert abstract(jax.eval_shape(tx.init, shapes)) == state


@everywhere
def test_state_and_updates_keep_their_type(factory, dtype):
    """In one compilation of the donated step."""
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    state, traced = tx.init(params), []
    kinds = abstract(state)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        traced.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    for _ in range(4):
        old = state
        params, state, updates = step(params, state, grads)
        assert abstract(state) == kinds
        assert jax.tree.structure(state) == jax.tree.structure(old)
        assert abstract(updates) == abstract(grads)
        assert abstract(params) == abstract(grads)
        assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert len(traced) == 1
    assert step._cache_size() == 1


@pytest.mark.promotion
@pytest.mark.parametrize("factory", FACTORIES, indirect=True)
@pytest.mark.parametrize(
    ("dtype", "other"),
    [("bfloat16", "float32"), ("float32", "bfloat16"), ("float64", "float16")],
    indirect=["dtype"],
)
def test_also_for_gradients_of_another_dtype(factory, dtype, other):
    tx, params, grads = factory(0.1), tree(dtype), tree(other, seed=1)
    state = tx.init(params)
    updates, new = jax.eval_shape(tx.update, grads, state, params)
    wide = jax.tree.map(lambda p, g: jnp.zeros(p.shape, p.dtype) + g, params, grads)
    assert abstract(updates) == abstract(wide)
    assert abstract(new) == abstract(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    if factory is FACTORIES["everything"]:
        assert abstract(train(tx, params, grads)) == abstract((params, state))


@representative
def test_scan_and_loop_agree(factory, dtype):
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    scanned = train(tx, params, grads)
    state, step = tx.init(params), compiled_step(tx)
    for _ in range(3):
        params, state, _ = step(params, state, grads)
    assert_close((params, state), scanned, 16 * RESOLUTION[dtype])


@representative
def test_vmap_over_seeds_is_each_seed(factory, dtype):
    tx = factory(0.1)
    runs = [
        train(tx, tree(dtype, seed), tree(dtype, seed + 9, 10.0)) for seed in range(3)
    ]
    stacked = [
        jax.tree.map(lambda *x: jnp.stack(x), *(tree(dtype, s, c) for s in seeds))
        for seeds, c in ((range(3), 1.0), (range(9, 12), 10.0))
    ]
    together = jax.vmap(partial(train, tx))(*stacked)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    assert_close(together, expected, 8 * RESOLUTION[dtype])


@representative
def test_vmap_over_hyperparameters_is_each_value(factory, dtype):
    params, grads = tree(dtype), tree(dtype, seed=1)
    values = (
        np.asarray([0.1, 0.01, 1.0], np.float32),
        np.asarray([0.9, 0.5, 0.0], np.float32),
        np.asarray([1e-8, 1e-2, 1.0], np.float32),
    )
    together = jax.vmap(lambda *value: train(factory(*value), params, grads))(
        *map(jnp.asarray, values)
    )
    for i, value in enumerate(zip(*values, strict=True)):
        alone = train(factory(*value), params, grads)
        one = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(one, alone, max(1e-6, 4 * RESOLUTION[dtype]))


@representative
def test_injected_hyperparameters_change_without_compiling_again(factory, dtype):
    params, grads = tree(dtype), tree(dtype, seed=1)
    tx = optax.inject_hyperparams(lambda rate, rho: factory(rate, rho))(
        rate=jnp.float32(0.1), rho=jnp.float32(0.9)
    )
    step, state = compiled_step(tx), tx.init(params)
    kinds = abstract(state)
    for rate, rho in ((0.1, 0.9), (0.01, 0.5), (0.0, 0.0)):
        like = state.hyperparams
        state.hyperparams["rate"] = jnp.asarray(rate, like["rate"].dtype)
        state.hyperparams["rho"] = jnp.asarray(rho, like["rho"].dtype)
        _, state, updates = step(params, state, grads)
        assert abstract(state) == kinds
        assert abstract(updates) == abstract(grads)
    assert step._cache_size() == 1


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@representative
def test_sharding_stays_and_changes_no_number(factory, dtype, kind):
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    expected = compiled_step(tx)(params, tx.init(params), grads)
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    # As the outputs are written, or parameters alone would compile the step anew.
    rows, vector = {
        "Auto": (P("data"), P()),
        "Explicit": (P("data", None), P(None)),
    }[kind]
    spec = {"w": rows, "b": vector, "s": P()}

    def put(x):
        return {k: jax.device_put(x[k], NamedSharding(mesh, spec[k])) for k in x}

    with jax.set_mesh(mesh):
        params, grads = put(params), put(grads)
        state, step = tx.init(params), compiled_step(tx)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        one, two = step(params, state, grads), None
        for _ in range(2):
            params, state, updates = step(params, state, grads)
            two = two or (params, state, updates)
            same = jax.tree.map(
                lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings
            )
            assert all(jax.tree.leaves(same))
            assert updates["w"].sharding.is_equivalent_to(params["w"].sharding, 2)
        assert step._cache_size() == 1
        text = step.lower(params, state, grads).compile().as_text()
    means = {FACTORIES["timm"]: {"all-reduce"}}.get(factory, set())  # caution's
    collectives = {"all-reduce", "all-gather", "all-to-all"} - means
    assert not any(operation in text for operation in collectives)
    for mine, alone in zip(
        jax.tree.leaves(one), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(alone))


@representative
def test_shard_map_changes_no_number(factory, dtype):
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = {"w": P("data"), "b": P(), "s": P()}

    def run(params, grads):
        return train(tx, params, grads)[0]

    sharded = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    )(params, grads)
    assert_close(sharded, run(params, grads), 4 * RESOLUTION[dtype])


@pytest.mark.parametrize("factory", ["everything", "scheduled"], indirect=True)
def test_pmap_keeps_replicas_equal(factory):
    params, grads = tree("float32"), tree("float32", seed=1)
    replicated = jax.tree.map(lambda x: jnp.stack([x] * 8), (params, grads))
    run = jax.pmap(lambda p, g: train(factory(0.1), p, g)[0])(*replicated)
    expected = train(factory(0.1), params, grads)[0]
    for device in range(8):
        one = jax.tree.map(lambda x, i=device: np.asarray(x)[i], run)
        assert_close(one, expected, 1e-6)


@representative
def test_gradient_through_the_update_is_finite(factory, dtype):
    tx = factory(1e-6)  # u' = 1 / eps is too large for float16
    params, direction = ({"w": tree(dtype, seed)["w"]} for seed in range(2))

    def total(size, zero):
        grads = jax.tree.map(lambda x: x * size + zero, direction)
        updates, state = tx.update(grads, tx.init(params), params)
        updates, _ = tx.update(grads, state, params)
        return sum(jnp.sum(jnp.abs(u)) for u in jax.tree.leaves(updates)).real

    for size in (1.0, 0.0):  # all gradients zero: the hardest
        size, zero = jnp.asarray(size, dtype), jnp.asarray(0.0, dtype)
        gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(size, zero)
        assert np.isfinite(np.asarray(gradient, complex)).all()


@everywhere
def test_trees_of_any_shape(factory, dtype):
    tx = factory(0.1)
    one, none = jnp.ones((), dtype), jnp.ones((0, 3), dtype)
    for params in (
        {"w": one, "b": one, "s": one, "none": None},
        {"w": none, "b": none, "s": one},
        {"w": [one, (none, None)], "b": {}, "s": ()},
        {"w": None, "b": None, "s": None},
    ):
        state = tx.init(params)
        updates, new = jax.eval_shape(tx.update, params, state, params)
        assert abstract(updates) == abstract(params)
        assert abstract(new) == abstract(state)
        if dtype == "float32":
            after = train(tx, params, params)
            assert abstract(after) == abstract((params, state))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


@representative
def test_a_bare_array_or_scalar_and_no_parameter_at_all(factory, dtype):
    tx = factory(0.1)
    for params in (jnp.ones((), dtype), jnp.ones(3, dtype), {}, ()):
        state = tx.init(params)
        updates, new = jax.jit(tx.update)(params, state, params)
        assert abstract(updates) == abstract(params)
        assert abstract(new) == abstract(state)


@representative
def test_no_gradient_leaves_the_parameter_alone(factory, dtype):
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    step = compiled_step(tx)
    _, state, _ = step(params, tx.init(params), grads)
    everything = step(params, state, grads)
    updates, new = jax.jit(tx.update)({**grads, "b": None}, state, params)
    assert updates["b"] is None
    assert abstract(new) == abstract(state)
    for name in ("w", "s"):
        assert_close(updates[name], everything[2][name], 2 * RESOLUTION[dtype])
    for name in ("nu", "mu", "trace"):
        found = optax.tree_utils.tree_get_all_with_path(new, name)
        for path, accumulator in found:
            ((_, before),) = (
                pair
                for pair in optax.tree_utils.tree_get_all_with_path(state, name)
                if pair[0] == path
            )
            if accumulator is not None:
                assert_close(accumulator["b"], before["b"])
    expected = optax.tree_utils.tree_get(everything[1], "nu")
    assert_close(optax.tree_utils.tree_get(new, "nu")["w"], expected["w"], 1e-6)


@representative
def test_state_pickles_and_transformations_hash(factory, dtype):
    tx, params, grads = factory(0.1), tree(dtype), tree(dtype, seed=1)
    _, state = train(tx, params, grads)
    assert_close(pickle.loads(pickle.dumps(state)), state)
    assert hash(tx) == hash(tx)
    assert tx == tx

    @partial(jax.jit, static_argnums=0)
    def update(tx, grads, state, params):
        return tx.update(grads, state, params)

    expected = jax.jit(tx.update)(grads, state, params)
    assert_close(update(tx, grads, state, params), expected)
    again = cloudpickle.loads(cloudpickle.dumps(tx))
    assert_close(jax.jit(again.update)(grads, state, params), expected)


@pytest.mark.parametrize("meshed", [False, True])
def test_init_inside_a_trace_takes_parameters_from_outside(meshed):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = NamedSharding(mesh, P())
    params = jax.device_put(tree("float32"), whole if meshed else jax.devices()[0])
    tx = rmsprop(lambda count: 0.1, centered=True, momentum=0.9)
    expected = tx.init(params)
    assert_close(jax.jit(lambda: tx.init(params))(), expected)
    assert abstract(jax.eval_shape(lambda: tx.init(params))) == abstract(expected)

    def first(scale):
        tx = scale_by_rms(initial_scale=scale)
        return tx.update(params, tx.init(params))[0]["s"]

    scales = jnp.arange(1.0, 4.0)
    assert np.isfinite(jax.vmap(jax.grad(first))(scales)).all()


def test_parameters_on_several_devices_each_train_where_they_are():
    devices = jax.devices()
    meshes = [
        NamedSharding(jax.make_mesh((4,), ("data",), devices=part), P())
        for part in (devices[:4], devices[4:])
    ]
    tx = rmsprop(optax.exponential_decay(0.1, 10, 0.9), momentum=0.9)
    for places in (devices[:2], meshes):
        params = {n: jax.device_put(jnp.ones(2), places[i]) for i, n in enumerate("ab")}
        updates, state = tx.update(params, tx.init(params), params)
        for n, p in params.items():
            assert updates[n].devices() == state[0].nu[n].devices() == p.devices()


def test_scalars_can_be_donated_with_their_hyperparameters():
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    tx = optax.inject_hyperparams(rmsprop)(0.1, initial_scale=1.0)
    step = compiled_step(tx, donate_argnums=(0, 1))
    state, grads = tx.init(params), tree("float32")["s"]
    for _ in range(2):
        params, state, _ = step(params, state, {"a": grads, "b": grads})
    assert np.isfinite(params["a"])


OURS = {  # options that Optax does not have, or in which our state means another thing
    "schedule": {"decay": lambda count: 0.9},
    "bias_correction": {"bias_correction": True},
    "centered": {"centered": True},
    "nu_dtype": {"nu_dtype": "bfloat16"},
    "accumulator_dtype": {"momentum": 0.9, "accumulator_dtype": "bfloat16"},
}
OPTAX_S = {
    "plain": {},
    "learning_rate": {"learning_rate": lambda count: 0.1},
    "momentum": {"momentum": 0.9},
    "initial_scale": {"initial_scale": 1.0, "eps_in_sqrt": False},
    "skip_nonfinite": {"skip_nonfinite": True},
    "constant": {"decay": decay.constant(0.9)},
    "dtypes": {"nu_dtype": "float32", "momentum": 0.9, "accumulator_dtype": "float32"},
}


@pytest.mark.parametrize("options", OPTAX_S.values(), ids=OPTAX_S)
def test_the_state_is_optax_s_own_where_the_options_are(options):
    theirs = {k: v for k, v in options.items() if k in ("learning_rate", "momentum")}
    stock = optax.rmsprop(**{"learning_rate": 0.1, **theirs})
    ours = rmsprop(**{"learning_rate": 0.1, **options})
    params = tree("float32")
    states = stock.init(params), ours.init(params)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert type(states[1][0]) is ScaleByRmsState is optax.ScaleByRmsState
    _, state = ours.update(params, states[0], params)  # either goes on with the other's
    stock.update(params, state, params)
    assert abstract(state) == abstract(ours.update(params, state, params)[1])


@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
def test_the_state_is_ours_where_optax_s_does_not_suffice(options):
    state = rmsprop(**{"learning_rate": 0.1, **options}).init(tree("float32"))
    assert type(state[0]) is RmsState
    assert RmsState._fields == ("count", "nu", "mu", "lowest")


def test_parameters_on_one_chosen_device_keep_the_state_there():
    device = jax.devices()[3]
    params = jax.device_put(tree("float32"), device)
    tx = rmsprop(lambda count: 0.1, momentum=0.9)
    step, state = compiled_step(tx), tx.init(params)
    for _ in range(3):
        assert all(x.devices() == {device} for x in jax.tree.leaves(state))
        params, state, _ = step(params, state, params)
