"""Which chips hold a model: the arithmetic, and that what is compiled agrees."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import plan
from rmsprop_jax.lab import results

ROOT = Path(__file__).parent.parent
STORED = ROOT / "notebooks" / "results" / "plan.json"
HELD = ("parameters", "gradients", "state")

# What their authors, or the files of their weights, say; Megatron's has no exact count.
PARAMETERS = {"7B": 6_738_415_616, "70B": 68_976_648_192, "400B": 405_853_388_800,
              "1T": 1_008_000_000_000}  # fmt: skip


@pytest.mark.parametrize("name", plan.MODELS)
def test_models_have_the_parameters_that_they_are_known_for(name):
    params = plan.shapes(plan.MODELS[name], "bfloat16")
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    rel = 2e-3 if name == "1T" else 0
    assert found == pytest.approx(PARAMETERS[name], rel=rel, abs=0)


# Bytes per parameter on each of four chips: parameters, gradients, state, wire.
@pytest.mark.parametrize(
    ("layout", "optimizer", "expected"),
    [
        ("replicated", "Adam, float32", (2, 2, 8, 3)),
        ("replicated", "ours, one byte", (2, 2, 1, 3)),
        ("ZeRO", "Adam, float32", (2, 2, 2, 3)),
        ("ZeRO", "ours, float32", (2, 2, 1, 3)),
        ("fully sharded", "ours, float32", (0.5, 0.5, 1, 4.5)),
        ("fully sharded", "ours, one byte", (0.5, 0.5, 0.25, 4.5)),
    ],
)
def test_bytes_by_arithmetic(layout, optimizer, expected):
    params = {"w": jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)}
    tx = plan.OPTIMIZERS[optimizer]
    found = plan.arithmetic(params, tx, layout, 4)
    counts = [x for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if not x.ndim]
    found["state"] -= 4 * len(counts)  # the number of steps, where it is kept
    assert tuple(x / 8192 for x in found.values()) == expected


@pytest.fixture(scope="module")
def stored():
    return results.read(STORED, "plan")


def test_in_the_stored_results_what_was_compiled_is_what_was_expected(stored):
    assert list(stored["models"]) == list(plan.MODELS)
    assert sum(row["compiled"] is not None for row in stored["rows"]) >= 40
    for row in stored["rows"]:
        compiled, expected = row["compiled"], row["arithmetic"]
        if compiled is None:
            held = sum(expected[name] for name in HELD)
            assert all(held > room for room in stored["settings"]["capacity"].values())
            continue
        for name in HELD:
            assert compiled[name] == pytest.approx(expected[name], rel=1e-6), row
        assert (compiled["collectives"] == 0) == (row["layout"] == "fully sharded")
        room = stored["settings"]["capacity"][compiled["topology"].split(":")[0]]
        assert compiled["with_padding"] + compiled["temporary"] <= room


@pytest.mark.slow
@pytest.mark.parametrize("dtype", plan.DTYPES)
def test_what_is_compiled_is_the_arithmetic(dtype, tmp_path):
    pytest.importorskip("libtpu")
    run = subprocess.run(
        [sys.executable, plan.__file__, "--quick", f"--dtype={dtype}", str(tmp_path)],
        capture_output=True, text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    rows = found["rows"]
    assert len(rows) == len(plan.LAYOUTS) * len(plan.OPTIMIZERS)
    assert found["settings"]["capacity"]["v5e"] == 15.75 * 2**30
    for row in rows:
        compiled, expected = row["compiled"], row["arithmetic"]
        assert {name: compiled[name] for name in HELD} == {
            name: expected[name] for name in HELD
        }
        padding = compiled["with_padding"] - sum(compiled[name] for name in HELD)
        assert 0 <= padding < 2e-3 * compiled["with_padding"]
        assert (compiled["collectives"] == 0) == (row["layout"] == "fully sharded")
        assert row["fits"]["v5e"] == {"fits": True, "by": "compiler"}
        assert row["fits"]["v5p"] == {"fits": True, "by": "as v5e:4x4"}


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.promotion
def test_what_the_compiler_refuses_is_tried_on_larger_chips():
    pytest.importorskip("libtpu")
    # 5 GiB of parameters: with gradients and state 12.5, and averaged gradients 17.5.
    shape = (5 * 2**16, 8192)
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    topologies = {name: of[0] for name, of in plan.TOPOLOGIES.items()}
    rooms = {name: plan.capacity(at) for name, at in topologies.items()}
    tx = plan.OPTIMIZERS["ours, one byte"]
    found = plan.planned("replicated", tx, params, 16, topologies, rooms)
    refused = found["fits"]["v5e"]
    assert (refused["fits"], refused["by"]) == (False, "compiler")
    assert "exceeds available HBM (15.75G)" in refused["message"]
    assert found["fits"]["v6e"] == {"fits": True, "by": "compiler"}
    assert found["fits"]["v5p"] == {"fits": True, "by": "as v6e:4x4"}
    assert found["compiled"]["parameters"] == 2 * math.prod(shape)

    tx = plan.OPTIMIZERS["Adam, float32"]  # 30 GiB
    found = plan.planned("replicated", tx, params, 16, topologies, rooms)
    assert found["fits"]["v5e"] == {"fits": False, "by": "arithmetic"}
