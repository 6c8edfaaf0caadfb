"""`rmsprop-jax bench`: a small run of each part, the arithmetic, and errors."""

import contextlib
import dataclasses
import io
import json
import os
import platform
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from rmsprop_jax import cli
from rmsprop_jax.bench import forms, streams, tables, tracking, training
from rmsprop_jax.lab import models, statistics, tasks


class Run(NamedTuple):
    tracking: dict
    training: dict
    files: list
    text: str
    printed: str


class Pixels(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return self.linear(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of the command line with one task, and neither all forms nor decays."""
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    printed, shown = io.StringIO(), io.StringIO()
    # A model that compiles in no time.
    task = dataclasses.replace(tasks.digits(), net=models.of_module(Pixels))
    plan = dataclasses.replace(training.PLANS["digits"], load=lambda: task)
    jax.config.update("jax_disable_most_optimizations", True)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(shown),
        jax.numpy_dtype_promotion("strict"),
    ):
        patch.setenv("COLUMNS", "80")
        patch.setattr(forms, "PEERS", ())
        patch.setattr(tracking, "DECAYS", (0.9, 0.99))
        patch.setattr(training, "DECAYS", (0.9, 0.999))
        patch.setattr(training, "FORMS", ("float32", "uint8"))
        patch.setattr(training, "PLANS", {"digits": plan})
        options = ["--quick", "--seeds=4", "--quiet", f"--out={out}"]
        assert cli.main(["bench", "storage", *options]) == 0
    assert not shown.getvalue(), "--quiet shows progress"
    text = {name: (out / f"{name}.json").read_text() for name in tables.SHOW}

    def refuse(constant):
        raise AssertionError(constant)

    loaded = (json.loads(text[name], parse_constant=refuse) for name in text)
    files = sorted(path.name for path in out.iterdir())
    return Run(*loaded, files, "".join(text.values()), printed.getvalue())


def test_the_json_says_what_was_run_and_on_what(ran):
    assert ran.files == ["tracking.json", "training.json"]
    for found in (ran.tracking, ran.training):
        assert found["quick"] is True
        assert found["machine"]["jax"] == jax.__version__
        assert found["machine"]["cpu_count"] == os.cpu_count()
        assert found["seconds"] > 0
    for private in (platform.node(), platform.platform(), os.getcwd(), "/tmp"):
        assert private not in ran.text
    assert ran.training["settings"] == {"tuning_seeds": 2, "comparisons": 2}
    assert ran.training["tasks"]["digits"]["seeds"] == 4


def test_tracking_measures_every_form_at_every_decay_on_every_stream(ran):
    assert list(ran.tracking["streams"]) == list(streams.STREAMS)
    for stream in ran.tracking["streams"].values():
        assert stream["steps"] == 400
        assert list(stream["by_decay"]) == ["0.9", "0.99"]
        for cells in stream["by_decay"].values():
            assert list(cells) == [*forms.OURS, *forms.NEAREST]
            assert cells["float32"]["mean_error"] < 1e-3
            mean = [cells[name]["mean_error"] for name in forms.OURS]
            assert mean[0] < mean[2] < mean[1] < mean[3], "more bits, smaller errors"
            for cell in cells.values():
                assert cell["mean_error"] < cell["rms_error"] < cell["p99_error"]
                assert abs(cell["bias_of_u"]) <= cell["mean_error"]


def test_theory_predicts_the_error_and_rounding_without_bias_has_none(ran):
    for decay, cells in ran.tracking["streams"]["stationary"]["by_decay"].items():
        for name in forms.OURS[1:]:
            cell = cells[name]
            assert cell["mean_theory"] == pytest.approx(cell["mean_error"], rel=0.2)
            error = cell["bias_of_nu_standard_error"]
            assert abs(cell["bias_of_nu"]) < 4 * error, (decay, name)
            assert cell["bias_of_nu"] != 0
        assert abs(cells["uint8 nearest"]["bias_of_nu"]) > 10


def test_the_tables_show_the_numbers_of_the_json_in_80_columns(ran):
    assert "…" not in ran.printed
    assert max(map(len, ran.printed.splitlines()[:40])) <= 80
    lines = [line.split() for line in ran.printed.splitlines()]
    first = ran.tracking["streams"]["stationary"]["by_decay"]["0.99"]["uint8"]
    row = next(words for words in lines if words[:2] == ["0.99", "uint8"])
    assert float(row[2]) == pytest.approx(first["mean_error"], rel=0.05)
    assert float(row[7]) == pytest.approx(first["bias_of_nu"], abs=0.006)
    trained = ran.training["tasks"]["digits"]["by_decay"]["0.9"]
    (row,) = [
        words for words in lines if words[:2] == ["0.9", "uint8"] and "to" in words
    ]
    assert row[2] == f"{trained['learning_rate']:g}"
    form = trained["by_form"]["uint8"]
    assert f"{form['difference_percent']:+.3f}" in row
    assert ran.training["tasks"]["digits"]["finding"] in ran.printed


def test_training_reports_paired_differences(ran):
    (task,) = ran.training["tasks"].values()
    for cell in task["by_decay"].values():
        tried = cell["validation_losses"]
        assert cell["learning_rate"] == cell["rates_tried"][tried.index(min(tried))]
        base, ours = (cell["by_form"][name] for name in ("float32", "uint8"))
        pairs = ours["test_loss_by_seed"], base["test_loss_by_seed"]
        assert len(set(pairs[1])) == 4, "the seeds are the same run"
        test = stats.ttest_rel(*pairs)
        scale = 100 / np.mean(pairs[1])
        low, high = (scale * end for end in test.confidence_interval(0.95))
        assert ours["interval_percent"] == pytest.approx([low, high], rel=1e-2)
        assert ours["p"] == pytest.approx(test.pvalue, rel=1e-2)
        # The same initial parameters and batches: far closer than two seeds are.
        assert np.std(np.subtract(*pairs)) < 0.5 * np.std(pairs[1])


def test_the_reference_is_the_recursion_in_float64():
    random = np.random.default_rng(0)
    gradients = random.standard_normal((40, 3)).astype(np.float32)
    gradients[:5, 0] = 0
    reference = tracking.Reference(0.9, 3)
    first, second = reference(gradients[:20]), reference(gradients[20:])
    u, nu = (np.concatenate(parts) for parts in zip(first, second, strict=True))
    average = [0.0, 0.0, 0.0]
    for step in range(40):
        for i in range(3):
            g = float(gradients[step, i])
            average[i] = 0.9 * average[i] + (1 - 0.9) * g**2
            assert nu[step, i] == pytest.approx(average[i], rel=1e-14)
            expected = g / average[i] ** 0.5 if average[i] else 0
            assert u[step, i] == pytest.approx(expected, rel=1e-14)


def test_nearest_rounding_stalls_where_ours_does_not():
    gradients = np.ones((2000, 64), np.float32)
    for name in ("uint8 nearest", "bfloat16 nearest", "uint8", "bfloat16"):
        advance = forms.make(name, 0.999, 64)
        _, nu = advance(gradients)
        _, later = advance(gradients)
        stalled = bool((nu[-1] == later[-1]).all())
        assert stalled == name.endswith("nearest")
        exact = 1 - 0.999**4000
        if stalled:
            assert later[-1].mean() < 0.8 * exact
        else:
            assert later[-1].mean() == pytest.approx(exact, rel=0.1)


def test_bitsandbytes_is_followed_where_it_is_installed():
    pytest.importorskip("bitsandbytes")
    gradients = np.random.default_rng(0).standard_normal((30, 512), np.float32)
    u_exact, nu_exact = tracking.Reference(0.9, 512)(gradients)
    for name in forms.PEERS:
        u, nu = forms.make(name, 0.9, 512)(gradients)
        assert np.abs(u / u_exact - 1)[1:].mean() < 0.1
        assert np.abs(nu / nu_exact - 1)[1:].mean() < 0.2


def test_streams_have_the_scales_zeros_and_jumps_they_promise():
    for stream in streams.STREAMS.values():
        assert stream.steps >= 8000
        assert stream.steps % 500 == 0
    for name, stream in streams.STREAMS.items():
        g = np.concatenate(list(streams.quick(stream).chunks(64, 100)))
        assert g.shape == (400, 64)
        assert g.dtype == np.float32
        sizes = np.sqrt((g[:100].astype(float) ** 2).mean(axis=0))
        factor = {"sparse": 0.1**0.5, "heavy tails": 3**0.5}.get(name, 1)
        expected = stream.scales(64) * factor
        assert np.median(sizes / expected) == pytest.approx(1, rel=0.3)
        assert np.mean(g == 0) == pytest.approx(0.9 * (name == "sparse"), abs=0.02)
        growth = np.abs(g[100:200]).mean() / np.abs(g[:100]).mean()
        assert (growth > 50) == (name == "jumps")


def test_recovery_counts_the_steps_after_each_jump():
    stream = streams.quick(streams.STREAMS["jumps"])
    level = np.ones(400)
    level[100:200] = [1e4 * min(1, (step + 1) / 10) for step in range(100)]
    level[200:300] = 1e4  # never comes back
    found = tracking.recovery([level[:150], level[150:]], stream)
    assert found == {"up": 9, "down": None}


def test_holm_and_the_sentence_about_it():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.9]) == [1, 1]
    cell = {"difference_percent": 1.5, "interval_percent": [-1, 4], "p_holm": 0.2}
    by_decay = {"0.9": {"by_form": {"float32": {}, "uint8": cell}}}
    assert "no significant" in training.finding("digits", by_decay)
    assert "± 4.00 %" in training.finding("digits", by_decay)
    cell["p_holm"] = 0.04
    found = training.finding("digits", by_decay)
    assert "uint8 at decay 0.9 by +1.50 % (p = 0.040)" in found


def test_losses_that_are_all_equal_have_no_difference():
    same = np.asarray([1.0, 2.0])
    assert "p" not in statistics.compared(same, same)


def test_a_missed_target_is_named(ran):
    found = json.loads(json.dumps(ran.tracking))
    cells = found["streams"]["stationary"]["by_decay"]
    for row in cells.values():
        for name in tracking.TARGETS:
            row[name] |= {"mean_error": 0.1, "bias_of_nu": -0.4}
    assert tables.misses(found) == ["every target for the stream “stationary” is met"]
    cells["0.99"]["uint16"]["mean_error"] = 0.5
    cells["0.99"]["uint8"]["bias_of_nu"] = -0.6
    first, second = tables.misses(found)
    assert first == "missed: uint16, decay 0.99: mean |du/u| is 0.5 %, wanted 0.4 %"
    assert "uint8, decay 0.99: bias of nu is -0.60" in second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], "storage"),
        (["storage", "--part=speed"], "tracking"),
        (["storage", "--seeds=1"], "at least 2"),
        (["storage", "--seeds=x"], "at least 2"),
        (["storage", f"--out={__file__}"], "a folder"),
        (["storage", "--quickly"], "--quickly"),
        (["--rows=dance"], "ours-uint8"),
        (["--shapes=1e4,dance"], "gpt2"),
        (["--quickly"], "--quickly"),
        ([f"--out={__file__}"], "a folder"),
        (["--compare=missing.json"], "No such file"),
        ([f"--compare={__file__}"], "not JSON"),
        (["--tpu=v5e:2x2", "--rows=ours"], "--rows: does not go with --tpu"),
        (["--tpu=v5e:2x2", "--shapes=1e4"], "--shapes: does not go with --tpu"),
    ],
)
def test_bad_options_get_one_line(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert words in stderr


def test_help_lists_the_benchmarks_and_their_options(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert "storage" in capsys.readouterr().out
    assert cli.main(["bench", "storage", "--help"]) == 0
    assert "--quick" in capsys.readouterr().out
