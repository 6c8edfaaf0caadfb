"""A step is compiled once, wherever parameters are; counted in XLA, not in caches."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import decay, diagnostics, dialects, rmsprop, rounding, scale_by_rms

SCHEDULE = optax.cosine_decay_schedule(0.1, 10)

TRANSFORMATIONS = {
    "plain": lambda: rmsprop(0.1),
    "scale_by_rms": scale_by_rms,
    "momentum": lambda: rmsprop(0.1, momentum=0.9, nesterov=True),
    "schedule": lambda: rmsprop(SCHEDULE, decay=decay.power(0.8)),
    "centered": lambda: rmsprop(0.1, centered=True, bias_correction=True),
    "uint8": lambda: rmsprop(0.1, nu_dtype="uint8", momentum=0.9),
    "weight_decay": lambda: rmsprop(
        SCHEDULE, weight_decay=0.1, weight_decay_mode="independent"
    ),
    "cautious": lambda: rmsprop(0.1, momentum=0.9, cautious=True, skip_nonfinite=True),
    "remainder": lambda: rmsprop(0.1, round_params="remainder"),
    "stochastic": lambda: rmsprop(0.1, round_params="stochastic", seed=3),
    "round_params": lambda: optax.chain(optax.sgd(0.1), rounding.round_params()),
    "watch": lambda: diagnostics.watch(rmsprop)(0.1),
    "torch": lambda: dialects.torch(lr=0.1, momentum=0.9, centered=True),
    "keras": lambda: dialects.keras(learning_rate=0.1),
    "timm": lambda: dialects.timm(lr=0.1),
}


def on_mesh(kind, memory=None):
    mesh = jax.make_mesh((4,), ("data",), (kind,), devices=jax.devices()[:4])
    return NamedSharding(mesh, P("data", None), memory_kind=memory)


PLACES = {
    "default": lambda: None,
    "another device": lambda: jax.devices()[2],
    "mesh, Auto": lambda: on_mesh(AxisType.Auto),
    "mesh, Explicit": lambda: on_mesh(AxisType.Explicit),
    "pinned_host": lambda: on_mesh(AxisType.Auto, "pinned_host"),
}


def compilations(tx, place, dtype=jnp.bfloat16):
    """Returns how often XLA compiled in each of the three first steps."""
    found = []

    def heard(name, *_, **__):
        found.append("backend_compile" in name)

    params = {"w": jnp.ones((8, 4), dtype)}
    if place is not None:
        params = jax.device_put(params, place)
    state = tx.init(params)
    kept = jax.tree.map(lambda x: x.sharding, (params, state))

    on_host = getattr(place, "memory_kind", None) == "pinned_host"

    def step(params, state):
        if on_host:  # what waits there is computed with on the device
            params, state = jax.device_put((params, state), jax.memory.Space.Device)
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=kept if on_host else None)
    each = []
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        for _ in range(3):
            found.clear()
            params, state = jax.block_until_ready(step(params, state))
            each.append(sum(found))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    return each


@pytest.mark.promotion  # of optax's schedules
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_a_step_is_compiled_once(make, place):
    assert compilations(make(), place()) == [1, 0, 0]


@pytest.mark.promotion  # of optax's schedules
@pytest.mark.parametrize("place", list(PLACES)[:-1])
def test_injected_hyperparameters_compile_as_often_as_optax_s(place):
    ours, stock = (
        compilations(optax.inject_hyperparams(make)(0.1), PLACES[place]())
        for make in (rmsprop, optax.rmsprop)
    )
    assert ours == stock
