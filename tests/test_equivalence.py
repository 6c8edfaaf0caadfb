"""The claim of 16-bit training: its nets, its margin, and parts that are kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from rmsprop_jax import cli
from rmsprop_jax.claims import equivalence, nets
from rmsprop_jax.claims.equivalence import FORMS, MASTER, Found
from rmsprop_jax.lab.results import Cells

pytestmark = [pytest.mark.optimized, pytest.mark.promotion]  # Optax's


@pytest.mark.parametrize("name", nets.NETS)
def test_nets_compute_in_the_dtype_of_their_parameters(name):
    net, dtype = nets.NETS[name], jnp.bfloat16
    params = jax.tree.map(lambda x: x.astype(dtype), net.init(jax.random.key(0)))
    signals = jnp.asarray(np.random.default_rng(0).normal(size=(3, 40)), dtype)
    logits = jax.jit(net.apply)(params, signals)
    assert logits.shape == (3, 10)
    assert logits.dtype == dtype
    assert np.isfinite(np.asarray(logits, float)).all()
    # A net that did not look at one of its parameters would have no gradient of it.
    grads = jax.jit(
        jax.grad(lambda p: net.apply(p, signals).astype(jnp.float32).std())
    )(params)
    assert all(np.asarray(g, float).any() for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_signals_are_the_same_again_and_leave_the_global_generator():
    pytest.importorskip("mnist1d")
    np.random.seed(7)  # noqa: NPY002
    found = nets.signals.__wrapped__()
    after = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002
    again = nets.signals()
    for name, size in (("train", 16_000), ("validation", 1_000), ("test", 4_000)):
        split, same = getattr(found, name), getattr(again, name)
        assert split.inputs.shape == (size, 40)
        np.testing.assert_array_equal(split.inputs, same.inputs)
        assert np.unique(split.targets).tolist() == list(range(10))
    shared = {x.tobytes() for x in found.train.inputs}
    assert not shared & {x.tobytes() for x in found.test.inputs}


def planted(**percent):
    """Found in two cells, whose losses differ by so many percent from the masters'."""
    seeds = np.random.default_rng(0).normal(size=100)
    cells = {}
    for at, (form, mean, noise) in percent.items():
        base = 2 + 0.01 * seeds
        losses = {name: base.tolist() for name in FORMS}
        shift = mean + noise * (seeds - seeds.mean())[::-1] / seeds.std()
        losses[form] = (base + 0.02 * shift).tolist()
        cells[f"{at}, 0.9"] = {"test_loss": losses, "improved_percent": {form: 2.0}}
    return Found(cells, 10)


def test_the_margin_is_one_percent_and_both_ends_of_the_interval_count():
    form = "remainder"
    found = planted(
        inside=(form, 0.5, 1.0), open=(form, 0.9, 2.0), outside=(form, 1.5, 1.0),
        better=(form, -1.5, 1.0),
    )  # fmt: skip
    statements = equivalence.judge(found)
    assert len(statements) == len(FORMS) - 1
    (judged,) = (
        s.judged() for s in statements if s.claim.startswith(f"bfloat16, {form}:")
    )
    outcomes = [c["outcome"] for c in judged["criteria"]]
    assert outcomes == ["met", "open", "contradicted", "contradicted"]
    assert judged["verdict"] != "holds"
    low, high = judged["criteria"][0]["interval"]
    # Each interval is one of 95 %, for all that have to hold need no correction.
    width = 1.984 * np.std(found.differences(form)[0], ddof=1) / 10
    np.testing.assert_allclose([low, high], [0.5 - width, 0.5 + width], atol=2e-3)
    for other in statements:
        if other.claim.startswith("bfloat16, stochastic"):
            assert other.judged()["verdict"] == "holds"
    figure = Figure()
    equivalence.draw(figure, found)
    assert len(figure.axes) == len(FORMS) - 1
    summary = equivalence.summary(found)
    assert "still fell by 2.0 %" in summary["notes"][-1]
    assert any(note.startswith(f"{form}: +0.35 % (") for note in summary["notes"])
    assert summary["mean_difference_percent"]["stochastic"]["high"] == 0


def test_parts_are_kept_and_those_of_other_settings_refused(tmp_path):
    calls = []

    def measured(value):
        calls.append(value)
        return {"x": value}

    first = Cells(tmp_path, "bf16", resume=False)
    first.begin({"steps": 3})
    assert first.of("a", lambda: measured(1)) == {"x": 1}
    again = Cells(tmp_path, "bf16", resume=True)
    again.begin({"steps": 3})
    assert again.of("a", lambda: measured(2)) == {"x": 1}
    assert again.of("b", lambda: measured(3)) == {"x": 3}
    assert calls == [1, 3]
    with pytest.raises(ValueError, match="has parts of a run with other settings"):
        Cells(tmp_path, "bf16", resume=True).begin({"steps": 4})
    anew = Cells(tmp_path, "bf16", resume=False)
    anew.begin({"steps": 4})
    assert anew.of("a", lambda: measured(5)) == {"x": 5}
    nothing = Cells(None, "bf16", resume=True)
    nothing.begin({})
    assert nothing.of("a", lambda: measured(6)) == {"x": 6}


@pytest.mark.slow
def test_the_command_measures_and_goes_on(tmp_path, capsys):
    pytest.importorskip("mnist1d")
    command = ["claims", "bf16", "--quick", "--seeds=2", "--quiet", f"--out={tmp_path}"]
    assert cli.main(command) == 0
    results = (tmp_path / "results.json").read_text()
    found = json.loads(results)["claims"]["bf16"]
    assert list(found["cells"]) == ["MLP, 0.99", "MLP, 0.999"]
    for cell in found["cells"].values():
        assert list(cell["test_loss"]) == list(FORMS)
        assert all(np.shape(x) == (8,) for x in cell["test_loss"].values())
        assert len({tuple(x) for x in cell["test_loss"].values()}) == len(FORMS)
    assert found["margin_percent"] == 1
    kept = tmp_path / "bf16-cells.json"
    cells = json.loads(kept.read_text())
    cells["cells"]["MLP, 0.99"]["test_loss"][MASTER] = [1.0] * 8
    kept.write_text(json.dumps(cells))
    assert cli.main([*command, "--resume"]) == 0
    again = json.loads((tmp_path / "results.json").read_text())["claims"]["bf16"]
    assert again["cells"]["MLP, 0.99"]["test_loss"][MASTER] == [1.0] * 8
    capsys.readouterr()
    assert cli.main([*command[:3], "--seeds=3", *command[4:], "--resume"]) == 1
    assert "other settings" in capsys.readouterr().err
