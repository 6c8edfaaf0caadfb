"""What `help` shows of each public module: all that is public, and nothing else."""

import importlib
import inspect
import pkgutil
import pydoc
import re

import pytest

import rmsprop_jax

COMMANDS = {"bench", "claims", "cli", "demo", "lab"}
PUBLIC = {
    name: importlib.import_module(f"rmsprop_jax.{name}")
    for _, name, _ in pkgutil.iter_modules(rmsprop_jax.__path__)
    if not name.startswith("_") and name not in COMMANDS
}
MODULES = pytest.mark.parametrize(
    "module", [rmsprop_jax, *PUBLIC.values()], ids=lambda module: module.__name__
)


def test_these_are_the_public_modules():
    assert list(PUBLIC) == [
        "checkpoint", "convert", "decay", "diagnostics", "dialects", "rounding",
        "sharding", "storage",
    ]  # fmt: skip
    # Checkpoints need Orbax, which the package itself does not.
    assert set(PUBLIC) - {"checkpoint"} <= set(rmsprop_jax.__all__)


@MODULES
def test_help_shows_what_is_public_and_nothing_else(module):
    sections = "CLASSES|FUNCTIONS|DATA"
    text = pydoc.plain(pydoc.render_doc(module))
    found = re.findall(rf"^(?:{sections})\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    shown = set(re.findall(r"^    (?:class )?(\w+)(?:\(| = )", "".join(found), re.M))
    own = {name for name in module.__all__ if name not in PUBLIC}
    assert shown - {"__all__", "builtins"} == own


@MODULES
def test_what_is_public_says_what_it_is(module):
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name


INTERNAL = {"Constant", "as_schedule", "grid_of", "table_of"}
"""Without an underscore, because other modules of the package use them."""


@MODULES
def test_nothing_of_ours_is_left_out(module):
    for name, value in vars(module).items():
        is_ours = getattr(value, "__module__", "").startswith("rmsprop_jax")
        if is_ours and callable(value) and not name.startswith("_"):
            assert name in {*module.__all__, *INTERNAL}


@MODULES
def test_equations_are_text_that_reads_in_help(module):
    for name in module.__all__:
        text = inspect.getdoc(getattr(module, name)) or ""
        assert "math::" not in text, name
        assert not re.search(r"\\(frac|text|rho|nu|sqrt|leftarrow)", text), name
