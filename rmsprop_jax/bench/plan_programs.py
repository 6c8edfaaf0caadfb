"""The whole update, compiled for many TPUs: what a chip holds, and whether it fits."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import sharding
from . import programs, targets
from .plan_models import arithmetic


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
    sizes = programs.argument_sizes(text)
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
