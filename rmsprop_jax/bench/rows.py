"""What is measured: a whole step of each optimizer, update and application."""

import dataclasses
import functools
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import rmsprop, storage
from . import peers
from .shapes import Shapes
from .timing import Running

BASE = "optax.rmsprop"
"""The row that ratios are to."""

IN_PLACE = "in place"
"""Not an optimizer: x + 1 over as many bytes, which is what the device can do."""

Start = Callable[[list[jax.Array]], Running]
"""Compiles the step of an optimizer for gradients, and makes parameters and state."""


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer, and what it takes to measure it.

    Attributes:
      start: see `Start`.
      packages: what must be installed.
      slow: whether compiling takes half a minute whatever the shape; it is then
        measured only where one step takes long, unless it is asked for by name.
      quick: whether `--quick` measures it: what imports fast.
      make: the transformation, where it is one of Optax's kind.
      twin: the row of Optax's that has the same options.
    """

    start: Start
    packages: tuple[str, ...] = ()
    slow: bool = False
    quick: bool = True
    make: Callable[[], optax.GradientTransformation] | None = None
    twin: str = BASE


def installed(row: Row) -> bool:
    """Whether the packages that a row needs can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in row.packages)


def gradients(shapes: Shapes) -> list[jax.Array]:
    """Returns gradients, normal but for a period: their values cost no time."""
    tile = np.random.default_rng(0).standard_normal(2**16, np.float32)
    return [
        jnp.asarray(np.resize(tile, math.prod(shape)).reshape(shape))
        for shape in shapes
    ]


def transformation(
    make: Callable[[], optax.GradientTransformation],
    twin: str = BASE,
    quick: bool = True,
) -> Row:
    """Returns the row of a transformation of Optax's kind."""

    def start(grads: list[jax.Array]) -> Running:
        tx = make()
        params = [jnp.ones_like(g) for g in grads]
        return compiled(step_of(tx), params, tx.init(params), grads)

    return Row(start, quick=quick, make=make, twin=twin)


def step_of(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Returns update and application, a new function (params, state, gradients)."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled(step: Any, params: Any, state: Any, *inputs: Any) -> Running:
    """Returns a running step (params, state, *inputs) -> (params, state), donated.

    `step` must be a new function: one that was compiled before would take no time.
    """
    began = time.perf_counter()
    program = jax.jit(step, donate_argnums=(0, 1))
    program = program.lower(params, state, *inputs).compile()
    seconds = time.perf_counter() - began
    carry = params, state
    del params, state

    def advance() -> None:
        nonlocal carry
        carry = program(*carry, *inputs)

    return Running(
        advance=advance,
        wait=lambda: jax.block_until_ready(carry),
        state_bytes=sum(storage.sizes(carry[1]).values()),
        compile_seconds=seconds,
    )


def in_place(grads: list[jax.Array]) -> Running:
    """Starts x + 1 over one array as large as parameters, gradients and `nu`."""
    x = jnp.zeros(3 * sum(g.size for g in grads), jnp.float32)
    return compiled(lambda x, state: (x + 1, state), x, ())


def keras_step(grads: list[jax.Array]) -> Running:
    """Starts Keras's RMSprop, with its state apart from it as in Keras's trainer."""
    optimizer, state, params = peers.keras_rmsprop(grads)

    def step(params: Any, state: Any, grads: Any) -> Any:
        return optimizer.stateless_apply(state, grads, params)

    return compiled(step, params, state, grads)


def bytes_that_must_move(grads: list[jax.Array], state_bytes: int) -> int:
    """Reads parameters, gradients and state, writes parameters and state."""
    return sum(3 * g.nbytes for g in grads) + 2 * state_bytes


_RATE, _DECAY = peers.RATE, peers.DECAY


def _pair(options: str, **arguments: Any) -> dict[str, Row]:
    """Returns ours and Optax's under the same options."""
    theirs = f"optax-{options}"
    return {
        f"ours-{options}": transformation(
            lambda: rmsprop(_RATE, _DECAY, **arguments), twin=theirs
        ),
        theirs: transformation(lambda: optax.rmsprop(_RATE, _DECAY, **arguments)),
    }


def _stored(dtype: str) -> dict[str, Row]:
    make = functools.partial(rmsprop, _RATE, _DECAY, nu_dtype=dtype)
    return {f"ours-{dtype}": transformation(make)}


ROWS: dict[str, Row] = {
    "ours": transformation(lambda: rmsprop(_RATE, _DECAY)),
    BASE: transformation(lambda: optax.rmsprop(_RATE, _DECAY)),
    **_stored("uint8"),
    **_stored("uint16"),
    **_stored("bfloat16"),
    **_pair("centered", centered=True),
    **_pair("momentum", momentum=0.9),
    **_pair("bias", bias_correction=True),
    "ours-flat": transformation(
        lambda: optax.flatten(rmsprop(_RATE, _DECAY)), quick=False
    ),
    "optax.adam": transformation(lambda: optax.adam(_RATE)),
    "optax.sgd": transformation(lambda: optax.sgd(_RATE)),
    "torch-loop": Row(peers.torch_start(foreach=False), ("torch",)),
    "torch-foreach": Row(peers.torch_start(foreach=True), ("torch",)),
    "torch-compiled": Row(
        peers.torch_start(foreach=True, compile=True),
        ("torch",),
        slow=True,
        quick=False,
    ),
    "keras": Row(keras_step, ("keras",), quick=False),
    "bitsandbytes": Row(
        peers.bitsandbytes_start, ("torch", "bitsandbytes"), quick=False
    ),
}
"""By the name that `--rows` takes."""
