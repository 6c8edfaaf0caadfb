"""The README: its code runs, its links and commands are real, and it stays short."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.promotion


def test_the_code_block_runs_and_learns():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {"__name__": "readme"})
    first, last = map(float, output.getvalue().split(" -> "))
    assert last < 1e-3 * first


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_each_command_sets_itself_up_in_one_line():
    commands = re.findall(r"^ {4}(python3 .*)$", README, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(commands) == 2
    for command, program in zip(commands, ("rmsprop-jax demo", "pytest"), strict=True):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        (extra,) = re.findall(r"'\.\[(\w+)\]'", command)
        assert extra in project["optional-dependencies"]
        assert program in command
    assert "rmsprop-jax" in project["scripts"]


def test_every_option_in_the_table_exists():
    import inspect

    from rmsprop_jax import rmsprop

    table = README.split("## What it can do")[1]
    options = set(re.findall(r"`(\w+)(?:=[^`]*)?`", table))
    known = set(inspect.signature(rmsprop).parameters)
    assert options - {"rmsprop", "scale_by_rms", "vmap"} <= known
