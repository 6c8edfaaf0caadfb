"""`rmsprop-jax bench`: a small run, the arithmetic of its numbers, and errors."""

import contextlib
import functools
import io
import json
import math
import os
import subprocess
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import _install, cli
from rmsprop_jax.bench import (
    cells,
    comparison,
    picture,
    rows,
    shapes,
    speed,
    speed_tables,
    timing,
    tracing,
    training_step,
)
from rmsprop_jax.lab import results

JAX_ROWS = [name for name, row in rows.ROWS.items() if row.quick and not row.packages]

# Parameters, gradients and float32 state, read; parameters and state, written.
BYTES = {
    "ours": (20, 4), "ours-flat": (20, 4), "ours-bfloat16": (16, 2),
    "ours-uint16": (16, 2), "ours-uint8": (14, 1), "ours-centered": (28, 8),
    "ours-momentum": (28, 8),
    "ours-bias": (20, 4), "optax-bias": (20, 4), "optax-centered": (28, 8),
    "optax-momentum": (28, 8), "optax.rmsprop": (20, 4), "optax.adam": (28, 8),
    "optax.sgd": (12, 0),
}  # fmt: skip


class Run(NamedTuple):
    found: dict
    files: list
    text: str
    printed: str
    out: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A quick run of the command line with small shapes."""
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    printed, shown = io.StringIO(), io.StringIO()
    small = {"1e4": lambda: [(10_000,)], "pair": lambda: [(30, 20), (20,)]}
    jax.config.update("jax_disable_most_optimizations", True)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(shown),
    ):
        patch.setenv("COLUMNS", "80")
        patch.setattr(speed, "SHAPES", small)
        patch.setattr(speed, "QUICK", tuple(small))
        patch.setattr(rows, "ROWS", {name: rows.ROWS[name] for name in JAX_ROWS})
        patch.setattr(speed, "ROWS", rows.ROWS)
        patch.setattr(training_step, "NatureDQN", Frames)
        # A busy machine shall not leave out rows.
        unlimited = cells.Budget()
        patch.setattr(cells, "Budget", lambda *limits: unlimited)
        assert cli.main(["bench", "--quick", "--quiet", f"--out={out}"]) == 0
    assert not shown.getvalue(), "--quiet shows progress"

    def refuse(constant):
        raise AssertionError(constant)

    text = (out / "speed.json").read_text()
    files = sorted(path.name for path in out.iterdir())
    found = json.loads(text, parse_constant=refuse)
    return Run(found, files, text, printed.getvalue(), str(out / "speed.json"))


class Frames(training_step.nnx.Module):
    """A model that compiles in no time."""

    def __init__(self, *, rngs):
        self.linear = training_step.nnx.Linear(4, 6, rngs=rngs)

    def __call__(self, frames):
        return self.linear(frames.mean((1, 2)))


def test_the_json_says_what_was_run_and_on_what(ran):
    assert ran.files == ["speed.json", "speed.png"]
    assert ran.found["benchmark"] == "speed"
    assert ran.found["quick"] is True
    assert ran.found["machine"]["jax"] == jax.__version__
    assert ran.found["machine"]["device"] == jax.devices()[0].device_kind
    for private in (results.platform.node(), os.getcwd(), "/tmp"):
        assert private not in ran.text


def test_every_row_is_measured_on_every_shape(ran):
    assert list(ran.found["shapes"]) == ["1e4", "pair"]
    sizes = {"1e4": (10_000, 1), "pair": (620, 2)}
    for shape_name, shape in ran.found["shapes"].items():
        assert (shape["parameters"], shape["leaves"]) == sizes[shape_name]
        assert list(shape["rows"]) == JAX_ROWS
        assert shape["skipped"] == {}
        for name, row in shape["rows"].items():
            moved, state = BYTES[name]
            scalars = 32 / shape["parameters"]  # counts
            assert row["bytes_per_parameter"] == pytest.approx(moved, abs=scalars)
            assert row["state_bytes_per_parameter"] == pytest.approx(state, abs=scalars)
            assert row["low"] <= row["milliseconds"] <= row["high"]
            assert row["rounds"] >= 3
            assert row["compile_seconds"] > 0
            assert row["trace_seconds"] > 0
            assert row["twin"] == rows.ROWS[name].twin
            assert row["ratio_to_twin"] > 0
            assert row["trace_ratio_to_twin"] > 0
            rate = row["bytes_per_parameter"] * shape["parameters"] / 1e6
            assert row["gb_per_s"] == pytest.approx(rate / row["milliseconds"], 1e-3)
            share = 100 * row["gb_per_s"] / shape["in_place_gb_per_s"]
            assert row["percent_of_in_place"] == pytest.approx(share, 1e-3)
        of_base = shape["rows"][rows.BASE]
        assert of_base["ratio"] == of_base["trace_ratio_to_twin"] == 1


def test_the_training_step_shows_the_share_of_the_optimizer(ran):
    step = ran.found["training_step"]
    assert list(step["rows"]) == [training_step.ALONE, "ours", rows.BASE]
    assert step["rows"][training_step.ALONE]["optimizer_percent"] == 0
    assert all(row["milliseconds"] > 0 for row in step["rows"].values())


def test_the_tables_show_the_numbers_of_the_json_in_80_columns(ran):
    assert "…" not in ran.printed
    lines = ran.printed.splitlines()
    tables = lines[: next(i for i, x in enumerate(lines) if x.startswith("ms: "))]
    assert max(map(len, tables)) <= 80
    first = ran.found["shapes"]["1e4"]["rows"]["ours-uint8"]
    words = [line.split() for line in tables]
    row = next(w for w in words if w[:1] == ["ours-uint8"])
    assert float(row[1]) == pytest.approx(first["milliseconds"], rel=0.02)
    assert float(row[3]) == pytest.approx(first["ratio"], abs=0.006)
    assert float(row[4]) == pytest.approx(first["ratio_to_twin"], abs=0.006)
    assert row[6] == "1.00"
    assert float(row[8]) == pytest.approx(first["trace_ratio_to_twin"], abs=0.006)
    (last,) = (w for w in words if w[:1] == ["ours-uint8"] and len(w) == 3)
    ratios = [s["rows"]["ours-uint8"]["ratio"] for s in ran.found["shapes"].values()]
    assert list(map(float, last[1:])) == pytest.approx(ratios, abs=0.006)


def test_the_picture_has_a_bar_for_every_row(ran):
    figure = picture.figure(ran.found)
    frames = [axes for axes in figure.axes if axes.axison]
    assert len(frames) == 2
    for axes, shape in zip(frames, ran.found["shapes"].values(), strict=True):
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == list(shape["rows"])
        # One in full, and the part that the bytes take on top of it.
        limit = picture.WIDEST * shape["rows"][rows.BASE]["milliseconds"]
        widths = [bar.get_width() for bar in axes.patches]
        for index, row in enumerate(shape["rows"].values()):
            whole, part = widths[2 * index : 2 * index + 2]
            assert whole == pytest.approx(min(row["milliseconds"], limit))
            share = min(1, row["percent_of_in_place"] / 100)
            assert part == pytest.approx(min(row["milliseconds"] * share, limit))
    with open(ran.out.replace(".json", ".png"), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_compare_shows_ratios_to_an_earlier_run(ran, capsys, monkeypatch):
    new, old = (json.loads(ran.text) for _ in range(2))
    for shape in old["shapes"].values():
        for row in shape["rows"].values():
            row["milliseconds"] *= 2
    old["shapes"]["1e4"]["rows"]["ours"]["milliseconds"] *= 4
    del old["shapes"]["pair"]["rows"]["ours"], old["training_step"]
    old["machine"]["jax"] = "0.0.1"
    found = comparison.ratios(new, old)
    assert found["ours"] == {"1e4": pytest.approx(1 / 8)}
    assert found["optax.sgd"] == pytest.approx({"1e4": 0.5, "pair": 0.5})
    assert comparison.geometric_mean([0.5, 8.0]) == pytest.approx(2)
    comparison.show(new, old)
    printed = capsys.readouterr().out
    every = 2 * len(JAX_ROWS) - 1
    mean = 0.5 ** ((every + 2) / every)
    assert f"geometric mean of {every}: {mean:.3f}" in printed
    assert f"jax: 0.0.1 then, {jax.__version__} now" in printed
    comparison.show(new, {"shapes": {}})
    assert "nothing to compare" in capsys.readouterr().out


def test_the_command_compares_and_measures_what_is_named(ran, tmp_path, capsys):
    options = ["--quick", "--rows=ours", "--shapes=1e4", f"--out={tmp_path}"]
    assert cli.main(["bench", *options, f"--compare={ran.out}"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "geometric mean of 2" in stdout
    assert "1e4" in stderr, "no progress"
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found["shapes"]) == ["1e4"]
    assert set(found["shapes"]["1e4"]["rows"]) == {"ours", rows.BASE}
    assert "training_step" not in found


def test_the_shapes_are_those_of_the_models():
    sizes = {
        name: (len(make()), sum(map(math.prod, make())))
        for name, make in shapes.SHAPES.items()
    }
    assert sizes == {
        **{f"1e{n}": (1, 10**n) for n in range(4, 9)},
        "nature-dqn": (10, 1_687_206),
        "lstm": (9, 19_775_200),
        "gpt2": (148, 124_439_808),
        "resnet50": (161, 25_557_032),
        "efficientnet-b0": (213, 5_288_548),
        "small-leaves": (1000, 100_000),
        "all-different": (40, 2940),
    }


class Clock:
    """Time that passes when somebody sleeps, and not otherwise."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_rounds_interleave_the_rows_and_short_steps_are_repeated(monkeypatch):
    monkeypatch.setattr(timing, "time", Clock())
    order = []

    def row(name, seconds):
        def advance():
            order.append(name)
            timing.time.sleep(seconds)

        return timing.Running(advance, lambda: None, 0, 0.0)

    running = {"a": row("a", 1e-4), "b": row("b", 3e-3)}
    parts = []
    found = timing.measure(running, 10.0, rounds=(1, 4), on_part=parts.append)
    assert {name: len(samples) for name, samples in found.items()} == {"a": 4, "b": 4}
    np.testing.assert_allclose(found["a"], 1e-4)
    np.testing.assert_allclose(found["b"], 3e-3)
    assert parts == [0.25, 0.5, 0.75, 1]
    runs = "".join(order)[4:]  # after the calls that calibrate
    assert runs.count("b") == 4
    calls = len(runs.split("b")[0])
    assert calls in (20, 21)  # 2 ms
    assert runs == ("a" * calls + "b") * 4
    few = timing.measure({"b": running["b"]}, 0.0, rounds=(2, 9))
    assert len(few["b"]) == 2, "the budget does not end it"


def test_the_ratio_is_that_of_neighbours_in_time():
    base = np.array([1.0, 10.0, 1.0, 1.0])
    assert timing.ratio(np.array([2.0, 20.0, 2.0, 50.0]), base) == 2
    found = timing.summary([1.0, 2.0, 3.0, 4.0, 9.0])
    assert found == {"milliseconds": 3000, "low": 2000, "high": 4000}


def test_rows_share_memory_in_groups():
    sizes = {"a": 4, "b": 4, "c": 4, "d": 11, "e": 1}
    assert timing.groups(sizes, 10) == [["a", "b"], ["c", "e"]]
    assert timing.groups({}, 10) == []


def test_a_group_has_the_base_and_what_fits_nowhere_is_left_out(monkeypatch):
    leaves, seen = [(1000,)], []
    start = cells._start

    def spy(names, *others):
        seen.append(list(names))
        return start(names, *others)

    monkeypatch.setattr(cells, "_start", spy)
    monkeypatch.setattr(cells, "_memory", lambda: 4000 * (8 + 4 + 3))
    names = [rows.BASE, "ours", "optax.sgd"]
    found = cells.measure(leaves, names, 0.0, cells.Budget(), lambda part: None)
    assert seen == [["ours"], ["optax.sgd"]]
    assert list(found["rows"]) == names
    monkeypatch.setattr(cells, "_memory", lambda: 4000 * 9)
    found = cells.measure(leaves, names, 0.0, cells.Budget(), lambda part: None)
    assert list(found["rows"]) == [rows.BASE]
    assert found["skipped"] == dict.fromkeys(names[1:], "does not fit into memory")
    monkeypatch.setattr(cells, "_memory", lambda: 4000 * 7)
    found = cells.measure(leaves, names, 0.0, cells.Budget(), lambda part: None)
    assert found == {"parameters": 1000, "leaves": 1, "skipped": "too large"}


def test_a_row_that_fails_is_left_out_with_its_reason(monkeypatch, capsys):
    def start(grads):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setitem(rows.ROWS, "broken", rows.Row(start))
    names = [rows.BASE, "broken", "optax.sgd"]
    found = cells.measure([(10,)], names, 0.0, cells.Budget(), lambda part: None)
    assert list(found["rows"]) == [rows.BASE, "optax.sgd"]
    assert found["skipped"] == {"broken": "RuntimeError: no compiler"}
    speed_tables.show({"shapes": {"ten": found}})
    assert "broken left out: RuntimeError: no compiler" in capsys.readouterr().out


def test_what_would_take_too_long_is_predicted():
    budget = cells.Budget(step=1.0, compilation=5.0)
    assert budget.excess("a", 10**8, 100.0) is None, "nothing is known yet"
    budget.note("a", 10**6, 0.07, 3.0)
    assert budget.excess("a", 10**8, 1.0) == "a step would take about 7 s"
    assert budget.excess("a", 10**7, 1.0) is None
    assert budget.excess("a", 10**7, 2.0) == "compiling would take about 6 s"
    assert budget.excess("b", 10**8, 2.0) is None
    budget.note("a", 10**7, 0.07, 1.0)
    assert budget.excess("a", 10**8, 2.0) is None
    for name in ("ours", rows.BASE):
        budget.note(name, 1, 1e3, 1e3)
        assert budget.excess(name, 10**8, 10.0) is None
    unlimited = cells.Budget()
    unlimited.note("a", 1, 1e3, 1e3)
    assert unlimited.excess("a", 10**8, 10.0) is None


def test_what_would_take_too_long_is_left_out():
    budget = cells.Budget(step=1.0)
    budget.note("optax.sgd", 1, 2.0, 1.0)
    names = [rows.BASE, "optax.sgd"]
    found = cells.measure([(10,)], names, 0.0, budget, lambda part: None)
    assert list(found["rows"]) == [rows.BASE]
    assert found["skipped"] == {"optax.sgd": "a step would take about 20 s"}
    late = cells.Budget(shape=-1.0)
    names.append("ours")
    last = cells.measure([(10,)], names, 0.0, late, lambda part: None)
    assert list(last["rows"]) == [rows.BASE, "ours"]
    assert last["skipped"] == {"optax.sgd": "no time was left"}
    assert budget.by_element[rows.BASE] > 0
    assert budget.over_base == {"optax.sgd": 1.0, rows.BASE: 1.0}


def carried(running):
    """The parameters and the state that a running step holds."""
    names = running.advance.__code__.co_freevars
    held = dict(zip(names, running.advance.__closure__, strict=True))
    return held["carry"].cell_contents


def test_the_step_is_compiled_and_in_place():
    params, grads = jnp.ones(3), jnp.asarray([1.0, -1.0, 4.0])
    pointer = params.unsafe_buffer_pointer()
    traces = []

    def step(params, state, grads):
        traces.append(None)
        return params - grads, state + 1

    running = rows.compiled(step, params, jnp.zeros(()), grads)
    for _ in range(2):
        running.advance()
    running.wait()
    assert len(traces) == 1
    assert params.is_deleted()
    params, count = carried(running)
    np.testing.assert_array_equal(params, [-1, 3, -7])
    assert params.unsafe_buffer_pointer() == pointer
    assert count == 2
    assert running.state_bytes == 4


def test_the_device_is_measured_by_x_plus_1_over_as_much_memory():
    running = rows.in_place(rows.gradients([(5, 2), (3,)]))
    for _ in range(2):
        running.advance()
    x, _ = carried(running)
    np.testing.assert_array_equal(x, np.full(3 * 13, 2.0))


def test_ours_takes_the_steps_of_optax():
    """What is timed is the same work: after three steps the parameters agree."""
    grads = [jnp.asarray(x) for x in ([1.0, -2.0], [[0.5]])]
    ends = {}
    for name in ("ours", rows.BASE):
        running = rows.ROWS[name].start(grads)
        for _ in range(3):
            running.advance()
        ends[name], _ = carried(running)
    for ours, theirs in zip(*ends.values(), strict=True):
        assert (np.asarray(ours) != 1).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [n for n, r in rows.ROWS.items() if r.packages])
def test_another_framework_runs_where_it_is_installed(name):
    if not rows.installed(rows.ROWS[name]) or rows.ROWS[name].slow:
        pytest.skip("not installed, or slow to compile")
    grads = rows.gradients([(8192,), (3,)])
    with jax.numpy_dtype_promotion("standard"):
        running = rows.ROWS[name].start(grads)
        running.advance()
        running.wait()
    expected = 8192 + 4 * 8192 // 256 + 4 * 3 if name == "bitsandbytes" else 4 * 8195
    assert running.state_bytes == pytest.approx(expected, abs=16)
    found = timing.measure({name: running}, 0.0)
    assert (found[name] > 0).all()


def test_what_is_slow_to_compile_is_measured_on_large_arrays_only(monkeypatch):
    table = {
        "fast": rows.Row(rows.in_place),
        "slow": rows.Row(rows.in_place, slow=True, quick=False),
        "missing": rows.Row(rows.in_place, ("no_such_package",)),
    }
    monkeypatch.setattr(speed, "ROWS", table)
    assert speed._default_rows([(10**7,)], quick=False) == ["fast", "slow"]
    assert speed._default_rows([(10**6,)], quick=False) == ["fast"]
    assert speed._default_rows([(10**7,), (1,)], quick=False) == ["fast"]
    assert speed._default_rows([(10**7,)], quick=True) == ["fast"]


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"benchmark": "storage tracking", "shapes": {}},
        {"benchmark": "speed"},
        {"benchmark": "speed", "shapes": {"1e4": {"rows": {"ours": {}}}}},
    ],
)
def test_a_foreign_file_to_compare_with_gets_one_line(content, tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    options = ["--quick", "--shapes=1e4", "--rows=ours", f"--out={tmp_path}"]
    assert cli.main(["bench", f"--compare={path}", *options]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "an earlier run" in stderr


def test_a_row_that_is_not_installed_gets_one_line(monkeypatch, capsys, tmp_path):
    missing = rows.Row(rows.in_place, ("no_such_package",))
    monkeypatch.setitem(rows.ROWS, "keras", missing)
    assert cli.main(["bench", "--rows=keras", f"--out={tmp_path}"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "keras needs no_such_package" in stderr


def test_a_folder_that_goes_away_gets_one_line(monkeypatch, capsys, tmp_path):
    def write(*arguments):
        raise PermissionError(13, "no entry")

    monkeypatch.setattr(results, "write", write)
    options = ["--quick", "--quiet", "--rows=optax.sgd", "--shapes=1e4"]
    assert cli.main(["bench", *options, f"--out={tmp_path}"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "could not write" in stderr


@pytest.mark.parametrize(
    ("package", "option", "extra"),
    [("rich", "--quick", "bench"), ("matplotlib", "--quick", "bench"),
     ("libtpu", "--tpu=v5e:2x2", "tpu")],
)  # fmt: skip
def test_a_missing_extra_says_what_to_install(package, option, extra, tmp_path):
    # In a process of its own: here the package has long been imported.
    program = (
        f"import sys; sys.modules[{package!r}] = None; from rmsprop_jax import cli; "
        f"sys.exit(cli.main(['bench', {option!r}, '--out={tmp_path / 'out'}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert package in done.stderr
    assert _install.command(extra) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.promotion
def test_a_transformation_of_any_kind_can_be_a_row():
    row = rows.transformation(lambda: optax.adamw(1e-3))  # needs the parameters
    running = row.start(rows.gradients([(4, 2)]))
    running.advance()
    running.wait()
    assert running.state_bytes == 2 * 32 + 4


@pytest.mark.promotion  # Optax's bias correction needs it
def test_ours_is_compared_with_optax_under_the_same_options():
    for options in ("centered", "momentum", "bias"):
        ours, theirs = rows.ROWS[f"ours-{options}"], rows.ROWS[f"optax-{options}"]
        assert ours.twin == f"optax-{options}"
        params = [jnp.zeros((4, 2)), jnp.zeros(3)]
        grads = [jnp.full((4, 2), 0.3), jnp.arange(3.0)]
        of_both = []
        for row in (ours, theirs):
            step, state = rows.step_of(row.make()), row.make().init(params)
            after, _ = step(*step(params, state, grads), grads)
            of_both.append(after)
        chex.assert_trees_all_close(*of_both, rtol=1e-4)
        plain = rows.step_of(rows.ROWS["ours"].make())
        state = rows.ROWS["ours"].make().init(params)
        after, _ = plain(*plain(params, state, grads), grads)
        assert not np.allclose(after[0], of_both[0][0], rtol=1e-3)
    assert speed._with_twins(["ours-bias"]) == {rows.BASE, "ours-bias", "optax-bias"}


def test_tracing_is_timed_with_nothing_cached():
    traced = []

    @jax.jit
    def inner(update):
        traced.append(update.shape)
        return -update

    make = functools.partial(optax.stateless_with_tree_map, lambda g, p: inner(g))
    seconds = tracing.measure([(3,), (3,), (4,)], {"a": make, "b": make}, rounds=2)
    assert {name: of_row.shape for name, of_row in seconds.items()} == {
        "a": (2,), "b": (2,),
    }  # fmt: skip
    assert traced == 4 * [(3,), (4,)]


def test_what_is_not_installed_is_left_out_with_a_sentence(
    monkeypatch, capsys, tmp_path
):
    missing = rows.Row(rows.in_place, ("no_such_package",))
    kept = {name: rows.ROWS[name] for name in (rows.BASE, "ours")}
    monkeypatch.setattr(speed, "ROWS", kept | {"peer": missing})
    options = ["--quick", "--quiet", "--shapes=1e4", f"--out={tmp_path}"]
    assert cli.main(["bench", *options]) == 0
    assert "peer left out: no_such_package not installed" in capsys.readouterr().out
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["settings"]["not_installed"] == {"peer": "no_such_package"}
