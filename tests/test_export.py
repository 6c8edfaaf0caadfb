"""Programs written for TPUs, GPUs and CPUs take the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from rmsprop_jax import _codes, rmsprop, rounding

PLATFORMS = ("cpu", "cuda", "tpu")
STORAGES = ("float32", "bfloat16", "uint16", "uint8")

# So that what was written for one platform runs on another, here on a CPU.
ANYWHERE = [export.DisabledSafetyCheck.platform()]


def every_code(dtype):
    """All values that an accumulator can hold, each beside gradients of every size."""
    if dtype == "uint8":
        return np.arange(256, dtype=np.uint8)
    if dtype == "uint16":
        return np.arange(2**16, dtype=np.uint16)
    finite = np.arange(0x7F80, dtype=np.uint16)  # bfloat16's patterns under infinity
    return np.asarray(jax.lax.bitcast_convert_type(finite, jnp.bfloat16)).astype(dtype)


def case(nu, **options):
    tx = rmsprop(0.1, nu_dtype=nu, skip_nonfinite=True, **options)
    codes = every_code(nu)
    sizes = np.float32([0, 1e-30, 3e-7, 1e-3, 1, 900, 1e6, 1e19, np.inf, np.nan])
    grads = jnp.asarray(np.tile(sizes[:, None], (1, codes.size)))
    params = jnp.ones_like(grads)
    state = tx.init(params)
    stored = jnp.asarray(np.tile(codes, (len(sizes), 1)))
    state = optax.tree_utils.tree_set(state, nu=stored)
    return tx, (grads, state, params)


def same(tree, other):
    """All values, up to the sign of a zero; no tolerance."""
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        wide = jnp.float32 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        np.testing.assert_array_equal(a.astype(wide), b.astype(wide))


@pytest.mark.optimized
@pytest.mark.parametrize("nu", STORAGES)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_code_takes_the_same_step_on_every_platform(nu, momentum):
    options = {"momentum": momentum, "accumulator_dtype": "bfloat16"}
    tx, arguments = case(nu, **(options if momentum else {}))
    update = jax.jit(tx.update)
    by_platform = [
        export.export(update, platforms=[name], disabled_checks=ANYWHERE)(*arguments)
        for name in PLATFORMS
    ]
    found = [exported.call(*arguments) for exported in by_platform]
    for other in found[1:]:
        same(found[0], other)


@pytest.mark.parametrize("nu", STORAGES)
def test_one_program_is_exported_for_all_platforms(nu):
    tx = optax.chain(
        rmsprop(0.1, nu_dtype=nu, centered=True, mu_dtype="bfloat16"),
        rounding.round_params(),
    )
    params = jnp.ones((4, 8), jnp.bfloat16)
    arguments = params, tx.init(params), params
    update = jax.jit(tx.update)
    exported = export.export(update, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    same(exported.call(*arguments), update(*arguments))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_codes_are_narrowed_alike_by_integers_and_by_floats(dtype):
    code = jnp.arange(-(2**17), 2**17, dtype=jnp.int32)
    by_integers = _codes._narrowed(jnp.dtype(dtype), code)
    same(by_integers, _codes._narrowed_as_float(jnp.dtype(dtype), code))
