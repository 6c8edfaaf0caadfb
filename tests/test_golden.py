"""The trajectories that `optax.rmsprop` itself took, as recorded in tests/golden."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import rmsprop
from table import x64

pytestmark = pytest.mark.optimized

FOLDER = Path(__file__).parent / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())
TOLERANCE = {"float64": 1e-12, "float32": 4e-6}


def relative_error(actual, expected):
    """The largest error of an element, relative to its largest value in the run."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert np.isfinite(actual).all()
    error, size = np.abs(actual - expected).max(0), np.abs(expected).max(0)
    return np.max(error / np.where(size == 0, 1e-300, size))


@pytest.mark.parametrize("case", INDEX["cases"], ids=lambda case: case["id"])
def test_trajectory_and_accumulators_are_optax_s(case):
    dtype = case["dtype"]
    with np.load(FOLDER / "streams.npz") as streams, np.load(FOLDER / "optax.npz") as z:
        stream = f"{case['stream']}|{dtype}|"
        params, grads = streams[stream + "params0"], streams[stream + "grads"]
        expected, rates = z[f"{case['id']}|params"], z[f"{case['id']}|lr"]
        ends = {name: z[f"{case['id']}|{name}"] for name in case["accumulators"]}
    with x64(dtype):
        options = {**case["native_kwargs"]}
        if case["schedule"] != "const":
            options["learning_rate"] = lambda count: jnp.asarray(rates)[count]
        tx = rmsprop(**options)

        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.asarray(params)  # flat: one kernel where a leaf each would be three
        (_, state), path = jax.lax.scan(
            step, (start, tx.init(start)), jnp.asarray(grads)
        )
    assert path.dtype == dtype
    assert relative_error(path, expected[1:]) <= TOLERANCE[dtype]

    # What Optax stores: E[g²], before bias correction, and the negated momentum.
    debias = 1 - case["native_kwargs"]["decay"] ** len(grads)
    scale = debias if case["native_kwargs"].get("bias_correction") else 1
    squares = scale * np.asarray(state[0].nu, float)
    if state[0].mu is not None:
        squares += np.square(np.asarray(state[0].mu, float))
    accumulators = {"v": squares, "mg": state[0].mu}
    if "mom" in ends:
        accumulators["mom"] = state[2].trace
    for name, end in ends.items():
        # An average of gradients of both signs keeps fewer digits.
        error = relative_error([accumulators[name]], [end])
        assert error <= 10 * TOLERANCE[dtype], name
