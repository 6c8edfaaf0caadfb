"""What follows a stream: ours in every dtype, nearest rounding, bitsandbytes."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import scale_by_rms, storage

Advance = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From gradients [steps, coordinates] to the updates and nu, each of that shape."""

OURS = ("float32", "bfloat16", "uint16", "uint8")
NEAREST = ("bfloat16 nearest", "uint8 nearest")
PEERS = ("bitsandbytes", "bitsandbytes mixed")
"""With neighbours of one scale, which is kind to blocks, and with all scales mixed."""


def names() -> list[str]:
    """Returns the names of what can run here."""
    found = all(map(importlib.util.find_spec, ("torch", "bitsandbytes")))
    return [*OURS, *NEAREST, *(PEERS if found else ())]


def make(name: str, decay: float, coordinates: int) -> Advance:
    """Returns what follows a stream from nu = 0, with a state of its own."""
    if name in PEERS:
        order = np.arange(coordinates)
        if name.endswith("mixed"):
            order = np.random.default_rng(0).permutation(order)
        return _bitsandbytes(decay, order)
    init, advance = _compiled(name, decay)
    state = init(jnp.zeros(coordinates))

    def resume(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal state
        state, (u, nu) = advance(state, gradients)
        return np.asarray(u), np.asarray(nu)

    return resume


@functools.cache
def _compiled(name: str, decay: float) -> tuple[Any, Any]:
    """Returns the initial state and the program over a stretch of gradients."""
    dtype, _, nearest = name.partition(" ")
    tx = scale_by_rms(decay, eps=0.0, nu_dtype=dtype)

    def ours(state: Any, g: jax.Array) -> Any:
        u, state = tx.update(g, state)
        nu = storage.decode(jnp.asarray(state.nu))
        return state, (u, nu.astype(jnp.float32))

    def to_nearest(stored: jax.Array, g: jax.Array) -> Any:
        nu = storage.decode(stored).astype(jnp.float32)
        nu = decay * nu + (1 - decay) * g * g
        u = jnp.where(g == 0, 0, g / jnp.sqrt(nu))
        stored = storage.nearest(nu, like=stored)
        return stored, (u, storage.decode(stored).astype(jnp.float32))

    step = to_nearest if nearest else ours
    advance = jax.jit(lambda state, gradients: jax.lax.scan(step, state, gradients))
    if nearest:
        return lambda like: jnp.zeros(like.shape, dtype), advance
    return tx.init, advance


def _bitsandbytes(decay: float, order: np.ndarray) -> Advance:
    """Follows with `bitsandbytes.optim.RMSprop8bit`, the coordinates in some order.

    It stores nu as codes of nu / the largest nu of a block, 256 coordinates.
    """
    torch, bitsandbytes = map(importlib.import_module, ("torch", "bitsandbytes"))
    torch.set_num_threads(1)  # more are slower for so few numbers
    parameter = torch.zeros(len(order), requires_grad=True)
    optimizer: Any = bitsandbytes.optim.RMSprop8bit(
        [parameter], lr=1.0, alpha=decay, eps=1e-30, min_8bit_size=1
    )

    def advance(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        us, nus = np.empty_like(gradients), np.empty_like(gradients)
        for step, g in enumerate(gradients[:, order]):
            parameter.data.zero_()
            parameter.grad = torch.from_numpy(g)
            optimizer.step()
            state = optimizer.state[parameter]
            largest = state["absmax1"].repeat_interleave(256)[: len(order)]
            us[step, order] = -parameter.data.numpy()
            nu = state["qmap1"][state["state1"].long()] * largest
            nus[step, order] = nu.numpy()
        return us, nus

    return advance
