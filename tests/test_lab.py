"""What demo, bench and claims share: files of results, tables, the bar, training."""

import argparse
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from rmsprop_jax import rmsprop
from rmsprop_jax.bench import ahead_tables, comparison, speed_tables, tables
from rmsprop_jax.bench import picture as bench_picture
from rmsprop_jax.claims import summary
from rmsprop_jax.claims import tables as claims_tables
from rmsprop_jax.lab import pictures, progress, results, training
from rmsprop_jax.lab import tables as lab_tables
from rmsprop_jax.lab.program import Contender, Problem

STORED = Path(__file__).parent.parent / "notebooks" / "results"
SHOWN = {
    "claims": ("claims", lambda found: claims_tables.show(found["claims"])),
    "speed_cpu": ("speed", speed_tables.show),
    "tpu": ("tpu", ahead_tables.show),
    "gpu": ("gpu", ahead_tables.show),
    "tracking": ("storage tracking", tables.SHOW["tracking"]),
    "training": ("storage training", tables.SHOW["training"]),
}


@pytest.mark.parametrize("name", SHOWN)
def test_stored_results_are_read_and_shown_whole_at_60_columns(
    name, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "60")
    benchmark, show = SHOWN[name]
    found = results.read(STORED / f"{name}.json", benchmark)
    show(found)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 20
    assert "…" not in printed


def test_earlier_claims_have_pictures_and_earlier_times_are_compared(capsys):
    claims = results.read(STORED / "claims.json", "claims")["claims"]
    figure = summary.figure(claims)
    (axes,) = figure.axes
    statements = [s for claim in claims.values() for s in claim["statements"]]
    assert len(axes.get_yticklabels()) == len(statements)
    assert len(axes.patches) == 3 * len(statements)
    widths = np.reshape([bar.get_width() for bar in axes.patches], (-1, 3))
    np.testing.assert_allclose(widths.sum(axis=1), 1)
    assert widths[0, 0] == statements[0]["counts"]["met"] / 28
    speed = results.read(STORED / "speed_cpu.json", "speed")
    comparison.show(speed, speed)
    assert ": 1.000" in capsys.readouterr().out
    bench_picture.figure(speed)


def arguments(**options):
    return argparse.Namespace(quiet=False, **options)


def test_results_of_other_options_are_kept_beside(tmp_path, capsys):
    def run(**options):
        asked = arguments(out=tmp_path, **options)
        content = results.content("bench", {"x": [1.0]}, asked, 1.0)
        status = results.finish("bench", asked, "r", content, {"r.png": b"picture"})
        assert status == 0
        return capsys.readouterr().out

    assert "earlier" not in run(steps=1)
    assert "earlier" not in run(steps=1)
    assert f"earlier results of other options are now in {tmp_path / 'earlier-1'}" in (
        run(steps=2)
    )
    (tmp_path / "r.json").write_text("of somebody else")
    assert "earlier-2" in run(steps=2)
    kept = [json.loads((tmp_path / "earlier-1" / "r.json").read_text())["options"]]
    kept += [json.loads((tmp_path / "r.json").read_text())["options"]]
    assert kept == [{"steps": 1}, {"steps": 2}]
    assert (tmp_path / "earlier-2" / "r.json").read_text() == "of somebody else"
    assert (tmp_path / "earlier-1" / "r.png").read_bytes() == b"picture"


def test_numbers_are_rounded_and_arrays_are_not(tmp_path):
    third = 1 / 3
    content = {"a": third, "b": np.array([third, np.nan]), "c": np.float64(third)}
    results.write(tmp_path, "r", content)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == {"a": 0.33333, "b": [third, None], "c": 0.33333}


def test_a_table_is_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    rows = lab_tables.table("a title", ["words"], ["a number", "another\nnumber"])
    rows.add_row("a name of some length", "0.123456789", "+1.5 ± 0.25")
    lab_tables.show(rows)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "length" in x)
    assert line.split()[-4:] == ["0.123456789", "+1.5", "±", "0.25"]


def test_one_bar_shows_the_whole():
    console = Console(file=io.StringIO(), force_terminal=True)
    with Progress(console=console) as bars:
        weights = {"a": 1.0, "b": 3.0}
        show = progress._bar(bars, lambda label: weights[label], 4.0)
        (task,) = bars.tasks
        with show("a", 10) as on_step:
            assert "compiling" in task.description
            on_step(5, "loss 1")
            assert task.completed == 0.5
            assert task.description == "a, loss 1"
        assert task.completed == 1
        with show("b", 10) as on_step:
            on_step(5)
            assert task.completed == 2.5
        assert len(bars.tasks) == 1
        assert task.finished


def slope():
    """A problem with noise in its gradients, whose measure is the parameters' mean."""

    def start(setting, key):
        return {"w": jnp.ones(50)}, ()

    def loss(world, params, key, step):
        noise = jax.random.normal(jax.random.fold_in(key, step), (50,))
        return jnp.sum(params["w"] * (1 + noise))

    def measure(world, params, key, step):
        return jnp.mean(params["w"])

    return Problem(start, loss, measure, 20, None)


def test_runs_of_one_seed_differ_by_their_rounding_alone():
    contenders = {
        dtype: Contender(lambda rate, _, dtype=dtype: rmsprop(rate, nu_dtype=dtype))
        for dtype in ("float32", "uint8")
    }
    found = training.train(
        slope(), contenders, [0.0], dict.fromkeys(contenders, (1e-3,)),
        training.keys_of([4, 4]), training.points(20, 2),
    )  # fmt: skip
    assert found.at.tolist() == [0, 10, 20]
    wide, narrow = (found.values[name][:, 0, 0] for name in contenders)
    np.testing.assert_array_equal(wide[:, 0], wide[:, 1])
    assert narrow[0, 0] == narrow[0, 1]
    assert narrow[-1, 0] != narrow[-1, 1]
    assert found.state_bytes["uint8"] < found.state_bytes["float32"] / 3


def test_intervals_are_coloured_by_their_side_of_zero():
    axes = pictures.figure((4, 3)).subplots()
    samples = np.array([0.9, 1.0, 1.1])
    rows = {"more": samples, "less": -samples, "either": samples - 1}
    pictures.intervals(axes, rows, pictures.sides("red", "blue"))
    colours = [bars[0].get_color() for bars in axes.containers]
    assert colours == ["blue", "red", "#999999"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
