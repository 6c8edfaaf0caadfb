"""`rmsprop-jax bench plan`: the arithmetic, and that what is compiled agrees."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rmsprop_jax import _install, cli
from rmsprop_jax.bench import plan, plan_models, plan_programs, plan_tables, results

STORED = Path(__file__).parent.parent / "notebooks" / "results" / "plan.json"
HELD = ("parameters", "gradients", "state")

# What their authors, or the files of their weights, say; Megatron's has no exact count.
PARAMETERS = {"7B": 6_738_415_616, "70B": 68_976_648_192, "400B": 405_853_388_800,
              "1T": 1_008_000_000_000}  # fmt: skip


@pytest.mark.parametrize("name", plan_models.MODELS)
def test_models_have_the_parameters_that_they_are_known_for(name):
    params = plan_models.shapes(plan_models.MODELS[name], "bfloat16")
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
    tx = plan_models.OPTIMIZERS[optimizer]
    found = plan_models.arithmetic(params, tx, layout, 4)
    counts = [x for x in jax.tree.leaves(jax.eval_shape(tx.init, params)) if not x.ndim]
    found["state"] -= 4 * len(counts)  # the number of steps, where it is kept
    assert tuple(x / 8192 for x in found.values()) == expected


@pytest.fixture(scope="module")
def stored():
    return results.read(STORED, "plan")


def test_in_the_stored_results_what_was_compiled_is_what_was_expected(stored):
    assert list(stored["models"]) == list(plan_models.MODELS)
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


def test_the_tables_mark_what_is_arithmetic_and_fit_into_80_columns(
    stored, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    plan_tables.show(stored)
    printed = capsys.readouterr().out
    assert "…" not in printed
    tables = printed[: printed.index("GiB a chip")].splitlines()
    lines = [line for line in tables if "RESOURCE_EXHAUSTED" not in line]
    assert max(map(len, lines)) <= 80
    rows = [line.split()[3:] for line in lines if "ours, one byte" in line]
    for words in rows:
        compiled = len(words) == 9
        # Parameters, gradients and state: all as compiled, or none.
        assert [word.startswith("~") for word in words[1:4]] == 3 * [not compiled]
        assert words[-4].startswith("~")
        assert {word.lstrip("~") for word in words[-3:]} <= {"yes", "no"}
        assert compiled == any(word.endswith("yes") for word in words[-3:])
    assert len(rows) >= 12


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert cli.main(["bench", "plan", "--quiet", f"--out={tmp_path}"]) == 1
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert _install.command("tpu") in stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models=8B"], "7B,70B"),
        (["--dtype=int8"], "bfloat16"),
        (["--quick", "--models=7B"], "does not go with --quick"),
    ],
)
def test_bad_options_get_one_line(options, words, capsys):
    assert cli.main(["bench", "plan", *options]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert words in stderr


@pytest.mark.slow
@pytest.mark.parametrize("dtype", plan_models.DTYPES)
def test_what_is_compiled_is_the_arithmetic(dtype, tmp_path):
    pytest.importorskip("libtpu")
    run = subprocess.run(
        [sys.executable, "-m", "rmsprop_jax", "bench", "plan", "--quick", "--quiet",
         f"--dtype={dtype}", f"--out={tmp_path}"],
        capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    rows = found["rows"]
    assert len(rows) == len(plan_models.LAYOUTS) * len(plan_models.OPTIMIZERS)
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
    assert "ours, one byte" in run.stdout


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.promotion
def test_what_the_compiler_refuses_is_tried_on_larger_chips():
    pytest.importorskip("libtpu")
    # 5 GiB of parameters: with gradients and state 12.5, and averaged gradients 17.5.
    shape = (5 * 2**16, 8192)
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    topologies = {name: of[0] for name, of in plan.TOPOLOGIES.items()}
    rooms = {name: plan_programs.capacity(at) for name, at in topologies.items()}
    tx = plan_models.OPTIMIZERS["ours, one byte"]
    found = plan_programs.planned("replicated", tx, params, 16, topologies, rooms)
    refused = found["fits"]["v5e"]
    assert (refused["fits"], refused["by"]) == (False, "compiler")
    assert "exceeds available HBM (15.75G)" in refused["message"]
    assert found["fits"]["v6e"] == {"fits": True, "by": "compiler"}
    assert found["fits"]["v5p"] == {"fits": True, "by": "as v6e:4x4"}
    assert found["compiled"]["parameters"] == 2 * math.prod(shape)

    tx = plan_models.OPTIMIZERS["Adam, float32"]  # 30 GiB
    found = plan_programs.planned("replicated", tx, params, 16, topologies, rooms)
    assert found["fits"]["v5e"] == {"fits": False, "by": "arithmetic"}
