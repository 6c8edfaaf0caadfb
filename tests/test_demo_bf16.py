"""The demo's task `bf16`: its program, master weights, the table and the picture."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.image import imread

from rmsprop_jax import cli, rmsprop
from rmsprop_jax.demo import bf16, bf16_report
from rmsprop_jax.lab import pictures, tasks
from rmsprop_jax.lab.master import with_master_weights
from rmsprop_jax.lab.models import Net
from rmsprop_jax.lab.program import cosine
from rmsprop_jax.lab.training import keys_of, points, train

pytestmark = [pytest.mark.optimized, pytest.mark.promotion]  # Optax's schedules

STEPS, BATCH = 4, 4


def _linear():
    def apply(params, x):
        return x @ params["w"] + params["b"]

    def init(key):
        return {"w": jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)}

    return Net(init, apply)


def _splits():
    inputs = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int32)
    return {
        name: tasks.Split(inputs[i : i + 20], targets[i : i + 20])
        for i, name in ((0, "train"), (20, "validation"), (40, "test"))
    }


def test_the_program_trains_as_each_form_alone_does():
    net, splits, forms = _linear(), _splits(), bf16.contenders(0.9, 1e-8)
    rates, keys = jnp.asarray([1e-2, 0.1]), keys_of(range(2))
    task = tasks.Task("toy", "two classes", "point", *splits.values(), net)
    problem = tasks.learning(
        task, STEPS, BATCH, epochs=False, dtype="bfloat16", schedule=cosine
    )
    run = dict.fromkeys(forms, rates)
    trained = train(problem, forms, [0.0], run, keys, points(STEPS, 2))
    assert trained.values[bf16.MASTER].shape == (3, 1, 2, 2)
    tested = trained.report(dict.fromkeys(forms, (1,)))
    assert list(tested) == list(forms)
    for name, form in forms.items():
        if "round_params" in name or "same" in name:
            continue  # whose bits are those of a member
        for member in (1,):
            rate, key = rates[member], keys[member]
            schedule = optax.cosine_decay_schedule(rate, STEPS)
            tx = form.make(schedule, None)
            flat, tree = ravel_pytree(net.init(key))
            params = flat.astype(jnp.bfloat16).astype(form.dtype)

            def loss(params, split, chosen, tree=tree, dtype=form.dtype):
                x = jnp.asarray(split.inputs)[chosen].astype(dtype)
                weights = jax.tree.map(
                    lambda w: w.astype(dtype), tree(params.astype(jnp.float32))
                )
                logits = net.apply(weights, x).astype(jnp.float32)
                return tasks.metrics(logits, jnp.asarray(split.targets)[chosen])[0]

            state = tx.init(params)
            for step in range(STEPS):
                at = jax.random.fold_in(key, step)
                chosen = jax.random.randint(at, (BATCH,), 0, 20)
                g = jax.grad(loss)(params, splits["train"], chosen)
                updates, state = tx.update(g, state, params)
                params = optax.apply_updates(params, updates)
            expected = loss(params, splits["test"], jnp.arange(20))
            tolerance = 1e-5 if form.dtype == "float32" else 0.03
            np.testing.assert_allclose(
                tested[name]["test_loss"][0, member],
                expected,
                rtol=tolerance,
                err_msg=name,
            )


def test_master_weights_are_those_of_a_float32_run_and_parameters_are_them_rounded():
    tx, exact = with_master_weights(rmsprop(1e-3)), rmsprop(1e-3)
    params = {"w": jnp.linspace(-2, 2, 50, dtype=jnp.bfloat16)}
    wide = {"w": params["w"].astype(jnp.float32)}
    state, exact_state = tx.init(params), exact.init(wide)
    for step in range(30):
        g = {"w": jnp.cos(jnp.arange(50.0) + step)}
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        updates, exact_state = exact.update(g, exact_state, wide)
        wide = optax.apply_updates(wide, updates)
        np.testing.assert_array_equal(state.weights["w"], wide["w"])
        assert params["w"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(params["w"], wide["w"].astype(jnp.bfloat16))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new"
    options = ["--steps=20", "--seeds=3", "--lrs=1e-3,1e-2", "--quiet", f"--out={out}"]
    return out, cli.main(["demo", "--task=bf16", *options])


def test_the_command_writes_results_and_the_picture(ran):
    out, status = ran
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == ["bf16.png", "results.json"]
    assert imread(out / "bf16.png").std() > 0.05
    task = json.loads((out / "results.json").read_text())["tasks"]["bf16"]
    found = task["contenders"]
    assert list(found) == list(bf16_report.STYLES)
    assert {name: row["bytes_per_parameter"] for name, row in found.items()} == {
        "optax.rmsprop": 4,
        "rmsprop_jax.rmsprop": 6,
        "round_params='stochastic'": 6,
        "round_params='remainder'": 7,
        "the same, nu_dtype='uint8'": 4,
        bf16.MASTER: 10,
        "float32 throughout": 8,
    }
    for name, row in found.items():
        assert np.shape(row["final_validation_loss_by_rate_and_seed"]) == (2, 3)
        assert np.isfinite(row["test_loss_by_seed"]).all()
        known = row["percent_beside_master_weights"]
        assert (known is None) == (name == bf16.MASTER)


def _found(**losses):
    base = np.array([1.0, 1.1, 0.9, 1.0])
    every = {name: base.copy() for name in bf16_report.STYLES}
    every |= {name.replace("_", " "): base * x for name, x in losses.items()}
    curves = {name: np.stack([[x], [x]]) for name, x in every.items()}
    return bf16.Found(
        learning_rates=np.array([0.1]), steps=2, batch_size=1, decay=0.9, parameters=3,
        validation_loss=curves, test_loss=every, test_accuracy=every,
        bytes_per_parameter=dict.fromkeys(every, 4.0), seconds=1.0, compile_seconds=1.0,
    )  # fmt: skip


def test_the_verdict_tells_what_is_beyond_noise(capsys, monkeypatch):
    noisy = np.array([1.2, 0.8, 1.1, 0.9])
    found = _found(float32_throughout=1.1 + np.array([0, 0.01, -0.01, 0]))
    found.test_loss["optax.rmsprop"] *= noisy
    said = dict(line.split(": ") for line in bf16_report.verdicts(found))
    assert len(said) == len(bf16_report.STYLES) - 1, "one thing a line"
    assert said["float32 throughout"].startswith("higher loss (+")
    assert said["optax.rmsprop"].startswith("within noise")
    mean, width = bf16_report.interval(found, "float32 throughout")
    assert mean == pytest.approx(10, abs=0.5)
    assert 0 < width < 4
    monkeypatch.setenv("COLUMNS", "60")
    bf16_report.show(found)
    shown = capsys.readouterr().out
    assert "†" in shown
    assert max(map(len, shown.split("loss: nats")[0].splitlines())) <= 60
    assert imread(io.BytesIO(pictures.png(bf16_report.figure(found)))).std() > 0.05
    one = dataclasses.replace(
        found, test_loss={name: x[:1] for name, x in found.test_loss.items()}
    )
    assert all("unknown, one seed" in line for line in bf16_report.verdicts(one))
    bf16_report.show(one)
    found.test_loss["optax.rmsprop"][0] = np.inf
    assert "optax.rmsprop: unknown, a run diverged" in bf16_report.verdicts(found)
    pictures.png(bf16_report.figure(found))
