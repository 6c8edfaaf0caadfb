"""The paths that the frameworks themselves took, as recorded in tests/golden."""

import inspect
import json

import jax.numpy as jnp
import numpy as np
import pytest

from golden import record
from golden.record import (
    CASES,
    FOLDER,
    INDEX,
    TOLERANCE,
    arrays,
    differences,
    rates,
    stream,
)
from golden.replay import accumulators, replay, transformation
from rmsprop_jax import dialects, rmsprop
from table import x64

pytestmark = [
    pytest.mark.optimized,
    pytest.mark.filterwarnings("ignore:bitsandbytes' RMSprop accepts `momentum`"),
]
FRAMEWORKS = INDEX["frameworks"]


def assert_taken(case, tx, compiled, wide):
    """The steps of a case are those of the framework, and so is what they leave."""
    options = case["native_kwargs"]
    with x64("float64" if wide else "float32"):
        path, steps, state = replay(
            tx(), *stream(case), leafwise="caution" in options, compiled=compiled
        )
    assert path.dtype == case["dtype"]
    ends = accumulators(state, steps[-1])
    outside = case["framework"] in ("torch", "sb3")
    if options.get("lr_in_momentum", not outside) and case["framework"] != "optax":
        ends["mom"] = -ends["mom"]  # a step, which Optax adds and the others subtract
    if options.get("bias_correction"):  # Optax keeps the averages without it
        ends["v"] *= 1 - options["decay"] ** len(steps)
    path_error, end_error = differences(case, path, ends)
    assert path_error <= TOLERANCE[case["dtype"]]
    assert end_error <= 10 * TOLERANCE[case["dtype"]]


def dialect(case):
    floats = case.get("hyper_as_python_float", False)
    return lambda: transformation(
        case["framework"], case["native_kwargs"], rates(case), floats
    )


def by_id(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["id"])


def fullest(dtype):
    """For each framework, the case of a dtype that uses most of its options."""
    best = {}
    for case in CASES:
        if case["dtype"] == dtype:
            of = best.setdefault(case["framework"], case)
            if len(case["native_kwargs"]) > len(of["native_kwargs"]):
                best[case["framework"]] = case
    return list(best.values())


@by_id(CASES)
def test_dialect_takes_the_framework_s_path(case):
    assert_taken(case, dialect(case), compiled=False, wide=case["dtype"] == "float64")


@by_id(fullest("float64") + fullest("float32"))
def test_compiled_dialect_takes_the_framework_s_path(case):
    assert_taken(case, dialect(case), compiled=True, wide=case["dtype"] == "float64")


@by_id(fullest("float32"))
def test_float32_takes_the_same_path_in_64_bit_mode(case):
    assert_taken(case, dialect(case), compiled=False, wide=True)


@by_id([case for case in CASES if case["framework"] == "optax"])
def test_compiled_rmsprop_takes_optax_s_path(case):
    def tx():
        options, each = case["native_kwargs"], rates(case)
        if each is not None:
            options = options | {
                "learning_rate": lambda count: jnp.asarray(each)[count]
            }
        return rmsprop(**options)

    assert_taken(case, tx, compiled=True, wide=case["dtype"] == "float64")


def test_every_case_is_tested_and_every_recorded_array_belongs_to_one():
    (cases,) = (
        mark.args[1] for mark in test_dialect_takes_the_framework_s_path.pytestmark
    )
    listed = json.loads((FOLDER / "index.json").read_text())["cases"]
    assert cases == listed
    for framework in FRAMEWORKS:
        own = [case for case in cases if case["framework"] == framework]
        expected = [
            f"{case['id']}|{name}"
            for case in own
            for name in (
                "params",
                *case["accumulators"],
                *["lr"] * (case["schedule"] != "const"),
            )
        ]
        assert own
        assert sorted(arrays(framework)) == sorted(expected)


def test_every_framework_has_a_dialect_and_every_dialect_of_a_framework_a_recording():
    recorded = {framework["dialect"] for framework in FRAMEWORKS.values()}
    papers = {
        name
        for name, function in dialects.DIALECTS.items()
        if inspect.unwrap(function).__module__ == "rmsprop_jax.dialects._papers"
    }
    assert papers == {"graves", "hinton", "impala", "nature_dqn"}
    assert recorded == set(dialects.DIALECTS) - papers
    assert {case["framework"] for case in CASES} == set(FRAMEWORKS)


def test_a_first_recording_is_the_one_in_the_folder(tmp_path):
    framework = "jax_example"
    recorded = arrays(framework)
    with x64("float64"):
        record.record_new(framework, tmp_path)
    with np.load(tmp_path / f"{framework}.npz") as file:
        assert set(file) == set(recorded)
        for name in file:
            np.testing.assert_allclose(file[name], recorded[name], rtol=1e-3, atol=1e-6)
