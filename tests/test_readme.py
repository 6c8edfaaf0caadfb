"""The README: its code runs, its numbers, links and commands are real; it is short."""

import contextlib
import inspect
import io
import json
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rmsprop_jax import rmsprop, storage

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FIRST, *RECIPES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.M | re.S))

pytestmark = pytest.mark.promotion


def ran(*blocks):
    """The names that blocks of code leave, run one after the other."""
    names = {"__name__": "readme"}
    for block in blocks:
        exec(block, names)
    return names


def test_the_first_lines_run_and_learn():
    assert len([line for line in FIRST.splitlines() if line]) == 15
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        ran(FIRST)
    first, last = map(float, output.getvalue().split(" -> "))
    assert last < 1e-3 * first


def test_three_bytes_per_parameter_train():
    names = ran(FIRST, RECIPES[0])
    step, model, optimizer = (names[name] for name in ("step", "model", "optimizer"))
    losses = [float(step(model, optimizer)) for _ in range(300)]
    assert losses[-1] < 1e-3 * losses[0]
    assert model.kernel[...].dtype == jnp.bfloat16
    params = jax.ShapeDtypeStruct((1000, 1000), jnp.bfloat16)
    held = (params, jax.eval_shape(names["tx"].init, params))
    assert sum(storage.sizes(held).values()) == pytest.approx(3e6, rel=1e-4)
    params = params.update(dtype=jnp.float32)
    held = (params, jax.eval_shape(rmsprop(0.1).init, params))
    assert sum(storage.sizes(held).values()) == 8e6


def test_a_torch_run_goes_on(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(3, 1)
    run = torch.optim.RMSprop(theirs.parameters(), lr=0.03, momentum=0.5)

    def torch_step(x, y):
        run.zero_grad()
        (theirs(x) - y).pow(2).mean().backward()
        run.step()

    names = ran(FIRST)
    x, y = (torch.tensor(jax.device_get(names[name])) for name in "xy")
    for _ in range(5):
        torch_step(x, y)
    states = {"model": theirs.state_dict(), "optimizer": run.state_dict()}
    torch.save(states, "run.pt")
    exec(RECIPES[1], names)
    for _ in range(10):
        torch_step(x, y)
        names["step"](names["model"], names["optimizer"])
    assert int(names["optimizer"].step[...]) == 15
    ours = names["model"].kernel[...].T
    assert jnp.allclose(ours, theirs.weight.detach().numpy(), rtol=1e-5)


def test_it_shows_what_it_does_while_it_trains():
    names = ran(FIRST, RECIPES[2])
    assert names["log"]["rms/effective_rate_p50/kernel"] > 0
    assert names["table"].row_count == 3


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_each_command_sets_itself_up_in_one_line():
    commands = re.findall(r"^ {4}(python3 .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command, program in zip(commands, ("rmsprop-jax demo", "pytest"), strict=True):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert program in command
    assert "rmsprop-jax" in PROJECT["scripts"]


def test_versions_and_extras_are_those_of_the_project():
    floors = dict(
        re.findall(r"(\w+) (\d[\d.]*\d)", SECTIONS["Install"].split(" or newer")[0])
    )
    assert floors.pop("Python") == PROJECT["requires-python"].removeprefix(">=")
    needed = dict(line.split(">=") for line in PROJECT["dependencies"])
    assert needed.pop("jaxlib") == needed["jax"]
    assert floors == needed
    extras = set(re.findall(r"'\.\[(\w+)\]'", README))
    assert {"gpu", "tpu", "convert", "demo", "test"} <= extras
    assert extras <= set(PROJECT["optional-dependencies"])


def results(name):
    return json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())


def table(section):
    rows = re.findall(r"^\| (.*) \|$", SECTIONS[section], re.MULTILINE)
    return [row.split(" | ") for row in rows if not row.startswith("-")]


def test_the_losses_in_bfloat16_are_those_of_the_results():
    found = results("bf16")["tasks"]["bf16"]["contenders"]

    def loss(name):
        row = found[name]
        at = row["learning_rates"].index(3e-4)
        losses = row["final_validation_loss_by_rate_and_seed"][at]
        assert len(losses) == 30
        return f"{sum(losses) / len(losses):.2f}"

    row = " ".join(table("Why not `optax.rmsprop`?")[1][1:])
    shown = re.findall(r"\b\d\.\d\d\b", row)
    assert shown == [
        loss(name)
        for name in (
            "optax.rmsprop",
            "round_params='remainder'",
            "float32 master weights",
        )
    ]


def test_what_round_params_reaches_is_that_of_the_results():
    found = results("claims_bf16")["claims"]["bf16"]
    shown = []
    for form in ("remainder", "stochastic"):
        at = found["mean_difference_percent"][form]
        low, high = at["low"], at["high"]
        shown.append(f"{at['mean']:+.1f} % ({low:.1f} to {high:.1f})".replace("-", "−"))
    assert re.findall(r"[+−]\d\.\d % \(.*?\)", README.split("## ")[0]) == shown
    (remainder,) = (x for x in found["statements"] if "remainder:" in x["claim"])
    assert remainder["counts"] == {"met": 3, "open": 9, "contradicted": 0}
    assert {x["seeds"] for x in remainder["criteria"]} == {120}


def test_the_speeds_are_those_of_the_results():
    speed, tpu = results("speed_cpu")["shapes"], results("tpu")["topologies"]["v5e:2x2"]
    gpu = results("gpu")["topologies"]["h100"]["by_dtype"]
    header, *rows = table("How fast")
    for dtype, column in (("float32", header[4]), ("bfloat16", header[5])):
        optax = gpu[dtype]["optax.rmsprop"]["bytes_per_parameter"]
        assert f"(Optax {optax:g})" in column
    assert [row[0] for row in rows] == ["float32", "uint16", "uint8"]
    for nu, *shown in rows:
        row = "ours" if nu == "float32" else f"ours-{nu}"

        def ratio(cells, key, row=row):
            return f"{cells[row][key] / cells['optax.rmsprop'][key]:.2f}"

        expected = [ratio(speed[x]["rows"], "milliseconds") for x in ("1e7", "gpt2")]
        expected.append(ratio(tpu["by_dtype"]["float32"], "cycles"))
        for dtype in ("float32", "bfloat16"):
            expected.append(f"{gpu[dtype][row]['bytes_per_parameter']:.0f} bytes")
        assert shown == expected


def test_every_option_in_the_table_exists():
    options = set(re.findall(r"`(\w+)(?:=[^`]*)?`", SECTIONS["What it can do"]))
    known = set(inspect.signature(rmsprop).parameters)
    assert options - {"rmsprop", "scale_by_rms"} <= known
