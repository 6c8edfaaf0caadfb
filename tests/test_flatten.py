"""`optax.flatten` around ours: all leaves as one vector, with every storage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_equal

from rmsprop_jax import decay, rmsprop
from rmsprop_jax.rounding import round_params
from table import x64

SHAPES = {"matrix": (3, 4), "inner": {"vector": (5,), "scalar": ()}}

OPTIONS = {
    "plain": {},
    "decay by step": {"decay": decay.power(0.8)},
    "bias correction": {"bias_correction": True},
    "centred": {"centered": True},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "weight_decay_mode": "decoupled"},
    "skip": {"skip_nonfinite": True},
}

STORED = {  # by bytes of state for each parameter
    "float64": (8, {"nu_dtype": "float64"}),
    "float32": (4, {"nu_dtype": "float32"}),
    "bfloat16": (2, {"nu_dtype": "bfloat16"}),
    "uint16": (2, {"nu_dtype": "uint16"}),
    "uint8": (1, {"nu_dtype": "uint8"}),
    "mu": (3, {"nu_dtype": "uint8", "centered": True, "mu_dtype": "bfloat16"}),
    "buffer": (
        3, {"nu_dtype": "uint8", "momentum": 0.9, "accumulator_dtype": "bfloat16"}
    ),
}  # fmt: skip


def tree(seed, dtype="float32"):
    """Numbers in the shapes of `SHAPES`."""
    draw = np.random.default_rng(seed).standard_normal
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(draw(s), dtype), SHAPES, is_leaf=is_shape)


def joined(of_leaves):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(of_leaves)])


def trained(tx, params, gradients):
    """Returns parameters and state after a scan over several gradients."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]


def several(dtype="float32"):
    """Gradients of five steps."""
    steps = [tree(seed, dtype) for seed in range(1, 6)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_leaves_are_as_they_would_be_by_themselves(options):
    tx = rmsprop(0.1, **options)
    alone, _ = trained(tx, tree(0), several())
    flat, state = trained(optax.flatten(tx), tree(0), several())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7), alone, flat
    )
    assert {leaf.shape for leaf in jax.tree.leaves(state)} <= {(), (18,)}


@pytest.mark.parametrize(("each", "options"), STORED.values(), ids=STORED)
def test_every_storage_is_one_vector_that_is_written_like_any_other(each, options):
    with x64(options["nu_dtype"]):
        tx = rmsprop(0.1, **options)
        flat, state = trained(optax.flatten(tx), tree(0), several())
        gradients = jax.vmap(joined)(several())
        alone, expected = trained(tx, joined(tree(0)), gradients)
        assert_trees_all_equal(state, expected)
        np.testing.assert_array_equal(joined(flat), alone)
        stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
        assert stored == 18 * each


@pytest.mark.promotion
def test_narrow_parameters_are_rounded_as_one_vector():
    tx = optax.chain(rmsprop(1e-4, nu_dtype="uint8"), round_params())
    params, narrow = tree(0, "bfloat16"), several("bfloat16")
    flat, _ = trained(optax.flatten(tx), params, narrow)
    alone, _ = trained(tx, joined(params), jax.vmap(joined)(narrow))
    assert {leaf.dtype for leaf in jax.tree.leaves(flat)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(joined(flat), alone)
    assert (joined(flat) != joined(params)).any()


def test_a_mask_by_leaf_is_refused_because_there_is_one_leaf():
    mask = {"matrix": True, "inner": {"vector": False, "scalar": False}}
    tx = optax.flatten(rmsprop(0.1, weight_decay=0.1, weight_decay_mask=mask))
    with pytest.raises(ValueError, match="weight_decay_mask"):
        tx.init(tree(0))
