"""Malformed calls: every one is an error that names the argument, none is silent.

First each argument of every dialect in turn, in the words of that dialect; then a table
of calls of everything else that is public; then scalars of NumPy and JAX, which are
valid wherever a number is.
"""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmsprop_jax import (
    convert,
    decay,
    diagnostics,
    dialects,
    rmsprop,
    rounding,
    scale_by_rms,
    sharding,
    storage,
)
from rmsprop_jax.checkpoint import Checkpoints

FACTORIES = {
    **dialects.DIALECTS,
    "rmsprop": rmsprop,
    "scale_by_rms": scale_by_rms,
}
NOTHING = ["x", b"x", [0.1], {}, object(), 1j, np.array(["a"]), jnp.ones(2, bool)]
NUMBERS = [float("nan"), float("inf"), -1, lambda: 1, lambda a, b: 1]
# What an argument needs beside it; what is free for the user's own use.
BESIDE = {
    "nesterov": {"momentum": 0.9},
    "cautious": {"momentum": 0.9},
    "caution": {"momentum": 0.9},
    "accumulator_dtype": {"momentum": 0.9},
    "mu_dtype": {"centered": True},
    "weight_decay_mask": {"weight_decay": 0.1},
    "weight_decay_mode": {"weight_decay": 0.1},
    "corrected_weight_decay": {"weight_decay": 0.1, "decoupled_decay": True},
}
FREE = {
    ("bitsandbytes", "args"): NOTHING,
    ("bitsandbytes", "mu_dtype"): NOTHING,  # it has no centring: that is refused first
    **{(name, "name"): ["x"] for name in ("tf1", "keras", "tf_keras", "paddle")},
    **{(name, "weight_decay_mask"): [{}] for name in FACTORIES},
}
# Numbers without a range: they rise, fall, or have no effect.
ANY = {"lr": [-1], "learning_rate": [-1], "step_size": [-1], "seed": [-1]} | dict.fromkeys(
    ("max_lr_snapshot", "min_8bit_size", "ema_momentum", "ema_overwrite_frequency"),
    NUMBERS,
)


def told(name, call, kind=(TypeError, ValueError, NotImplementedError)):
    """Whether a call raises and its error names what is wrong; otherwise what came."""
    try:
        found = call()
    except kind as error:
        text = str(error)
        return None if re.search(rf"`{re.escape(name)}\b", text) else text
    return f"silent: {found!r:.60}"


@pytest.mark.parametrize("dialect", FACTORIES)
def test_every_argument_in_the_words_of_its_dialect(dialect):
    factory = FACTORIES[dialect]
    parameters = inspect.signature(factory).parameters
    needed = {p.name: 0.1 for p in parameters.values() if p.default is p.empty}
    wrong, tried = {}, 0
    for name, parameter in parameters.items():
        beside = BESIDE.get(name, {})
        beside = {key: x for key, x in beside.items() if key in parameters}
        is_number = isinstance(parameter.default, float) or name in needed
        free = FREE.get((dialect, name), [])
        for value in [*NOTHING, *(NUMBERS if is_number else [])]:
            if any(value is x for x in (*free, *ANY.get(name, []))):
                continue
            call = {**needed, **beside, name: value}
            tried += 1
            if said := told(name, lambda: factory(**call)):
                wrong[name, str(value)[:20]] = said
    assert not wrong
    assert tried > 30


SCALARS = (np.float16, np.float32, np.float64, np.longdouble, jnp.float32, jnp.bfloat16)
INTEGERS = (np.int8, np.uint8, np.int64, jnp.int32, jnp.uint8)


@pytest.mark.parametrize("dialect", FACTORIES)
def test_scalars_of_numpy_and_jax_are_numbers(dialect):
    factory = FACTORIES[dialect]
    parameters = inspect.signature(factory).parameters
    needed = {p.name: 0.125 for p in parameters.values() if p.default is p.empty}
    x = jnp.ones(2)

    def step(**call):
        tx = factory(**needed, **call)
        return tx.update(x, tx.init(x), x)[0]

    for name, parameter in parameters.items():
        beside = {k: v for k, v in BESIDE.get(name, {}).items() if k in parameters}
        if isinstance(parameter.default, bool):
            if (dialect, name) in (("bitsandbytes", "centered"), ("keras", "use_ema")):
                continue
            for flag in (np.bool_(True), np.asarray(True), jnp.asarray(True), 1):
                np.testing.assert_array_equal(
                    step(**beside, **{name: flag}), step(**beside, **{name: True})
                )
        elif isinstance(parameter.default, float):
            for kind in (*SCALARS, np.asarray, jnp.asarray):
                step(**beside, **{name: kind(0.25)})
    rate = next(n for n in (*needed, *parameters) if n in ("lr", "learning_rate", "step_size", "decay"))
    needed.pop(rate, None)
    value = 0 if rate == "decay" else 1
    for kind in INTEGERS:
        np.testing.assert_allclose(step(**{rate: kind(value)}), step(**{rate: value}))
