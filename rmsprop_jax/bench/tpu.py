"""What XLA makes of the whole step on TPUs, compiled ahead of time: exact numbers."""

import contextlib
import importlib
import os
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import rmsprop, storage
from .peers import DECAY, RATE
from .progress import Show

PER_CHIP = (2**14, 2**14)
"""Parameters of a chip: small arrays would be prefetched, and counted twice."""

BASE = "optax.rmsprop"

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Or libtpu looks for a TPU, complains, and locks out another process."""

DTYPES = ("float32", "bfloat16")
"""Of parameters and gradients."""

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def transformations(quick: bool) -> dict[str, optax.GradientTransformation]:
    """Returns what is compiled, by name."""
    made: dict[str, optax.GradientTransformation] = {BASE: optax.rmsprop(RATE, DECAY)}
    for nu in ("float32", "bfloat16", "uint16", "uint8"):
        name = "ours" if nu == "float32" else f"ours-{nu}"
        made[name] = rmsprop(RATE, DECAY, nu_dtype=nu)
    if quick:
        return made
    for suffix, nu, signed in (
        ("", "float32", "float32"), ("-narrow", "uint8", "bfloat16"),
    ):  # fmt: skip
        made[f"ours-centered{suffix}"] = rmsprop(
            RATE, DECAY, nu_dtype=nu, centered=True, mu_dtype=signed
        )
        made[f"ours-momentum{suffix}"] = rmsprop(
            RATE, DECAY, nu_dtype=nu, momentum=0.9, accumulator_dtype=signed
        )
    return made


def topology(name: str) -> Any:
    """Returns a description of TPUs, such as "v5e:2x2", by libtpu.

    Raises:
      ModuleNotFoundError: without libtpu.
      ValueError: for a name that libtpu does not know.
    """
    importlib.import_module("libtpu")
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with contextlib.suppress(RuntimeError):  # too late: it has started on something
        jax.config.update("jax_platforms", "cpu")
    topologies = importlib.import_module("jax.experimental.topologies")
    try:
        return topologies.get_topology_desc(name, platform="tpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"libtpu knows no {name!r}; a topology is such as v5e:2x2: {reason}"
        ) from None


def measure(topology: Any, quick: bool, show: Show) -> dict[str, Any]:
    """Returns the facts of every transformation, by the dtype of parameters."""
    devices = topology.devices
    kind = devices[0].device_kind
    made = transformations(quick)
    found = {}
    for dtype in DTYPES:
        found[dtype] = {}
        with show(f"{len(devices)} × {kind}, {dtype}", len(made)) as on_step:
            for index, (name, tx) in enumerate(made.items()):
                found[dtype][name] = facts(tx, dtype, devices)
                on_step(index + 1)
        base = found[dtype][BASE]["cycles"]
        for row in found[dtype].values():
            row["cycles_ratio"] = row["cycles"] / base
    return {
        "device": kind,
        "chips": len(devices),
        "parameters_per_chip": PER_CHIP[0] * PER_CHIP[1],
        "by_dtype": found,
    }


def facts(tx: optax.GradientTransformation, dtype: str, devices: Any) -> dict[str, Any]:
    """Returns what the compiler says of a step over parameters on all chips."""
    rows, columns = PER_CHIP
    mesh = Mesh(np.asarray(devices), ("chips",))

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("chips") if leaf.ndim else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.ShapeDtypeStruct((rows * len(devices), columns), jnp.dtype(dtype))
    state = jax.eval_shape(tx.init, params)
    arguments = jax.tree.map(placed, (params, state, params))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    text = compiled.as_text() or ""
    entry = text[text.index("ENTRY") :]
    whole = f"[{rows},{columns}]"
    kernels = [
        line for line in entry.splitlines() if "fusion(" in line and whole in line
    ]
    cycles = re.findall(r'estimated_cycles":"?([0-9]+)', text)
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    per_parameter = sum(storage.sizes(state).values()) / params.size
    size = params.dtype.itemsize
    return {
        "bytes_per_parameter": cost["bytes accessed"] / (rows * columns),
        "limit": 3 * size + 2 * round(per_parameter, 6),
        "kernels": len(kernels),
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_per_chip": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "collectives": collectives(text).total(),
        "cycles": sum(map(int, cycles)),
    }


def collectives(text: str) -> Counter[str]:
    """Returns how many instructions of a compiled program communicate, by kind."""
    found: Counter[str] = Counter()
    computation = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line
        for kind in COLLECTIVE.findall(line):
            # XLA's name for a reduce-scatter that it writes as a kernel of its own.
            scatters = computation.startswith("%all-reduce-scatter")
            found["reduce-scatter" if scatters and kind == "all-reduce" else kind] += 1
    return found
