"""What XLA makes of the whole step on TPUs and GPUs, ahead of time: exact numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import rmsprop, storage
from ..lab.progress import Show
from . import chains, programs, targets
from .peers import DECAY, RATE
from .rows import step_of
from .shapes import SHAPES, Shapes

ARRAY: Shapes = [(2**14, 2**14)]
"""The parameters of a device: TPUs would prefetch small arrays, and count them twice.
"""

MODELS = ("gpt2", "resnet50", "small-leaves")
"""What is compiled for one GPU besides: each leaf takes the compiler a while."""

CHAINS = {"7B layer": False, "7B layer, clipped": True}
"""Whether a chain on a layer's leaves clips by the global norm."""

BASE = "optax.rmsprop"

DTYPES = ("float32", "bfloat16")
"""Of parameters and gradients."""


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


def measure(devices: Any, quick: bool, show: Show) -> dict[str, Any]:
    """Returns the facts of every transformation, by the dtype of parameters."""
    kind = devices[0].device_kind
    found: dict[str, Any] = {
        "device": kind,
        "devices": len(devices),
        "parameters_per_device": _size(ARRAY),
        "by_dtype": {},
        "models": {},
    }
    made = transformations(quick)
    for dtype in DTYPES:
        label = f"{len(devices)} × {kind}, {dtype}"
        rows = _rows(made, ARRAY, dtype, devices, label, show)
        found["by_dtype"][dtype] = rows
    if quick:
        return found
    cells = [
        (
            name,
            chains.layer(),
            dtype,
            {BASE: chains.of_optax(c), "ours": chains.ours(c)},
        )
        for name, c in CHAINS.items()
        for dtype in DTYPES
    ]
    if devices[0].platform == "gpu" and len(devices) == 1:
        few = {name: made[name] for name in (BASE, "ours", "ours-uint8")}
        cells += [(name, SHAPES[name](), DTYPES[0], few) for name in MODELS]
    for name, shapes, dtype, rows in cells:
        label = f"{name}, {dtype}"
        found["models"][label] = {
            "parameters": _size(shapes),
            "leaves": len(shapes),
            "rows": _rows(rows, shapes, dtype, devices, f"{label} on {kind}", show),
        }
    return found


def facts(
    tx: optax.GradientTransformation,
    dtype: str,
    devices: Any,
    shapes: Shapes = ARRAY,
) -> dict[str, Any]:
    """Returns what the compiler says of a step over parameters on all devices.

    Args:
      tx: the transformation.
      dtype: of parameters and gradients.
      devices: of one of `targets`.
      shapes: of the leaves on each device, which are split along their first axis.
    """
    mesh = Mesh(np.asarray(devices), ("devices",))

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("devices") if leaf.ndim else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = [
        jax.ShapeDtypeStruct((rows * len(devices), *rest), jnp.dtype(dtype))
        for rows, *rest in shapes
    ]
    state = jax.eval_shape(tx.init, params)
    arguments = jax.tree.map(placed, (params, state, params))
    lowered = jax.jit(step_of(tx), donate_argnums=(0, 1)).lower(*arguments)
    compiled = targets.compiled(lowered, devices)
    text = compiled.as_text() or ""
    size = _size(shapes)
    kernels = programs.kernels(text)
    large = [k for k in kernels if k.elements >= min(map(np.prod, shapes))]
    # The CUDA plugin counts no costs, and all that a kernel names it moves once.
    cost: Any = compiled.cost_analysis() or {
        "bytes accessed": sum(kernel.bytes for kernel in kernels)
    }
    memory: Any = compiled.memory_analysis()
    per_parameter = sum(storage.sizes(state).values()) / (size * len(devices))
    return {
        "bytes_per_parameter": cost["bytes accessed"] / size,
        "limit": 3 * jnp.dtype(dtype).itemsize + 2 * round(per_parameter, 6),
        "kernels": len(large),
        "small_kernels": len(kernels) - len(large),
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_per_device": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "collectives": programs.collectives(text).total(),
        "cycles": programs.estimated_cycles(text),
    }


def _rows(
    made: dict[str, optax.GradientTransformation],
    shapes: Shapes,
    dtype: str,
    devices: Any,
    label: str,
    show: Show,
) -> dict[str, Any]:
    found = {}
    with show(label, len(made)) as on_step:
        for index, (name, tx) in enumerate(made.items()):
            found[name] = facts(tx, dtype, devices, shapes)
            on_step(index + 1)
    if base := found[BASE]["cycles"]:
        for row in found.values():
            row["cycles_ratio"] = row["cycles"] / base
    return found


def _size(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)
