"""The RMSProp of other frameworks, where they are installed."""

import importlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .timing import Running

RATE, DECAY = 1e-4, 0.99
"""Of every optimizer."""


def torch_start(
    foreach: bool, compile: bool = False
) -> Callable[[list[jax.Array]], Running]:
    """Returns the start of `torch.optim.RMSprop`."""

    def start(grads: list[jax.Array]) -> Running:
        torch: Any = importlib.import_module("torch")
        options = {"lr": RATE, "alpha": DECAY, "foreach": foreach}
        optimizer = torch.optim.RMSprop(_torch_parameters(torch, grads), **options)
        step = optimizer.step
        if compile:
            # As slow as the first time, each time.
            importlib.import_module("torch._inductor.config")
            torch._inductor.config.force_disable_caches = True
            torch._dynamo.reset()
            torch._logging.set_logs(all=logging.ERROR)
            step = torch.compile(step)
        return _running(torch, optimizer, step, compile)

    return start


def bitsandbytes_start(grads: list[jax.Array]) -> Running:
    """Starts bitsandbytes' `RMSprop8bit`; small leaves stay in float32 there."""
    torch, bitsandbytes = map(importlib.import_module, ("torch", "bitsandbytes"))
    parameters = _torch_parameters(torch, grads)
    optimizer = bitsandbytes.optim.RMSprop8bit(parameters, lr=RATE, alpha=DECAY)
    return _running(torch, optimizer, optimizer.step)


def keras_rmsprop(grads: list[jax.Array]) -> tuple[Any, list[Any], list[Any]]:
    """Returns Keras's optimizer on its JAX backend, its state, and parameters.

    Raises:
      RuntimeError: if Keras has started with another backend.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        raise RuntimeError("Keras does not run on JAX: KERAS_BACKEND says otherwise")
    optimizer = keras.optimizers.RMSprop(RATE, rho=DECAY)
    variables = [keras.Variable(jnp.ones_like(g)) for g in grads]
    optimizer.build(variables)
    state = [jnp.copy(variable.value) for variable in optimizer.variables]
    # Its variables are filled and freed: only what is donated stays.
    return optimizer, state, [jnp.copy(variable.value) for variable in variables]


def _torch_parameters(torch: Any, grads: list[jax.Array]) -> list[Any]:
    """Returns parameters of one, whose gradients share the memory of JAX's."""
    parameters = []
    for g in grads:
        gradient = torch.from_dlpack(g)
        parameter = torch.ones_like(gradient, requires_grad=True)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def _running(torch: Any, optimizer: Any, step: Any, timed: bool = False) -> Running:
    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    began = time.perf_counter()
    step()  # makes the state
    wait()
    seconds = time.perf_counter() - began if timed else 0.0
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        # Of bitsandbytes: one table for all.
        if torch.is_tensor(value) and not name.startswith("qmap")
    ]
    return Running(
        advance=step,
        wait=wait,
        state_bytes=sum(x.numel() * x.element_size() for x in tensors),
        compile_seconds=seconds,
    )
