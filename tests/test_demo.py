"""The demo's tasks, its sweeps over rates and seeds, its table and its verdict."""

import dataclasses
import io
import itertools
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from matplotlib.image import imread
from rich.console import Console

from rmsprop_jax.checkpoint import Checkpoints
from rmsprop_jax.demo import picture, report, sweeps
from rmsprop_jax.demo.optimizers import GRIDS, NAMES, contenders
from rmsprop_jax.lab import models, pictures, results, statistics, tasks
from rmsprop_jax.lab import training as lab_training
from rmsprop_jax.lab.contenders import LABELS

pytestmark = pytest.mark.optimized

STEPS, BATCH = 6, 4


class Linear(nnx.Module):
    """The smallest model: logits of two classes from three features."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.linear(inputs)


@pytest.fixture(scope="module")
def task():
    """Two classes told apart by the sign of the first of three features."""
    inputs = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int32)
    train_, validation, test = (
        tasks.Split(inputs[i : i + 20], targets[i : i + 20]) for i in (0, 20, 40)
    )
    return tasks.Task(
        "toy",
        "two classes",
        "point",
        train_,
        validation,
        test,
        models.of_module(Linear),
    )


def run(task, name="rmsprop", rates=(1e-2, 1e-1), seeds=3):
    return sweeps.sweep(task, contenders({})[name], rates, seeds, STEPS, BATCH)


@pytest.fixture(scope="module")
def outcome(task):
    return sweeps.Outcome(task, {name: run(task, name) for name in NAMES}, BATCH)


def test_runs_of_a_grid_are_the_runs_trained_alone(task, outcome):
    """Against a plain loop over the steps of one run at a time."""
    sweep = outcome.tried["rmsprop"]
    batches = [
        tasks.shuffled(jax.random.key(seed), 20, BATCH, STEPS) for seed in range(3)
    ]

    @nnx.jit
    def loss(model, inputs, targets):
        return tasks.metrics(model(inputs), targets)[0]

    @nnx.jit
    def step(model, optimizer, inputs, targets):
        optimizer.update(model, nnx.grad(loss)(model, inputs, targets))

    for (i, rate), seed in [((0, 1e-2), 0), ((1, 1e-1), 2)]:
        model = Linear(rngs=nnx.Rngs(params=jax.random.key(seed)))
        transformation = contenders({})["rmsprop"].make(jnp.float32(rate), None)
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        for batch in np.asarray(batches[seed]):
            split = task.train
            step(model, optimizer, split.inputs[batch], split.targets[batch])
        alone = [
            loss(model, split.inputs, split.targets)
            for split in (task.validation, task.test)
        ]
        np.testing.assert_allclose(
            sweep.validation_loss[-1, i, seed], alone[0], rtol=1e-5
        )
        if i == sweep.best:
            np.testing.assert_allclose(sweep.test_loss[seed], alone[1], rtol=1e-5)


def test_a_sweep_learns_and_repeats_to_the_bit(task, outcome):
    first, again = outcome.tried["rmsprop"], run(task)
    assert first.validation_loss.shape == (STEPS + 1, 2, 3)
    assert first.validation_loss[-1, 1].mean() < first.validation_loss[0, 1].mean()
    np.testing.assert_array_equal(first.validation_loss, again.validation_loss)
    np.testing.assert_array_equal(first.test_loss, again.test_loss)
    assert first.best == again.best == np.argmin(first.validation_loss[-1].mean(1))
    assert first.parameters == 8


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_a_sweep_that_was_cut_off_goes_on_to_the_bit(task, outcome, tmp_path, name):
    class CutOff(Exception):
        pass

    def resumed(stop_at):
        steps = []

        def on_progress(step, loss):
            steps.append(step)
            if step == stop_at:
                raise CutOff

        with Checkpoints(tmp_path) as checkpoints:
            arguments = ((1e-2, 1e-1), 3, STEPS, BATCH, on_progress, checkpoints)
            return sweeps.sweep(task, contenders({})[name], *arguments), steps

    for stop_at in (2, 4):
        with pytest.raises(CutOff):
            resumed(stop_at)
    for expected_steps in ([4, 5, 6], [6]):
        sweep, steps = resumed(None)
        assert steps == expected_steps
        for field in ("validation_loss", "test_loss", "test_accuracy", "evaluated_at"):
            np.testing.assert_array_equal(
                getattr(sweep, field), getattr(outcome.tried[name], field)
            )


def test_seeds_differ_and_are_the_same_for_all_optimizers(outcome):
    starts = [sweep.validation_loss[0] for sweep in outcome.tried.values()]
    assert len(set(starts[0][0].tolist())) == 3
    for start in starts:
        np.testing.assert_allclose(start, np.broadcast_to(starts[0][0], (2, 3)))


def test_options_reach_rmsprop_alone():
    def second_update(name, options):
        optimizer = contenders(options)[name].make(jnp.float32(0.1), None)
        state = optimizer.init(jnp.ones(()))
        _, state = optimizer.update(jnp.float32(1.0), state)
        return np.asarray(optimizer.update(jnp.float32(2.0), state)[0]).item()

    changes = {"decay": 0.5, "eps": 0.1, "momentum": 0.5, "centered": True}
    updates = [second_update("rmsprop", {k: v}) for k, v in changes.items()]
    assert len({*updates, second_update("rmsprop", {})}) == 5
    assert second_update("sgd", changes) == second_update("sgd", {})


def test_a_run_that_diverges_does_not_win(task):
    sweep = run(task, "sgd", rates=[1e-1, 1e38])
    assert not np.isfinite(sweep.validation_loss[-1, 1]).all()
    assert sweep.best == 0
    assert np.isfinite(sweep.test_loss).all()
    assert sweeps.best_rate(np.array([[np.nan, 0.0], [5.0, 6.0], [-np.inf, 1]])) == 1


def test_all_diverged_is_reported_without_a_number(task, outcome):
    validation_loss = outcome.tried["sgd"].validation_loss.copy()
    validation_loss[1:] = np.nan
    sweep = dataclasses.replace(
        outcome.tried["sgd"], test_loss=NAN, validation_loss=validation_loss
    )
    outcome = sweeps.Outcome(task, {"sgd": sweep}, BATCH)
    shown = render(outcome)
    assert "3 of 3 diverged" in shown
    assert "*" not in shown
    assert shown.split("diverged")[1].split()[0] == "-", "no accuracy"
    assert "nan" not in shown.lower()
    found = json.loads(results.json_bytes(report.results(outcome)))
    losses = found["optimizers"]["sgd"]["test_loss_by_seed"]
    assert losses == [None] * 3
    assert imread(io.BytesIO(pictures.png(picture.figure([outcome])))).std() > 0.05


def render(outcome):
    console = Console(width=60, file=io.StringIO())
    console.print(report.table(outcome))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_fits_60_columns_and_marks_the_best(outcome):
    shown = render(outcome)
    assert "…" not in shown
    rows = {name: line for line in shown.splitlines() for name in LABELS.values()
            if line.split()[:1] == [name]}  # fmt: skip
    assert len(rows) == len(NAMES)
    means = {LABELS[n]: s.test_loss.mean() for n, s in outcome.tried.items()}
    starred = [name for name, row in rows.items() if "*" in row]
    assert starred == [min(means, key=lambda name: means[name])]
    assert all("†" in row for row in rows.values()), "two rates are both at the edge"
    assert re.search(r"4\.\d\d", rows["RMSProp"])
    assert any("edge" in note for note in report.footnotes(outcome))


def test_edge_is_marked_only_there(task, outcome):
    inside = dataclasses.replace(
        outcome.tried["sgd"], learning_rates=np.array([0.1, 0.3, 1.0]), best=1
    )
    outcome = sweeps.Outcome(task, {"sgd": inside}, BATCH)
    assert "†" not in render(outcome)
    assert not any("edge" in note for note in report.footnotes(outcome))


def test_plus_minus_is_half_of_the_interval_over_seeds():
    # The standard error is 0.5774, and the t quantile of 2 degrees of freedom 4.303.
    assert statistics.with_interval(np.array([1.0, 2.0, 3.0]), 3) == "2.000 ± 2.484"
    assert statistics.with_interval(np.array([1.0]), 2) == "1.00"
    assert statistics.with_interval(np.array([1.0, np.inf]), 2) == "1 of 2 diverged"


BASE = np.array([1.0, 2.0, 3.0])
SMALL = np.array([0.01, 0.02, 0.03])
NOISE = np.array([0.5, -0.4, 0.0])
NAN = np.full(3, np.nan)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            {"rmsprop": BASE, "adam": BASE - SMALL - 0.09, "sgd": BASE + 1},
            [
                "does not win",
                "place 2 of 3",
                "Adam",
                "lower by 0.1100 ± 0.0248",
                "beyond",
            ],
        ),
        (
            {"rmsprop": BASE, "adam": BASE - NOISE},
            ["does not win", "place 2 of 2", "within noise"],
        ),
        (
            {"rmsprop": BASE, "adam": BASE + 1, "sgd": BASE + SMALL + 0.09},
            ["RMSProp wins here", "SGD's is higher by 0.1100 ± 0.0248", "beyond noise"],
        ),
        (  # 3.5 standard errors, but of three seeds
            {"rmsprop": BASE, "adam": BASE + 0.1, "sgd": BASE + SMALL},
            ["lowest test loss", "higher by 0.0200 ± 0.0248", "within noise"],
        ),
        (
            {"rmsprop": BASE, "adam": BASE + NOISE},
            ["RMSProp has the lowest test loss", "within noise"],
        ),
        ({"rmsprop": BASE, "adam": BASE}, ["within noise"]),
        ({"rmsprop": NAN, "adam": BASE}, ["does not win", "diverged"]),
        ({"rmsprop": BASE, "adam": NAN}, ["wins here", "all others diverged"]),
        ({"rmsprop": NAN, "adam": NAN}, ["All diverged"]),
        ({"rmsprop": BASE[:1], "adam": BASE[1:2]}, ["lowest", "one seed"]),
        ({"rmsprop": BASE}, ["nothing to compare"]),
        ({"sgd": BASE + 1, "adam": BASE}, ["Adam has", "RMSProp did not take part"]),
    ],
)
def test_verdict(losses, words):
    sentence = report.verdict(losses)
    for word in words:
        assert word in sentence


# The t quantiles of 1, 2 and 4 degrees of freedom are 12.706, 4.303 and 2.776.
@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776)])
def test_noise_is_judged_by_the_number_of_seeds(seeds, quantile):
    spread = np.arange(seeds, dtype=float)
    spread -= spread.mean()
    spread /= spread.std(ddof=1) / seeds**0.5
    for factor, word in ((0.99, "within noise"), (1.01, "beyond noise")):
        losses = {"rmsprop": np.zeros(seeds), "adam": spread + factor * quantile}
        sentence = report.verdict(losses)
        assert word in sentence
        (width,) = re.findall(r"± ([\d.]+)", sentence)
        assert float(width) == pytest.approx(quantile, rel=1e-3)


def test_the_rate_is_chosen_on_validation_data_and_not_on_test_data(task):
    """The test data have all targets changed: what is best there is worst here."""
    other = dataclasses.replace(task.test, targets=1 - task.test.targets)
    sweep = run(dataclasses.replace(task, test=other), rates=[1e-4, 1e-1])
    same = run(task, rates=[1e-4, 1e-1])
    assert sweep.best == same.best == 1
    np.testing.assert_array_equal(sweep.validation_loss, same.validation_loss)
    assert not np.allclose(sweep.test_loss, same.test_loss)


def test_time_is_per_step_and_run(task, monkeypatch):
    """On a clock that ticks once a look: a second for each stretch of training."""
    ticks = itertools.count()
    monkeypatch.setattr(lab_training.time, "perf_counter", lambda: float(next(ticks)))
    sweep = run(task)
    assert sweep.compile_seconds == 1
    assert sweep.step_seconds == pytest.approx(STEPS / STEPS / (2 * 3))


def test_the_picture_draws_the_best_rate(outcome):
    whole = picture.figure([outcome])
    curves, rates = whole.subfigs[0].axes
    for line, (name, sweep) in zip(
        curves.get_lines(), outcome.tried.items(), strict=True
    ):
        mean = sweep.validation_loss[:, sweep.best].mean(-1)
        np.testing.assert_allclose(line.get_ydata(), mean)
        assert LABELS[name] in line.get_label()
        assert f"{sweep.learning_rates[sweep.best]:g}" in line.get_label()
    for band, sweep in zip(curves.collections, outcome.tried.values(), strict=True):
        losses = sweep.validation_loss[:, sweep.best]
        errors = statistics.half_width(losses)
        heights = band.get_paths()[0].vertices[:, 1]
        for edge in (losses.mean(-1) - errors, losses.mean(-1) + errors):
            assert np.abs(heights[:, None] - edge).min(axis=0).max() < 1e-5
    rings = [x for x in rates.get_lines() if x.get_markerfacecolor() == "none"]
    for ring, sweep in zip(rings, outcome.tried.values(), strict=True):
        assert ring.get_xdata() == sweep.learning_rates[sweep.best]
    for bars, sweep in zip(rates.containers, outcome.tried.values(), strict=True):
        (segments,) = bars[2]
        lengths = [high - low for (_, low), (_, high) in segments.get_segments()]
        errors = statistics.half_width(sweep.validation_loss[-1])
        np.testing.assert_allclose(lengths, 2 * errors)


def test_one_optimizer_alone_and_a_single_rate_are_said_to_be_that(task):
    outcome = sweeps.Outcome(task, {"sgd": run(task, "sgd", rates=[0.1])}, BATCH)
    assert "*" not in render(outcome)
    notes = " ".join(report.footnotes(outcome))
    assert "lowest" not in notes
    assert "the only rate that was tried" in notes


def test_convolution_through_patches_is_the_convolution():
    random = np.random.default_rng(0)
    for size, kernel, stride in [((8, 8), (3, 3), 1), ((8, 7), (3, 2), 2)]:
        x = jnp.asarray(random.normal(size=(2, *size, 3)), jnp.float32)
        k = jnp.asarray(random.normal(size=(*kernel, 3, 5)), jnp.float32)
        strides = (stride, stride)
        convolve = partial(
            jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(
            models.patch_convolution(x, k, strides, "SAME"),
            convolve(x, k, strides, "SAME"),
            rtol=1e-4,
            atol=1e-5,
        )
    with pytest.raises(ValueError, match="VALID"):
        models.patch_convolution(x, k, (1, 1), "VALID")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_tasks_have_disjoint_splits_and_a_model_of_params(name):
    task, again = tasks.TASKS[name](), tasks.TASKS[name]()
    splits = [task.train, task.validation, task.test]
    np.testing.assert_array_equal(task.train.inputs, again.train.inputs)
    assert all(len(s.inputs) == len(s.targets) >= 100 for s in splits)
    params = jax.eval_shape(task.net.init, jax.random.key(0))
    assert all(isinstance(x, nnx.Param) for _, x in nnx.to_flat_state(params))
    logits = jax.eval_shape(task.net.apply, params, task.validation.inputs[:2])
    assert logits.shape[:-1] == task.validation.targets[:2].shape
    assert max(s.targets.max() for s in splits) < logits.shape[-1]
    # Tables hold rows of dashes and of spaces.
    examples = [{x.tobytes() for x in s.inputs} for s in splits]
    for i in range(3):
        repeated = examples[i] & set().union(*examples[:i], *examples[i + 1 :])
        assert len(repeated) <= 0.03 * len(examples[i])


def test_text_predicts_the_next_character():
    task = tasks.text()
    np.testing.assert_array_equal(task.train.inputs[:, 1:], task.train.targets[:, :-1])


def test_metrics():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    loss, accuracy = tasks.metrics(logits, jnp.array([2, 1]))
    np.testing.assert_allclose(loss, -np.log([0.25, 0.8]).mean(), rtol=1e-6)
    assert accuracy == 0.5
    expected = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.array([2, 1])
    )
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)


def test_batches_go_through_every_example_before_any_comes_again():
    batches = jnp.stack(
        [tasks.shuffled(jax.random.key(seed), 10, 5, 7) for seed in range(2)]
    )
    assert batches.shape == (2, 7, 5)
    for seed in range(2):
        for epoch in range(3):
            both = batches[seed, 2 * epoch : 2 * epoch + 2]
            assert sorted(both.ravel().tolist()) == list(range(10))
    assert not np.array_equal(batches[0], batches[1])


def test_default_grids_are_logarithmic():
    for grids in GRIDS.values():
        for optimizer in NAMES:
            rates = np.array(grids[optimizer])
            assert len(rates) >= 5
            assert np.all(np.abs(np.diff(np.log10(rates)) - 0.5) < 0.03)
