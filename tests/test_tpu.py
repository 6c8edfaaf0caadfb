"""What XLA makes of the whole update on TPUs, compiled ahead of time: exact numbers."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROGRAM = """
import json, re, sys
import jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rmsprop_jax import rmsprop

topology = topologies.get_topology_desc(sys.argv[1], platform="tpu")
sharding = SingleDeviceSharding(topology.devices[0])
shape = (2**14, 2**14)  # small arrays would be prefetched, and counted twice


def on_chip(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def facts(tx, dtype):
    params = jax.ShapeDtypeStruct(shape, dtype)
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    arguments = map(on_chip, (params, state, params))
    compiled = step.lower(*arguments).compile()
    text = compiled.as_text()
    entry = text[text.index("ENTRY") :]
    big = [x for x in entry.splitlines() if "fusion(" in x and "16384,16384" in x]
    cycles = re.findall(r'estimated_cycles":"?([0-9]+)', text)
    return {
        "bytes": compiled.cost_analysis()["bytes accessed"] / shape[0] / shape[1],
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": len(big),
        "cycles": sum(map(int, cycles)),
    }


made = {"optax": optax.rmsprop(0.1, 0.99)}
for nu in ("float32", "bfloat16", "uint16", "uint8"):
    made[nu] = rmsprop(0.1, 0.99, nu_dtype=nu)
for name, narrow in (("wide", None), ("narrow", "bfloat16")):
    nu = {"wide": None, "narrow": "uint8"}[name]
    made[f"momentum {name}"] = rmsprop(
        0.1, 0.99, nu_dtype=nu, momentum=0.9, accumulator_dtype=narrow
    )
    made[f"centered {name}"] = rmsprop(
        0.1, 0.99, nu_dtype=nu, centered=True, mu_dtype=narrow
    )
print(json.dumps({
    dtype: {name: facts(tx, dtype) for name, tx in made.items()}
    for dtype in ("float32", "bfloat16")
}))
"""

# Read parameters, gradients and state; write parameters and state.
BYTES = {
    "float32": {
        "float32": 20, "bfloat16": 16, "uint16": 16, "uint8": 14,
        "momentum wide": 28, "momentum narrow": 18,
        "centered wide": 28, "centered narrow": 18,
    },
    "bfloat16": {
        "float32": 14, "bfloat16": 10, "uint16": 10, "uint8": 8,
        "momentum wide": 22, "momentum narrow": 12,
        "centered wide": 22, "centered narrow": 12,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def facts(request):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, request.param],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", BYTES)
def test_the_update_is_one_kernel_that_touches_every_byte_once(facts, dtype):
    for name, expected in BYTES[dtype].items():
        found = facts[dtype][name]
        assert found["bytes"] == pytest.approx(expected, abs=0.01), (name, found)
        assert found["temporaries"] == 0, (name, found)
        assert found["kernels"] == 1, (name, found)


def test_the_compiler_expects_the_time_to_fall_with_the_bytes(facts):
    cycles = {name: found["cycles"] for name, found in facts["float32"].items()}
    assert cycles["float32"] <= 1.01 * cycles["optax"]
    assert cycles["bfloat16"] <= 0.81 * cycles["optax"]
    assert cycles["uint16"] <= 0.81 * cycles["optax"]
    assert cycles["uint8"] <= 0.72 * cycles["optax"]
