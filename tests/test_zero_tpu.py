"""What ZeRO sends on 16 and 256 TPUs, and what a chip keeps: compiled ahead of time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import plan
from rmsprop_jax import rmsprop, sharding, storage
from rmsprop_jax.bench import programs, targets

pytest.importorskip("libtpu")
pytestmark = [pytest.mark.slow, pytest.mark.optimized]

# In a slice of 2 × 8 a ring goes through all chips, in others through a row.
GRIDS = {"v5e:2x8": (16,), "v5e:4x4": (4, 4), "v5e:16x16": (16, 16)}
CASES = [("float32", "float32"), ("float32", "uint16"), ("float32", "uint8"),
         ("bfloat16", "uint8")]  # fmt: skip

WIDTH = 4096
# Two that travel alone on 256 chips also, and three that share a bucket.
SHAPES = {"in": (WIDTH, 4 * WIDTH), "out": (4 * WIDTH, WIDTH),
          "bias_in": (4 * WIDTH,), "bias_out": (WIDTH,), "odd": (57, 13)}  # fmt: skip
SENT = 3

# Or an all-gather is spread over the kernels that run beside it, and shows in each.
OPTIONS = {"xla_tpu_enable_async_collective_fusion": "false"}


def loss(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["bias_in"])
    y = hidden @ params["out"] + params["bias_out"]
    return jnp.mean(y**2) + jnp.sum(params["odd"] ** 2)


@functools.cache
def compiled(topology, dtype, nu):
    """Returns a whole training step, and the abstract state that it takes."""
    grid = GRIDS[topology]
    axes = ("x", "y")[: len(grid)]
    auto = (AxisType.Auto,) * len(grid)
    mesh = jax.make_mesh(grid, axes, auto, devices=targets.tpu(topology))

    def placed(shape, *spec):
        at = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=at)

    inner = rmsprop(1e-3, nu_dtype=nu)
    split = sharding.zero(inner, axes)
    params = {name: placed(shape) for name, shape in SHAPES.items()}
    arguments = (
        params,
        sharding.zero_state(inner, params, axes),
        placed((32 * mesh.size, WIDTH), axes),
    )
    specs = sharding.specs(arguments)

    def step(params, state, x):
        own = jax.lax.pcast(params, axes, to="varying")
        updates, state = split.update(jax.grad(loss)(own, x), state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[:2])
    lowered = jax.jit(mapped, donate_argnums=(0, 1), keep_unused=True).lower(*arguments)
    return lowered.compile(OPTIONS), arguments[1]


@pytest.mark.parametrize(("dtype", "nu"), CASES)
@pytest.mark.parametrize("topology", GRIDS)
def test_gradients_are_reduce_scattered_once_and_never_all_reduced(topology, dtype, nu):
    program, _ = compiled(topology, dtype, nu)
    found = programs.collectives(program.as_text())
    found.pop("collective-permute", None)  # of a reduce-scatter on rings of four
    # Over each axis: two that are large, and the bucket.
    each = len(GRIDS[topology]) * SENT
    assert found == {"reduce-scatter": each, "all-gather": each}


@pytest.mark.parametrize(("dtype", "nu"), CASES)
@pytest.mark.parametrize("topology", GRIDS)
def test_a_chip_keeps_its_part_of_the_state_and_no_more(topology, dtype, nu):
    program, state = compiled(topology, dtype, nu)
    chips = np.prod(GRIDS[topology])
    params = len(SHAPES)
    sizes = plan.argument_sizes(program.as_text())
    expected = [
        size // chips if leaf.ndim else size
        for size, leaf in zip(
            storage.sizes(state).values(), jax.tree.leaves(state), strict=True
        )
    ]
    assert sizes[params:-1] == expected
    elements = sum(-(-np.prod(shape) // 1024) * 1024 for shape in SHAPES.values())
    # The plain state has neither; a count, and of one byte the range of its codes.
    scalars = {"float32": 0, "uint16": 4, "uint8": 4 + 4}[nu]
    assert sum(expected) == elements * jnp.dtype(nu).itemsize // chips + scalars
    held = program.memory_analysis().argument_size_in_bytes
    assert 0 <= held - sum(sizes) < 1e-4 * held  # the padding of small arrays


@pytest.mark.parametrize("topology", GRIDS)
def test_narrower_state_saves_its_bytes_on_every_chip(topology):
    wide, narrow = (
        compiled(topology, "float32", nu)[0].memory_analysis().argument_size_in_bytes
        for nu in ("float32", "uint8")
    )
    elements = sum(np.prod(shape) for shape in SHAPES.values())
    saved = 3 * elements / np.prod(GRIDS[topology])
    assert wide - narrow == pytest.approx(saved, rel=2e-3)


@pytest.mark.parametrize("nu", ["float32", "uint16", "uint8"])
def test_where_all_is_sharded_the_update_sends_nothing(nu):
    (toy,) = plan.TOY.values()
    lowered = plan.lowered(
        "fully sharded", rmsprop(1e-3, nu_dtype=nu),
        plan.shapes(toy, "float32"), plan.mesh_of("v5e:16x16"),
    )  # fmt: skip
    assert programs.collectives(lowered.compile().as_text()) == {}


def test_a_plain_all_reduce_is_counted_as_one():
    text = """
%all-reduce-scatter.1 (input: f32[64]) -> f32[16] {
  %all-reduce.5 = f32[64] all-reduce(%input)
}
%other (x: f32[64]) -> f32[64] {
  %all-reduce.6 = f32[64] all-reduce-start(%x)
}
ENTRY %main {
  %b = f32[4] reduce-scatter(%a)
  %c = f32[4] all-reduce(%b)
"""
    assert programs.collectives(text) == {"reduce-scatter": 2, "all-reduce": 2}
