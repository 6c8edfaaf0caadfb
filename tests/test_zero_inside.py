"""What is inside of `zero` sees whole leaves: masks, means, norms, diagnostics."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmsprop_jax import decay, diagnostics, rmsprop, rounding, sharding

pytestmark = pytest.mark.promotion  # Optax's own

P = PartitionSpec
# A block of rows for each device; padding on one device, on seven; one number; nothing.
SHAPES = {"rows": (128, 128), "long": (1500,), "few": (15,), "odd": (5, 7), "one": (),
          "none": (0, 4)}  # fmt: skip


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


OPTIONS = {
    "plain": {},
    "schedules": {"learning_rate": optax.linear_schedule(0.1, 0.0, 9),
                  "decay": optax.linear_schedule(0.5, 0.9, 9)},
    "eps outside": {"eps_in_sqrt": False, "initial_scale": 1.0},
    "bias_correction": {"bias_correction": True},
    "another decay": {"decay": decay.power(0.8)},
    "centered": {"centered": True},
    "skip_nonfinite": {"skip_nonfinite": True},
    "nu uint8": {"nu_dtype": "uint8"},
    "nu uint16": {"nu_dtype": "uint16"},
    "nu and mu bfloat16": {"nu_dtype": "bfloat16", "mu_dtype": "bfloat16",
                           "centered": True},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "momentum bfloat16": {"momentum": 0.9, "accumulator_dtype": "bfloat16"},
    "rate in momentum": {"momentum": 0.9, "learning_rate_in_momentum": True},
    "cautious": {"momentum": 0.9, "cautious": True},
    "maximize": {"maximize": True},
    "seed": {"nu_dtype": "uint8", "seed": 3},
    **{f"{mode} decay of matrices": {"weight_decay": 0.1, "weight_decay_mode": mode,
                                     "weight_decay_mask": matrices}
       for mode in ("coupled", "decoupled", "independent")},
}  # fmt: skip
AROUND = {
    "clip by global norm": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), rmsprop(0.1)
    ),
    "ours, of the first version": lambda: optax.chain(
        sharding.clip_by_global_norm(1.0, "data"), rmsprop(0.1)
    ),
    "clip by block": lambda: optax.chain(optax.clip_by_block_rms(0.5), rmsprop(0.1)),
    "trust ratio": lambda: optax.chain(
        rmsprop(1.0), optax.scale_by_trust_ratio(), optax.scale(0.1)
    ),
    "normalized": lambda: optax.chain(optax.normalize_by_update_norm(), rmsprop(0.1)),
    "masked": lambda: optax.masked(rmsprop(0.1), matrices),
    "partition": lambda: optax.partition(
        {True: rmsprop(0.1), False: optax.sgd(0.1)}, matrices
    ),
    "injected": lambda: optax.inject_hyperparams(rmsprop)(0.1, momentum=0.5),
    "if finite": lambda: optax.apply_if_finite(rmsprop(0.1), 3),
    "in steps of two": lambda: optax.MultiSteps(
        rmsprop(0.1, nu_dtype="uint8"), 2
    ).gradient_transformation(),
    "watched": lambda: diagnostics.watch(rmsprop, also=diagnostics.ALSO)(0.1),
    "watched, centred": lambda: diagnostics.watch(rmsprop)(0.1, centered=True),
    "rounded": lambda: optax.chain(rmsprop(0.1), rounding.round_params()),
    "adam": lambda: optax.adamw(0.1, mask=matrices),
    "all of it": lambda: optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            diagnostics.watch(rmsprop)(0.1, momentum=0.9, cautious=True),
        ),
        3,
    ),
}
TRANSFORMATIONS = {
    **{
        name: partial(rmsprop, **{"learning_rate": 0.1, **options})
        for name, options in OPTIONS.items()
    },
    **AROUND,
}


def mesh_of(devices=8):
    return jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.integers(-255, 255, shape) / 64, jnp.float32)
        for name, shape in SHAPES.items()
    }


def step_of(tx, mesh, params):
    """Returns a compiled step and the state that it takes."""
    split = sharding.zero(tx, "data")
    with jax.set_mesh(mesh):
        state = split.init(params)
    specs = sharding.specs(state)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), specs, P()),
             out_specs=(P(), specs))  # fmt: skip
    def step(params, state, grads):
        # Device i has i times the last gradient more than the mean.
        index = jax.lax.axis_index("data").astype(jnp.float32) - (mesh.size - 1) / 2
        own = jax.tree.map(lambda g: g * (1 + index), grads)
        updates, state = split.update(own, state, params)
        return optax.apply_updates(params, updates), state

    return step, state


def whole(leaf, like):
    if leaf.shape == like.shape:
        return np.asarray(leaf)
    return np.asarray(leaf)[: like.size].reshape(like.shape)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_option_is_that_of_one_device(name):
    tx, params = TRANSFORMATIONS[name](), tree()
    mesh = mesh_of()
    step, state = step_of(tx, mesh, params)
    one, expected, update = params, tx.init(params), jax.jit(tx.update)
    params = jax.device_put(params, NamedSharding(mesh, P()))  # as they come back
    for i in range(3):
        params, state = step(params, state, tree(i))
        updates, expected = update(tree(i), expected, one)
        one = optax.apply_updates(one, updates)
    assert step._cache_size() == 1
    got = jax.tree_util.tree_leaves_with_path((params, state))
    for (path, leaf), like in zip(got, jax.tree.leaves((one, expected)), strict=True):
        # A code may be the next one, where a sum over devices rounds otherwise.
        slack = {"atol": 1} if like.dtype.kind == "u" else {"rtol": 1e-5, "atol": 2e-6}
        np.testing.assert_allclose(
            whole(leaf, like), like, err_msg=jax.tree_util.keystr(path), **slack
        )


def test_the_mean_of_a_mask_counts_no_padding():
    params = {"w": jnp.ones(15)}
    tx = rmsprop(0.1, momentum=0.9, cautious=True, decay=0.0, eps=0.0)
    step, state = step_of(tx, mesh_of(), params)
    found, _ = step(params, state, {"w": jnp.full(15, 0.1)})
    np.testing.assert_allclose(found["w"], 0.9, rtol=1e-6)


def test_a_gradient_that_is_not_finite_stops_all_devices():
    params, tx = tree(), optax.apply_if_finite(rmsprop(0.1), 3)
    step, state = step_of(tx, mesh_of(), params)
    grads = tree(1) | {"few": jnp.ones(15).at[14].set(jnp.nan)}
    found, state = step(params, state, grads)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert (int(state.total_notfinite), bool(state.last_finite)) == (1, False)
    found, state = step(found, state, tree(1))
    assert (int(state.total_notfinite), bool(state.last_finite)) == (1, True)
    assert not np.array_equal(found["few"], params["few"])


def test_watching_and_clipping_send_one_all_gather_each_and_no_all_reduce():
    def sent(tx):
        params = tree()
        step, state = step_of(tx, mesh_of(), params)
        text = step.lower(params, state, params).as_text()
        return {
            name: len(re.findall(rf"stablehlo\.{name}\b", text))
            for name in ("all_gather", "all_reduce", "reduce_scatter")
        }

    plain = sent(rmsprop(0.1))
    once_more = plain | {"all_gather": plain["all_gather"] + 1}
    watched = diagnostics.watch(rmsprop, also=diagnostics.ALSO)(0.1)
    assert sent(watched) == once_more
    assert sent(rmsprop(0.1, momentum=0.9, cautious=True)) == once_more
    without_scalars = sent(optax.chain(optax.clip_by_global_norm(1.0), rmsprop(0.1)))
    # A parameter that is one number is known to the first device alone: one more.
    assert without_scalars["all_gather"] <= plain["all_gather"] + 2


def test_extra_arguments_reach_the_inside():
    def update(updates, state, params=None, *, factor, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda g: g * factor, updates), state

    tx = sharding.zero(
        optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update),
        "data",
    )
    grads = tree()
    found, _ = jax.jit(
        jax.shard_map(
            lambda g: tx.update(
                jax.lax.pcast(g, "data", to="varying"), tx.init(g), g, factor=3.0
            ),
            mesh=mesh_of(), in_specs=P(), out_specs=P(),
        )
    )(grads)  # fmt: skip
    jax.tree.map(lambda x, g: np.testing.assert_allclose(x, 3 * g), found, grads)


def of_each(function):
    return optax.stateless(lambda updates, params: jax.tree.map(function, updates))


REFUSED = {
    "rows have means": (optax.adafactor(0.1, min_dim_size_to_factor=4), r"\(5, 7\)"),
    "norms by unit": (optax.adaptive_grad_clip(0.1), "`reduce_sum`"),
    "centralized": (optax.centralize(), r"\(as of \['none'\]\)"),
    "reversed": (of_each(lambda g: g.ravel()[::-1].reshape(g.shape)), "`rev`"),
    "running": (of_each(lambda g: jnp.cumsum(g.ravel()).reshape(g.shape)), "`cumsum`"),
    "transposed": (of_each(lambda g: g.T.reshape(g.shape)), "`transpose`"),
    "products": (of_each(lambda g: g @ g if g.shape == (128, 128) else g),
                 "`dot_general`"),
    "summed by hand": (
        of_each(lambda g: g / jnp.sqrt(jax.lax.psum(jnp.sum(g * g), "data"))),
        "combines devices over",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_elements_is_refused_by_init(name):
    tx, message = REFUSED[name]
    tx = sharding.zero(tx, "data")
    with jax.set_mesh(mesh_of()), pytest.raises(ValueError, match=message) as caught:
        tx.init(tree())
    assert str(caught.value).startswith("`zero` cannot split this transformation: ")
