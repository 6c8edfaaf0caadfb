"""Every way to build the optimizer, and every dtype that it has to work in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import (
    RmsState,
    ScaleByRmsState,
    decay,
    dialects,
    rmsprop,
    scale_by_rms,
)

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64")


def _scaled(learning_rate, rho=0.9, eps=1e-8):
    """`scale_by_rms` in a chain of its own."""

    def negated(updates, params):
        return jax.tree.map(lambda u: -jnp.asarray(learning_rate, u.dtype) * u, updates)

    return optax.chain(scale_by_rms(rho, eps), optax.stateless(negated))


def _scheduled(learning_rate, rho=0.9, eps=1e-8):
    """A schedule in every place that takes one."""

    def of(value, function):
        def schedule(count):
            wide = jnp.result_type(float)
            return function(jnp.asarray(value, wide), jnp.asarray(count, wide))

        return schedule

    return rmsprop(
        of(learning_rate, lambda rate, count: rate / (1 + count)),
        of(rho, lambda rho, count: jnp.minimum(rho, count / 10)),
        eps,
        weight_decay=of(1e-2, lambda rate, count: rate / (1 + count)),
    )


def _matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _debiased(learning_rate, rho=0.9, eps=1e-8):
    return rmsprop(learning_rate, decay.debiased(rho), eps)


# name -> function of (learning_rate, decay, eps), each a number or a tracer
FACTORIES = {
    "scale_by_rms": _scaled,
    "rmsprop": rmsprop,
    "eps_outside": partial(rmsprop, eps_in_sqrt=False),
    "initial_scale": partial(rmsprop, initial_scale=1.0),
    "bias_correction": partial(rmsprop, bias_correction=True),
    "debiased": _debiased,
    "centered": partial(rmsprop, centered=True),
    "momentum": partial(rmsprop, momentum=0.9),
    "nesterov_outside": partial(
        rmsprop, momentum=0.9, nesterov=True, learning_rate_in_momentum=False
    ),
    "everything": partial(
        rmsprop,
        initial_scale=0.5,
        centered=True,
        momentum=0.9,
        weight_decay=1e-2,
        skip_nonfinite=True,
        maximize=True,
    ),
    "decoupled": partial(
        rmsprop, weight_decay=1e-2, weight_decay_mode="decoupled", momentum=0.5
    ),
    "independent": partial(
        rmsprop,
        weight_decay=1e-2,
        weight_decay_mode="independent",
        weight_decay_mask=_matrices,
    ),
    "scheduled": _scheduled,
    "timm": partial(dialects.timm, momentum=0.9, caution=True, centered=True),
}


def tree(dtype, seed=0, scale=1.0):
    """A matrix, a vector and a scalar, normally distributed."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        x = rng.normal(size=shape) * scale
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape) * scale
        return jnp.asarray(x, dtype)

    return {"w": leaf(8, 3), "b": leaf(3), "s": leaf()}


def x64(dtype):
    """JAX's 64-bit mode as the dtype needs it."""
    return jax.enable_x64(dtype == "float64")


def train(tx, params, grads, steps=3):
    """Parameters and state after some steps of one compiled scan."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0]

    return jax.jit(run)(params)


def abstract(tree):
    """Shapes, dtypes and weak types of the leaves, and the tree."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type), tree
    )


def assert_close(actual, expected, tolerance=0.0):
    """Leaves are equal, or differ by `tolerance` of their own size at most."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        kind = complex if jnp.iscomplexobj(b) else float
        a, b = np.asarray(a, kind), np.asarray(b, kind)
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 10)


def rms_of(state):
    """The state of `scale_by_rms`, ours or Optax's, in that of a chain."""
    kinds = RmsState | ScaleByRmsState
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kinds))
    (rms,) = (node for node in nodes if isinstance(node, kinds))
    return rms
