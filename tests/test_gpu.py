"""What XLA makes of the whole update on GPUs, compiled ahead of time: exact numbers."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import plan
from rmsprop_jax import cli, diagnostics, rmsprop, rounding, sharding, storage
from rmsprop_jax.bench import ahead, chains, gpus, programs, targets

compiles = pytest.mark.skipif(
    not targets.has_cuda_plugin(), reason="needs JAX's CUDA plugin"
)
pytestmark = [pytest.mark.optimized, pytest.mark.filterwarnings("default")]

# Read parameters, gradients and state; write parameters and state.
BYTES = {
    "float32": {
        "ours": 20, "ours-bfloat16": 16, "ours-uint16": 16, "ours-uint8": 14,
        "ours-momentum": 28, "ours-momentum-narrow": 18,
        "ours-centered": 28, "ours-centered-narrow": 18,
    },
    "bfloat16": {
        "ours": 14, "ours-bfloat16": 10, "ours-uint16": 10, "ours-uint8": 8,
        "ours-momentum": 22, "ours-momentum-narrow": 12,
        "ours-centered": 22, "ours-centered-narrow": 12,
    },
}  # fmt: skip

SCALARS = 2**17
"""Bytes: scalars and, where an array is rounded, the index of each row."""


def at_limit(found, expected):
    assert found["bytes_per_parameter"] == pytest.approx(expected, abs=0.01), found
    assert found["kernels"] == 1, found
    assert found["temporary_bytes"] <= SCALARS, found
    assert found["collectives"] == 0, found


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("gpu", [*gpus.GPUS, "h100:8", "h100:2x8"])
def test_the_update_is_one_kernel_that_touches_every_byte_once(gpu):
    devices = targets.gpu(gpu)
    quick = gpu != "h100" and ":" not in gpu
    for dtype, expected in BYTES.items():
        for name, tx in ahead.transformations(quick).items():
            if name == ahead.BASE:
                continue
            found = ahead.facts(tx, dtype, devices)
            at_limit(found, expected[name])
            assert found["limit"] == pytest.approx(expected[name], abs=1e-4)
            # What is read is held; what is written takes its place.
            size = jnp.dtype(dtype).itemsize
            held = 2**28 * (expected[name] + size) / 2
            assert found["bytes_per_device"] == pytest.approx(held, rel=1e-3)
            # For all leaves together: 3 on one H100, 4 on an A100, a B200 and several.
            # Codes of one byte have two more, of 4 bytes each: one makes their offset
            # of the range, one writes the new range.
            is_byte = name in ("ours-uint8", "ours-momentum-narrow",
                               "ours-centered-narrow")  # fmt: skip
            assert found["small_kernels"] <= (7 if is_byte else 4)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(("form", "bytes"), [("stochastic", 8), ("remainder", 10)])
def test_rounding_parameters_adds_no_pass_and_a_remainder_its_two_bytes(form, bytes):
    tx = rmsprop(1e-3, nu_dtype="uint8", round_params=form)
    at_limit(ahead.facts(tx, "bfloat16", targets.gpu("h100")), bytes)


@compiles
@pytest.mark.slow
@pytest.mark.promotion
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(("nu", "width"), [("float32", 4), ("uint16", 2), ("uint8", 1)])
def test_options_add_no_pass(dtype, size, nu, width):
    plain = 3 * size + 2 * width
    ones = {
        "skip_nonfinite": rmsprop(0.1, nu_dtype=nu, skip_nonfinite=True),
        "coupled": rmsprop(0.1, nu_dtype=nu, weight_decay=0.1),
        "decoupled": rmsprop(
            0.1, nu_dtype=nu, weight_decay=0.1, weight_decay_mode="decoupled"
        ),
        "schedule": rmsprop(optax.cosine_decay_schedule(0.1, 100), nu_dtype=nu),
        "bias": rmsprop(0.1, nu_dtype=nu, bias_correction=True),
        "round": optax.chain(rmsprop(0.1, nu_dtype=nu), rounding.round_params()),
    }
    for name, tx in ones.items():
        found = ahead.facts(tx, dtype, targets.gpu("h100"))
        assert found["bytes_per_parameter"] == pytest.approx(plain, abs=0.01), name
        at_limit(found, plain)


@compiles
@pytest.mark.slow
def test_watching_reads_the_state_once_more_at_most():
    for nu, width in (("float32", 4), ("uint8", 1)):
        tx = diagnostics.watch(rmsprop)(0.1, nu_dtype=nu)
        found = ahead.facts(tx, "float32", targets.gpu("h100"))
        assert found["bytes_per_parameter"] <= 12 + 3 * width + 0.05, found


@compiles
@pytest.mark.slow
def test_cautious_needs_a_second_pass_for_its_mean():
    tx = rmsprop(0.1, momentum=0.9, cautious=True)
    found = ahead.facts(tx, "float32", targets.gpu("h100"))
    # The first reads gradient, nu and momentum and writes these two, with a byte that
    # says what agrees; the second reads that and the momentum, and updates parameters.
    assert found["bytes_per_parameter"] == pytest.approx(20 + 1 + 13, abs=0.05), found
    assert found["temporary_bytes"] <= 2**28 + SCALARS


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100:8", "h100:2x8"])
@pytest.mark.parametrize(
    ("dtype", "nu"),
    [("float32", "float32"), ("float32", "uint8"), ("bfloat16", "uint8")],
)
def test_zero_sends_no_all_reduce_and_keeps_a_part_of_the_state(gpu, dtype, nu):
    devices = targets.gpu(gpu)
    mesh = jax.make_mesh((len(devices),), ("x",), (AxisType.Auto,), devices=devices)

    def placed(shape, *spec):
        at = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=at)

    inner = rmsprop(1e-3, nu_dtype=nu)
    split = sharding.zero(inner, "x")
    shapes = {"w": (4096, 4096), "bias": (4096,), "odd": (57, 13)}
    params = {name: placed(shape) for name, shape in shapes.items()}
    state = sharding.zero_state(inner, params, "x")
    arguments = (params, state, placed((8 * mesh.size, 4096), "x"))
    specs = sharding.specs(arguments)

    def loss(params, x):
        y = jnp.tanh(x @ params["w"] + params["bias"])
        return jnp.mean(y**2) + jnp.sum(params["odd"] ** 2)

    def step(params, state, x):
        own = jax.lax.pcast(params, "x", to="varying")
        updates, state = split.update(jax.grad(loss)(own, x), state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[:2])
    jitted = jax.jit(mapped, donate_argnums=(0, 1), keep_unused=True)
    text = targets.compiled(jitted.lower(*arguments), devices).as_text()
    found = programs.collectives(text)
    assert set(found) == {"reduce-scatter", "all-gather"}, found
    sizes = plan.argument_sizes(text)[len(shapes) : -1]
    assert sizes == [
        size // len(devices) if leaf.ndim else size
        for size, leaf in zip(
            storage.sizes(state).values(), jax.tree.leaves(state), strict=True
        )
    ]


@compiles
@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_the_facts(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "rmsprop_jax", "bench", "--gpu=h100,h100:2x8",
         "--quick", "--quiet", f"--out={tmp_path}"],
        capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "…" not in run.stdout
    row = next(x for x in run.stdout.splitlines() if "ours-uint8" in x).split()
    assert row[1:4] == ["14.00", "14.00", "1"]
    found = json.loads((tmp_path / "gpu.json").read_text())["topologies"]
    assert {name: found[name]["devices"] for name in found} == {
        "h100": 1,
        "h100:2x8": 16,
    }


@compiles
@pytest.mark.slow
def test_collectives_and_second_passes_are_seen_where_there_are_some():
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    found = ahead.facts(clip, "float32", targets.gpu("h100:8"))
    assert found["collectives"] == 1
    assert found["bytes_per_parameter"] == pytest.approx(
        16, abs=0.01
    )  # gradients twice


@compiles
@pytest.mark.slow
@pytest.mark.promotion
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("clipped", [False, True])
def test_a_whole_chain_is_a_kernel_for_each_leaf_and_a_handful(dtype, clipped):
    leaves, devices = chains.layer(), targets.gpu("h100")
    ours = ahead.facts(chains.ours(clipped), dtype, devices, leaves)
    base = ahead.facts(chains.of_optax(clipped), dtype, devices, leaves)
    size = jnp.dtype(dtype).itemsize
    # Clipping reads gradients once more.
    expected = 3 * size + 2 + size * clipped
    assert ours["bytes_per_parameter"] == pytest.approx(expected, rel=2e-3)
    assert ours["kernels"] <= base["kernels"]
    launches = ours["kernels"] + ours["small_kernels"]
    assert launches <= base["kernels"] + base["small_kernels"] + 6
    if not clipped:
        assert launches <= len(leaves) + 8


TEXT = """\
%fused (p: f32[64,4], k: u32[2]) -> (f32[64,4], u8[64,4]) {
  %p = f32[64,4]{1,0} parameter(0)
  %k = u32[2]{0} parameter(1)
  %key = u32[1]{0} slice(%k), slice={[1:2]}
  %n = f32[64,4]{1,0} negate(%p)
}
%inner (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} copy(%q)
}
ENTRY %main (a: f32[64,4], b: s32[]) -> (f32[64,4], u8[64,4]) {
  %a = f32[64,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %keys = u32[2]{0} fusion(%b), kind=kLoop, calls=%keyed
  %both = (f32[64,4]{1,0}, /*index=1*/u8[64,4]{1,0}) fusion(%a, %keys), calls=%fused
  %first = f32[64,4]{1,0} get-tuple-element(%both), index=0
  %r = f32[8]{0} reduce-scatter(%first), to_apply=%sum
  %d = f32[8]{0} call(%r), to_apply=%inner
  ROOT %t = (f32[64,4]{1,0}, u8[64,4]{1,0}) tuple(%first, %first)
}
"""


def test_kernels_are_read_from_the_text_of_a_program():
    assert programs.kernels(TEXT) == [
        programs.Kernel(bytes=8 + 4, elements=2),
        programs.Kernel(bytes=4 * 256 + 256 + 4 + 4 * 256, elements=256),
        programs.Kernel(bytes=64, elements=8),
    ]
    assert programs.collectives(TEXT) == {"reduce-scatter": 1}
    assert programs.estimated_cycles(TEXT) is None


@pytest.mark.parametrize("name", ["dance", "h100:", "h100:0", "h100:2x", "h300:8", ""])
def test_a_gpu_that_is_not_known_gets_one_line(name, capsys, tmp_path):
    assert cli.main(["bench", f"--gpu={name}", f"--out={tmp_path}"]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert "--gpu" in stderr
    assert "rtx4090" in stderr
    assert not list(tmp_path.iterdir())


def test_without_the_plugin_it_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "has_cuda_plugin", lambda: False)
    assert cli.main(["bench", "--gpu=h100", f"--out={tmp_path}"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "[gpu]'" in stderr
    assert f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} " in stderr


def test_every_gpu_is_described_by_numbers_that_agree():
    for name, gpu in gpus.GPUS.items():
        assert f"core_count: {gpu.cores}" in gpus.description(gpu), name
        # One block may have what a core has, less 1 KiB that the driver keeps.
        assert np.subtract(*gpu.shared) == 2**10
        assert 1e11 < gpu.bandwidth < 1e13
        assert 2**34 < gpu.memory < 2**38
