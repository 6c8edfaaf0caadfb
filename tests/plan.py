"""Does a large model fit? The whole update, compiled for TPUs ahead of time.

It makes notebooks/results/plan.json, which notebook 6 shows:
`python tests/plan.py notebooks/results`. That takes libtpu, and hours.
"""

import argparse
import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax import rmsprop, sharding, storage
from rmsprop_jax.bench import programs, targets
from rmsprop_jax.bench.peers import DECAY, RATE
from rmsprop_jax.lab import results

CHIPS = (16, 64, 256)

TOPOLOGIES = {
    "v5e": ("v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "v6e": ("v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "v5p": ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8"),
}
"""Of as many chips each; what fits into one generation's memory fits into the next."""


class Model(NamedTuple):
    """The dimensions of a decoder; no biases, embedding and head are two matrices."""

    layers: int
    width: int
    hidden: int  # of the feed-forward layer
    key_value: int  # width of all keys, and of all values
    vocabulary: int
    gated: bool  # three feed-forward matrices rather than two
    source: str


MODELS = {
    "7B": Model(32, 4096, 11_008, 4096, 32_000, True, "Llama 2 7B"),
    "70B": Model(80, 8192, 28_672, 1024, 32_000, True, "Llama 2 70B"),
    "400B": Model(126, 16_384, 53_248, 1024, 128_256, True, "Llama 3.1 405B"),
    "1T": Model(128, 25_600, 102_400, 25_600, 51_200, False, "Megatron-LM 1T"),
}

TOY = {"toy": Model(2, 1024, 4096, 1024, 1024, True, "made up")}

DTYPES = ("bfloat16", "float32")
"""Of parameters and gradients."""

LAYOUTS = {
    "replicated": "all on every chip, gradients all-reduced",
    "ZeRO": "state split by `zero`, gradients reduce-scattered, updates all-gathered",
    "fully sharded": "parameters, gradients and state split over all chips",
}

WHOLES = {"replicated": 2, "ZeRO": 2, "fully sharded": 3}
"""How often as many bytes as all parameters have cross a chip's wires in a step, but
for 1 / chips: an all-reduce is a reduce-scatter and an all-gather. Fully sharded,
parameters are gathered forwards and again backwards, and gradients reduce-scattered."""


def shapes(model: Model, dtype: Any) -> dict[str, Any]:
    """Returns abstract parameters; those of all layers are stacked, as for a scan."""
    width, hidden, key_value = model.width, model.hidden, model.key_value
    layers = {
        "query": (width, width), "key": (width, key_value), "value": (width, key_value),
        "out": (width, width), "up": (width, hidden), "down": (hidden, width),
        "norm_attention": (width,), "norm_mlp": (width,),
    }  # fmt: skip
    if model.gated:
        layers["gate"] = (width, hidden)
    tree = {
        "embedding": (model.vocabulary, width), "norm": (width,),
        "head": (width, model.vocabulary),
        "layers": {name: (model.layers, *shape) for name, shape in layers.items()},
    }  # fmt: skip
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `tx` with state and arithmetic in float32; Optax's follow parameters."""

    def init(params: Any) -> Any:
        return tx.init(optax.tree.cast(params, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        wide = optax.tree.cast(updates, jnp.float32)
        found, state = tx.update(wide, state, params)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), found, updates), state

    return optax.GradientTransformation(init, update)


OPTIMIZERS = {
    "Adam, float32": in_float32(optax.adam(RATE)),
    "ours, float32": rmsprop(RATE, DECAY),
    "ours, one byte": rmsprop(RATE, DECAY, nu_dtype="uint8"),
}


def arithmetic(
    params: Any, tx: optax.GradientTransformation, layout: str, chips: int
) -> dict[str, int]:
    """Returns the bytes of a chip, and on its wires, by what they should be."""
    whole = sum(storage.sizes(params).values())
    state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    held = whole / chips if layout == "fully sharded" else whole
    scalars = sum(x.dtype.itemsize for x in state if not x.ndim)
    arrays = sum(math.prod(x.shape) * x.dtype.itemsize for x in state if x.ndim)
    return {
        "parameters": round(held),
        "gradients": round(held),
        "state": round(arrays if layout == "replicated" else arrays / chips) + scalars,
        "wire": round(WHOLES[layout] * (chips - 1) / chips * whole),
    }


def mesh_of(name: str) -> Mesh:
    """Returns a mesh with an axis for each dimension of a topology such as v5e:4x4."""
    devices = targets.tpu(name)
    sizes = tuple(map(int, name.split(":")[1].split("x")))
    grid = np.empty(sizes, object)
    for device in devices:
        grid[tuple(device.coords[: len(sizes)])] = device
    return Mesh(grid, tuple("xyz"[: len(sizes)]))


def capacity(name: str) -> int:
    """Returns the bytes of memory of one chip, which the compiler says if asked."""
    whole = NamedSharding(mesh_of(name), PartitionSpec())
    too_large = jax.ShapeDtypeStruct((2**30, 1024), jnp.float32, sharding=whole)
    try:
        jax.jit(lambda x: x + 1).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+)G\)", str(error)):
            return int(float(found[1]) * 2**30)
        raise
    raise AssertionError(f"a chip of {name} holds 4 TiB")


def argument_sizes(text: str) -> list[int]:
    """Returns the bytes of each argument of a compiled program, on one device."""
    signature = re.search(r"entry_computation_layout=\{\((.*?)\)->", text)
    assert signature, "a compiled program has no signature"
    return [size for _, size in programs.arrays(signature[1])]


def planned(
    layout: str,
    tx: optax.GradientTransformation,
    params: Any,
    chips: int,
    topologies: dict[str, str],
    capacity: dict[str, int],
) -> dict[str, Any]:
    """Returns the bytes of a chip, and into which of these memories they fit.

    Args:
      layout: one of `LAYOUTS`.
      tx: the optimizer.
      params: abstract parameters.
      chips: how many.
      topologies: the topology to compile for, by generation.
      capacity: the bytes of memory of a chip, by generation, from small to large.

    Returns:
      A dictionary of arithmetic, of what was compiled (for the first generation that
      holds it) or None, and of the verdict for each generation with its reason.
    """
    expected = arithmetic(params, tx, layout, chips)
    held = sum(expected[name] for name in ("parameters", "gradients", "state"))
    compiled, fits = None, {}
    for name, room in capacity.items():
        if compiled:
            fits[name] = {"fits": True, "by": f"as {compiled['topology']}"}
        elif held > room:
            fits[name] = {"fits": False, "by": "arithmetic"}
        else:
            program = lowered(layout, tx, params, mesh_of(topologies[name]))
            try:
                found = facts(program.compile(), params)
                compiled = {"topology": topologies[name]} | found
                fits[name] = {"fits": True, "by": "compiler"}
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
                fits[name] = {"fits": False, "by": "compiler", "message": reason}
    return {"arithmetic": expected, "compiled": compiled, "fits": fits}


def lowered(
    layout: str, tx: optax.GradientTransformation, params: Any, mesh: Mesh
) -> Any:
    """Returns the program of update and application, not compiled.

    Its arguments are parameters, state, and gradients of each chip's own examples.
    """
    split = partial(_split, mesh)
    if layout == "fully sharded":
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: split(p, 1 if "layers" in str(path) else 0), params
        )
        at = sharding.state_sharding(tx, params)
        state = jax.tree.map(_at, jax.eval_shape(tx.init, params), at)
        arguments, step = (params, state, params), partial(_step, tx)
    else:
        axes = mesh.axis_names
        params = jax.tree.map(split, params)
        if layout == "ZeRO":
            state, tx = sharding.zero_state(tx, params, axes), sharding.zero(tx, axes)
        else:
            state = jax.tree.map(split, jax.eval_shape(tx.init, params))
            tx = _averaged(tx, axes)
        # In one array, those of each chip: it may not know that they are different.
        each = jax.tree.map(
            lambda p: split(jax.ShapeDtypeStruct((mesh.size, *p.shape), p.dtype), 0),
            params,
        )
        arguments = (params, state, each)
        specs = sharding.specs(arguments)

        def own(params: Any, state: Any, grads: Any) -> Any:
            return _step(tx, params, state, jax.tree.map(lambda g: g[0], grads))

        step = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=specs[:2])
    out = jax.tree.map(lambda leaf: leaf.sharding, arguments[:2])
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=out, keep_unused=True)
    return jitted.lower(*arguments)


def facts(compiled: Any, params: Any) -> dict[str, int]:
    """Returns the bytes of a chip in a compiled program of `lowered`."""
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    sizes = argument_sizes(text)
    leaves = len(jax.tree.leaves(params))
    return {
        "parameters": sum(sizes[:leaves]),
        "gradients": sum(sizes[-leaves:]),
        "state": sum(sizes[leaves:-leaves]),
        "with_padding": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives": programs.collectives(text).total(),
    }


def _step(tx: Any, params: Any, state: Any, grads: Any) -> Any:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def _averaged(tx: Any, axes: tuple[str, ...]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return tx.update(jax.lax.pmean(updates, axes), state, params)

    return optax.GradientTransformation(tx.init, update)


def _split(mesh: Mesh, leaf: Any, dimension: int | None = None) -> Any:
    """Returns an abstract array that all chips share along a dimension, or have."""
    spec = () if dimension is None else (*[None] * dimension, mesh.axis_names)
    return _at(leaf, NamedSharding(mesh, PartitionSpec(*spec)))


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def measured(dtype: str, quick: bool) -> dict[str, Any]:
    """Returns what a chip holds of every model, layout, optimizer and slice.

    Args:
      dtype: of parameters and gradients.
      quick: a toy on 16 chips, to see that it runs.
    """
    models = TOY if quick else MODELS
    rooms = {name: capacity(at[0]) for name, at in TOPOLOGIES.items()}
    # Half the time of the compiler; the memory is the same within 0.1 %.
    jax.config.update("jax_optimization_level", "O1")
    found: dict[str, Any] = {
        "settings": {
            "dtype": dtype, "layouts": LAYOUTS, "wholes_on_wires": WHOLES,
            "capacity": rooms, "topologies": TOPOLOGIES, "optimization_level": "O1",
        },
        "models": {}, "rows": [],
    }  # fmt: skip
    for name, model in models.items():
        params = shapes(model, dtype)
        found["models"][name] = model._asdict() | {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))
        }
        for layout, chips, optimizer in _cells(CHIPS[:1] if quick else CHIPS):
            at = {gen: TOPOLOGIES[gen][CHIPS.index(chips)] for gen in rooms}
            cell = {"layout": layout, "chips": chips, "optimizer": optimizer}
            planned_cell = planned(
                layout, OPTIMIZERS[optimizer], params, chips, at, rooms
            )
            found["rows"].append({"model": name} | cell | planned_cell)
    return found


def _cells(counts: tuple[int, ...]) -> Iterator[tuple[str, int, str]]:
    """Yields layouts, chips and optimizers; a replica is the same on any number."""
    for layout in LAYOUTS:
        for chips in counts[:1] if layout == "replicated" else counts:
            for optimizer in OPTIMIZERS:
                yield layout, chips, optimizer


def main() -> None:
    """Writes plan.json into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--quick", action="store_true")
    arguments, began = parser.parse_args(), time.perf_counter()
    found = measured(arguments.dtype, arguments.quick)
    seconds = time.perf_counter() - began
    content = results.content("plan", found, arguments, seconds)
    results.write(arguments.out, "plan", content)


if __name__ == "__main__":
    main()
