"""The state of any transformation follows the parameters, on meshes of either kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmsprop_jax import rmsprop, rounding, scale_by_rms, sharding

P = PartitionSpec
SHAPES = {"kernel": (16, 8), "bias": (8,), "scale": (), "odd": (3, 5)}
SPECS = {"kernel": P("data", "model"), "bias": P("model"), "scale": P(), "odd": P()}
STORAGES = ("float32", "bfloat16", "uint16", "uint8")

# Any Optax state, ours or not.
TRANSFORMATIONS = {
    **{f"ours-{nu}": rmsprop(0.1, nu_dtype=nu) for nu in STORAGES},
    "centered": rmsprop(0.1, centered=True, momentum=0.9),
    "adam": optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "masked": optax.masked(rmsprop(0.1), {"bias": True, "scale": False,
                                         "kernel": True, "odd": False}),
    "partition": optax.partition(
        {"a": rmsprop(0.1), "b": optax.adam(0.1)},
        {"bias": "a", "scale": "b", "kernel": "a", "odd": "b"},
    ),
    "multi-steps": optax.MultiSteps(rmsprop(0.1), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(rmsprop)(0.1, momentum=0.9),
    "rounded": optax.chain(rmsprop(0.1, nu_dtype="uint8"), rounding.round_params()),
    "remainder": rmsprop(0.1, nu_dtype="uint8", round_params="remainder"),
}  # fmt: skip


def mesh_of(*sizes, kind=AxisType.Auto, names=("data", "model")):
    names = names[: len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, (kind,) * len(sizes), devices=devices)


def params_on(mesh, specs=SPECS, dtype=jnp.float32):
    def make(shape, spec):
        values = jax.random.normal(jax.random.key(len(shape)), shape, dtype)
        return jax.device_put(values, NamedSharding(mesh, spec))

    return jax.tree.map(make, SHAPES, specs, is_leaf=lambda x: isinstance(x, tuple))


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return mesh_of(4, 2, kind=request.param)


def check_placed(state, tx, params):
    """What has a parameter's name and shape has its sharding; all else is whole."""
    replicated = NamedSharding(params["scale"].sharding.mesh, P())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    plain = jax.tree.leaves(jax.eval_shape(tx.init, params))
    for (path, leaf), like in zip(leaves, plain, strict=True):
        name = jax.tree_util.keystr(path)
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype), name
        owners = [p for key, p in params.items() if name.endswith(f"['{key}']")]
        same = owners and owners[0].shape == leaf.shape
        target = owners[0].sharding if same else replicated
        assert leaf.sharding.is_equivalent_to(target, leaf.ndim), name


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.promotion
def test_init_follows_the_parameters(name, mesh):
    tx, params = TRANSFORMATIONS[name], params_on(mesh)
    check_placed(sharding.init(tx, params), tx, params)
    inside = jax.jit(
        lambda params: sharding.init(
            tx, params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
        )
    )
    with jax.set_mesh(mesh):
        check_placed(inside(params), tx, params)


def test_inside_jit_explicit_axes_need_no_shardings():
    tx, mesh = rmsprop(0.1, nu_dtype="uint8"), mesh_of(4, 2, kind=AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = params_on(mesh)
        made = jax.jit(lambda params: sharding.init(tx, params))(params)
    check_placed(made, tx, params)


@pytest.mark.parametrize("nu", STORAGES)
@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9}], ids=str)
def test_a_sharded_update_needs_no_communication(nu, options, mesh):
    tx, params = rmsprop(0.1, nu_dtype=nu, **options), params_on(mesh)
    state = sharding.init(tx, params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    text = step.lower(params, state, params).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "reduce-scatter",
                       "collective-permute"):  # fmt: skip
        assert collective not in text
    for _ in range(2):
        params, state = step(params, state, params)
    check_placed(state, tx, params)


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((8, 6), P(), P("data", None)),
        ((6, 8), P(), P(None, "data")),
        ((8, 8), P("model"), P("model", "data")),  # a dimension that is whole is first
        ((8, 6), P("model"), P(("model", "data"), None)),
        ((8, 3), P(None, "model"), P("data", "model")),
        ((8, 6), P("data"), P("data")),  # is split already
        ((6, 6), P("model"), None),
        ((4,), P("model"), None),  # 4 is not a multiple of 2 × 4
        ((), P(), None),
        ((0, 6), P(), None),
    ],
)
def test_zero_axis_splits_the_first_dimension_that_divides(shape, spec, expected):
    mesh = mesh_of(4, 2)
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    counted = scale_by_rms(nu_dtype="uint8")
    arguments = counted, params, {"w": NamedSharding(mesh, spec)}
    state = sharding.state_sharding(*arguments, zero_axis="data")
    assert state.nu["w"].spec == (spec if expected is None else expected)
    assert state.count.spec == P()
    whole = sharding.left_whole(*arguments, zero_axis="data")
    assert whole == ([".nu['w']"] if expected is None else [])


@pytest.mark.optimized
@pytest.mark.promotion
@pytest.mark.parametrize("zero_axis", [None, "data"])
@pytest.mark.parametrize("nu", STORAGES)
def test_trajectories_are_bit_identical_on_any_number_of_devices(nu, zero_axis):
    tx = optax.chain(
        rmsprop(0.1, nu_dtype=nu, momentum=0.5, accumulator_dtype="bfloat16"),
        rounding.round_params(),
    )

    def after(devices):
        mesh = mesh_of(devices)
        specs = dict.fromkeys(SHAPES, P()) | {"kernel": P("data"), "bias": P("data")}
        params = params_on(mesh, specs, jnp.bfloat16)
        state = sharding.init(tx, params, zero_axis=zero_axis)

        grads = params_on(mesh, specs, jnp.float32)

        @jax.jit
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for i in range(5):
            # Made apart: XLA may keep digits of what it fuses.
            scaled = jax.tree.map(lambda g, i=i: g * (i - 2), grads)
            params, state = step(params, state, scaled)
        return jax.tree.map(np.asarray, (params, state))

    def check(path, got, expected):
        # From jax 0.11 on, the last bit of what is fused depends on the length of an
        # array, in Optax too; and so, rarely, the number to which something is rounded.
        exact = jax.__version_info__ < (0, 11) or expected.dtype.kind == "u"
        last = 2.0**-6 if expected.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(
            got.astype(np.float32), expected.astype(np.float32),
            rtol=0 if exact else last, err_msg=jax.tree_util.keystr(path),
        )  # fmt: skip

    one = after(1)
    for devices in (2, 4, 8):
        jax.tree_util.tree_map_with_path(check, after(devices), one)


@pytest.mark.parametrize("zero_axis", [None, "data"])
@pytest.mark.parametrize("name", ["ours-float32", "ours-uint8", "centered", "adam"])
@pytest.mark.promotion
def test_the_kind_of_memory_is_followed_too(name, zero_axis, mesh):
    tx = TRANSFORMATIONS[name]
    host = {
        key: NamedSharding(mesh, spec, memory_kind="pinned_host")
        for key, spec in SPECS.items()
    }
    params = params_on(mesh)
    planned = sharding.state_sharding(tx, params, host, zero_axis=zero_axis)
    made = sharding.init(tx, params, host, zero_axis=zero_axis)
    at_home = sharding.init(tx, jax.device_put(params, host), zero_axis=zero_axis)
    with jax.set_mesh(mesh):
        inside = jax.jit(
            lambda params: sharding.init(tx, params, host, zero_axis=zero_axis)
        )(params)
    for (path, plan), *leaves in zip(
        jax.tree_util.tree_leaves_with_path(planned),
        *map(jax.tree.leaves, (made, at_home, inside)), strict=True,
    ):  # fmt: skip
        belongs = any(f"['{key}']" in jax.tree_util.keystr(path) for key in SHAPES)
        kinds = {leaf.sharding.memory_kind for leaf in leaves}
        assert (plan.memory_kind == "pinned_host") == belongs
        assert kinds == ({"pinned_host"} if belongs else {"device"}), path
        for leaf in leaves:
            assert leaf.sharding.is_equivalent_to(
                plan.with_memory_kind(leaf.sharding.memory_kind), leaf.ndim
            )


def test_linen_boxes_and_nnx_models_are_followed():
    mesh = mesh_of(4, 2)
    boxed = nn.Dense(
        8, kernel_init=nn.with_partitioning(nn.initializers.ones, ("data", "model"))
    )
    tx = rmsprop(0.1)
    params = jax.eval_shape(boxed.init, jax.random.key(0), jnp.ones((1, 16)))
    shardings = nn.get_sharding(params, mesh)
    nu = sharding.state_sharding(tx, params, shardings)[0].nu["params"]
    assert nu["kernel"].value.spec == P("data", "model")
    assert nu["bias"].spec == P()

    with jax.set_mesh(mesh):
        model = nnx.Linear(
            16, 8, rngs=nnx.Rngs(0),
            kernel_init=nnx.with_partitioning(
                nnx.initializers.ones, ("data", "model")
            ),
        )  # fmt: skip
        state = nnx.state(model, nnx.Param)
    shardings = nnx.get_named_sharding(state, mesh)
    placed = jax.device_put(state, shardings)
    made = jax.jit(lambda params: sharding.init(tx, params, shardings))(placed)
    assert made[0].nu["kernel"].get_value().sharding.spec == P("data", "model")
    assert made[0].nu["bias"].get_value().sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: sharding.state_sharding(rmsprop(0.1), {"w": jnp.ones(3)}),
         r"sharding of params\['w'\]"),
        (lambda p: jax.jit(lambda p: sharding.init(rmsprop(0.1), p))(p),
         "give `shardings`"),
        (lambda p: sharding.state_sharding(rmsprop(0.1), p, zero_axis="expert"),
         "`zero_axis` is 'expert', but the mesh has the axes"),
        (lambda p: sharding.state_sharding(rmsprop(0.1), {}), "no array"),
        (lambda p: sharding.state_sharding(rmsprop(0.1), [p, params_on(mesh_of(2, 2))]),
         "several meshes"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(params_on(mesh_of(4, 2)))
