"""The frameworks that are installed, side by side with their dialects, at random."""

import functools
import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from golden import record
from golden.record import INDEX, RATES, TOLERANCE
from golden.replay import replay, transformation
from table import x64

pytestmark = [pytest.mark.optimized, pytest.mark.filterwarnings("ignore")]

KERAS_BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")  # one to a process
TORCH = "lr alpha eps weight_decay momentum centered"
KERAS = "learning_rate rho epsilon momentum centered"
ARGUMENTS = {  # that are drawn
    "torch": f"{TORCH} maximize foreach",
    "timm": f"{TORCH} decoupled_decay corrected_weight_decay lr_in_momentum caution",
    "sb3": TORCH,
    "bnb32": "lr alpha eps weight_decay momentum",
    "mlx": "learning_rate alpha eps",
    "paddle": f"{KERAS} weight_decay",  # before TensorFlow: see below
    "tf1": "learning_rate decay epsilon momentum centered",
    "keras": f"{KERAS} weight_decay clipping",
    "tf_keras_legacy": f"{KERAS} clipping clipvalue decay_of_rate",
    "optax": "learning_rate decay eps momentum centered initial_scale eps_in_sqrt "
    "nesterov bias_correction",
    "jax_example": "step_size gamma eps momentum",
}
PACKAGES = {
    "torch": ["torch"],
    "timm": ["torch", "timm"],
    "sb3": ["torch", "stable_baselines3"],
    "bnb32": ["torch", "bitsandbytes"],
    "mlx": ["mlx"],
    "paddle": ["paddle"],
    "tf1": ["tensorflow"],
    "keras": ["keras", KERAS_BACKEND],
    "tf_keras_legacy": ["tensorflow", "tf_keras"],
    "optax": ["optax"],
    "jax_example": ["jax"],
}
DECAYS = "alpha", "rho", "decay", "gamma"  # what frameworks call the decay
FLOAT32_ONLY = "bnb32", "mlx"
STEPS = 25


def draw_argument(name, rng):
    """A value that a run may have, or None for the framework's default."""
    if name in RATES:
        return 10 ** rng.uniform(-4, -1.5)
    if rng.random() < 0.4:
        return None
    if name in DECAYS:
        near_one = rng.random() < 0.5
        return 1 - 10 ** rng.uniform(-3, -0.3) if near_one else rng.uniform(0.02, 1)
    if name in ("eps", "epsilon"):
        return 10 ** rng.uniform(-10, -2)
    if name == "momentum":
        return rng.uniform(0.05, 0.98)
    if name == "clipvalue":
        return 10 ** rng.uniform(-2, 1)
    if name in ("weight_decay", "initial_scale", "decay_of_rate"):
        return 10 ** rng.uniform(-4, -0.5)
    return bool(rng.random() < 0.6)


def draw_options(names, rng):
    options = {}
    for name in names.split():
        if name == "clipping":
            kinds = ["clipvalue", "clipnorm", "global_clipnorm"]
            if KERAS_BACKEND == "torch":  # where Keras rounds the norm to float32
                kinds = ["clipvalue"]
            name = rng.choice(kinds)
            value = 10 ** rng.uniform(-2, 1) if rng.random() < 0.4 else None
        else:
            value = draw_argument(name, rng)
        options[str(name)] = value
    if not options.get("momentum"):
        options.pop("nesterov", None)
    if options.get("centered"):  # Optax's first variance is then its rounding error
        options.pop("bias_correction", None)
    return {name: value for name, value in options.items() if value is not None}


def draw_stream(dtype, rng):
    """Parameters, and gradients of scales from 1e-6 to 1e3 with exact zeros."""
    size = sum(int(np.prod(shape)) for shape in INDEX["leaves"].values())
    scales = 10 ** rng.uniform(-6, 3, size) * 10 ** rng.uniform(-1, 1, (STEPS, 1))
    grads = rng.normal(0.3, 1, (STEPS, size)) * scales
    grads[rng.random(grads.shape) < 0.1] = 0
    return rng.normal(size=size).astype(dtype), grads.astype(dtype)


def draw_rates(peak, rng):
    """The learning rate of each step, at most `peak`, or None for a constant one."""
    kind = rng.choice(["constant", "decay", "warmup", "any"])
    if kind == "constant":
        return None
    if kind == "any":
        return peak * rng.random(STEPS)
    falling = peak * rng.uniform(0.8, 0.99) ** np.arange(STEPS)
    return falling if kind == "decay" else np.minimum(falling, falling[::-1])


def both(framework, options, rates):
    """Functions from parameters and gradients to the path: a framework's, a dialect's.

    Keras may run on JAX, so both need its 64-bit mode.
    """
    options, runner, own = dict(options), record.RUNNERS[framework], {}
    if "decay_of_rate" in options:
        options["decay"] = options.pop("decay_of_rate")
    floats = framework == "tf1" and rates is not None  # as good as a random choice
    if framework == "tf1":
        options = {"decay": 0.9, "epsilon": 1e-10} | options  # its defaults are floats
        runner = functools.partial(record.tf1, hyper_as_python_float=floats)
    if framework == "keras":
        runner, own = record.keras, {"backend": KERAS_BACKEND}
    if options.get("corrected_weight_decay"):
        own = {"max_lr_snapshot": options["lr"]}
    leafwise = "caution" in options or "clipnorm" in options

    def theirs(params, grads):
        with x64(params.dtype.name):
            return record.run(runner, options, params, grads, rates)[0]

    def ours(params, grads):
        with x64(params.dtype.name):
            tx = transformation(framework, options | own, rates, floats)
            return replay(tx, params, grads, leafwise)[0]

    return theirs, ours


@pytest.fixture
def framework(request):
    for package in PACKAGES[request.param]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    loaded = sys.modules
    if request.param == "paddle" and "tensorflow" in loaded and "paddle" not in loaded:
        pytest.skip("Paddle crashes when it is imported after TensorFlow")
    return request.param


def promoting(framework):
    """Optax promotes dtypes implicitly, the dialects never do."""
    marks = [pytest.mark.promotion] if framework == "optax" else []
    return pytest.param(framework, marks=marks)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("framework", [*map(promoting, ARGUMENTS)], indirect=True)
def test_dialect_takes_the_steps_of_the_framework(framework, dtype, seed):
    if dtype == "float64" and framework in FLOAT32_ONLY:
        pytest.skip(f"{framework} has float32 only")
    rng = np.random.default_rng([seed, *framework.encode()])
    options = draw_options(ARGUMENTS[framework], rng)
    (peak,) = (options[name] for name in RATES if name in options)
    rates = draw_rates(peak, rng)
    params, grads = draw_stream(dtype, rng)
    theirs, ours = both(framework, options, rates)
    expected, actual = theirs(params, grads), ours(params, grads)
    assert actual.dtype == expected.dtype == dtype
    assert not np.array_equal(expected[0], expected[-1])
    error, allowed = record.relative_error(actual, expected), TOLERANCE[dtype]
    if dtype == "float32" and error > allowed:
        # Some runs magnify rounding: E[g²] − m² and 1 − decayᵗ cancel, weight decay may
        # outweigh the gradients. How much, float64 shows.
        runner = ours if framework in FLOAT32_ONLY else theirs
        exact = runner(params.astype(float), grads.astype(float))
        allowed = 4 * record.relative_error(expected, exact)
    assert error <= allowed, (options, rates)


def test_every_framework_is_compared():
    assert ARGUMENTS.keys() == PACKAGES.keys()
    assert ARGUMENTS.keys() == INDEX["frameworks"].keys() - {"keras_torch"}


@pytest.mark.parametrize("framework", ["torch", "timm", "keras"], indirect=True)
def test_recorded_again_the_runs_are_those_in_the_folder(framework):
    if framework == "keras" and KERAS_BACKEND != "tensorflow":
        pytest.skip("these runs were recorded with Keras's TensorFlow backend")
    cases = [case for case in record.CASES if case["framework"] == framework]
    for case in cases[:: len(cases) // 8]:
        path_error, end_error = record.differences(case, *record.record(case))
        assert path_error <= TOLERANCE[case["dtype"]], case["id"]
        assert end_error <= 10 * TOLERANCE[case["dtype"]], case["id"]
