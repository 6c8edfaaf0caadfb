"""Imports go one way, files stay small, and the update rule stands in one place."""

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import pytest

from rmsprop_jax import rmsprop

PACKAGE = Path(__file__).parent.parent / "rmsprop_jax"

# Which modules of the package each module may import.
MAP = {
    "_checks": set(),
    "_files": {"_install"},
    "_injection": {"_checks"},
    "_signature": {"_injection"},
    "_matching": set(),
    "_bits": {"_checks", "_matching"},
    "_grid": set(),
    "_round_params": {
        "_bits",
        "_grid",
        "_leaves",
        "_matching",
        "_placement",
        "_store",
    },
    "rounding": {"_bits", "_checks", "_grid", "_matching", "_round_params"},
    "_state": set(),
    "_format": {"_checks"},
    "_codes": {"_format", "_state"},
    "_leaves": {"_matching"},
    "_store": {"_codes", "_format", "_grid", "_leaves"},
    "storage": {"_store", "_checks", "_codes", "_format"},
    "decay": {"_checks"},
    "_rms": {
        "_bits",
        "_checks",
        "_leaves",
        "_matching",
        "_placement",
        "_state",
        "_store",
        "decay",
    },
    "_transform": {"_rms", "_signature"},
    "_placement": set(),
    "sharding._parts": set(),
    "sharding._pieces": {"_parts"},
    "sharding._operations": {"_parts"},
    "sharding._exchange": {"_parts"},
    "sharding._program": {"_exchange", "_operations", "_parts", "_pieces"},
    "sharding._inside": {"_parts", "_pieces", "_placement", "_program"},
    "sharding._zero_state": {"_checks", "_inside", "_parts", "_placement"},
    "sharding._zero": {"_checks", "_inside", "_matching", "_parts", "_zero_state"},
    "sharding._follow": {"_checks", "_matching", "_placement"},
    "sharding.__init__": {"_follow", "_zero", "_zero_state"},
    "_chain": {
        "_bits",
        "_checks",
        "_leaves",
        "_matching",
        "_placement",
        "_store",
    },
    "_weight_decay": {"_chain", "_checks", "_leaves", "_matching"},
    "_rmsprop": {
        "_checks",
        "_chain",
        "_rms",
        "_round_params",
        "_signature",
        "_state",
        "_weight_decay",
        "_store",
    },
    "dialects._dialect": {"_checks", "_injection", "_signature", "_rmsprop"},
    "dialects._table": {"_signature"},
    "dialects._jax": {"decay", "_dialect"},
    "dialects._tensorflow": {"_checks", "decay", "_dialect"},
    "dialects._keras": {"_checks", "_dialect", "_tensorflow"},
    "dialects._timm": {"_checks", "_dialect"},
    "dialects._torch": {"_checks", "_dialect"},
    "dialects._papers": {"_dialect", "_tensorflow"},
    "dialects.__init__": {
        "_jax",
        "_keras",
        "_papers",
        "_table",
        "_tensorflow",
        "_timm",
        "_torch",
    },
    "_install": set(),
    "convert._files": {"_files"},
    "convert._record": {"_leaves", "dialects", "_store", "_state", "_rmsprop"},
    "convert._origins": {"_record"},
    "convert._names": {"_checks", "_origins", "_record"},
    "convert._moving": {"_names", "_origins", "_record"},
    "convert._continued": {"_record"},
    "convert._torch_files": {"_files"},
    "convert._bitsandbytes": {"_torch_files"},
    "convert._torch": {"dialects", "_bitsandbytes", "_record", "_torch_files"},
    "convert._hdf5": {"_files"},
    "convert._keras_layers": set(),
    "convert._keras": {
        "dialects",
        "_files",
        "_hdf5",
        "_keras_layers",
        "_record",
        "_stored",
    },
    "convert._stored": {"_record"},
    "convert._tf1": {"_files", "_record", "_stored"},
    "convert._optax_files": {"_files", "_record"},
    "convert._optax": {"_optax_files", "_record"},
    "convert._ours": {"_files", "_record"},
    "convert._sources": {
        "_files",
        "_keras",
        "_names",
        "_optax",
        "_ours",
        "_record",
        "_tf1",
        "_torch",
        "_torch_files",
    },
    "convert._resume": {"_checks", "_record"},
    "convert._api": {
        "_checks",
        "_continued",
        "_files",
        "_moving",
        "_names",
        "_origins",
        "_ours",
        "_record",
        "_resume",
        "_sources",
        "_torch",
    },
    "convert._translate": {"_api", "_checks", "_record", "_resume"},
    "convert._restored": {"_leaves", "_record", "_rms"},
    "convert._elements": {"_leaves", "_record"},
    "convert._memory": {"_elements"},
    "convert._adam": {"_record"},
    "convert._migrate": {
        "_adam",
        "_checks",
        "_elements",
        "_memory",
        "_optax",
        "_record",
        "_restored",
        "_store",
        "_resume",
    },
    "convert.__init__": {
        "_api",
        "_migrate",
        "_names",
        "_origins",
        "_record",
        "_resume",
        "_translate",
    },
    "checkpoint._digests": set(),
    "checkpoint._leaves": {"_leaves"},
    "checkpoint._first_version": {"_leaves"},
    "checkpoint._manifest": {"__version__", "_leaves", "_matching"},
    "checkpoint._reading": {"_digests", "_first_version", "_leaves", "_manifest"},
    "checkpoint._writing": {"_digests", "_manifest", "_reading"},
    "checkpoint._arguments": set(),
    "checkpoint._checkpoints": {
        "_arguments",
        "_checks",
        "_leaves",
        "_manifest",
        "_reading",
        "_writing",
    },
    "checkpoint.__init__": {"_checkpoints", "_reading"},
    "diagnostics._spectrum": {"_store", "storage"},
    "diagnostics._trees": {"_leaves", "_matching", "_placement", "convert", "sharding"},
    "diagnostics._values": {
        "_checks",
        "_leaves",
        "_spectrum",
        "_trees",
        "_store",
        "storage",
    },
    "diagnostics._watch": {
        "_checks",
        "_matching",
        "_placement",
        "_signature",
        "_values",
        "dialects",
    },
    "diagnostics._show": {"_checks", "_trees", "_files", "_values"},
    "diagnostics._finder": {"_checks", "_matching"},
    "diagnostics._pictures": {
        "_checks",
        "_finder",
        "_show",
        "_values",
        "_files",
    },
    "diagnostics.__init__": {
        "_finder",
        "_pictures",
        "_show",
        "_trees",
        "_values",
        "_watch",
    },
    "_interrupt": set(),
    "__init__": {
        "_interrupt",
        "_state",
        "convert",
        "decay",
        "diagnostics",
        "dialects",
        "rounding",
        "sharding",
        "storage",
        "_rmsprop",
        "_transform",
    },
    "__main__": {"cli"},
}
CORE = [name for name in MAP if not name.startswith("__") and "." not in name]
DIALECTS = [name for name in MAP if name.startswith("dialects.")]
COMMANDS = ("bench", "claims", "demo")
FOR_PEOPLE = {
    *COMMANDS,
    "cli",
    "convert.command",
    "lab",
}  # import anything; none imports them


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path):
    """Names of the package's modules that a file imports, and of other packages."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level and not node.module:
                ours |= {alias.name for alias in node.names}
            elif node.level:
                ours.add(parts[0])
            elif parts[0] == "rmsprop_jax":
                ours |= {parts[1]} if parts[1:] else {a.name for a in node.names}
            else:
                others.add(parts[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_imports_follow_the_map():
    for name, path in modules():
        if {name, name.split(".")[0]} & FOR_PEOPLE:
            continue
        assert name in MAP, f"{name} is not on the map of imports: put it there"
        ours, _ = imports(path)
        assert ours <= MAP[name], f"{name} imports {ours - MAP[name]}"


def test_no_command_imports_another_and_the_lab_imports_none():
    for name, path in modules():
        room, *inside = name.split(".")
        if room in (*COMMANDS, "lab"):
            ours, _ = imports(path)
            # Of files in a room: `from . import x` and `from .x import y` stay in it.
            beside = {other for other, _ in modules() if other.startswith(f"{room}.")}
            outside = {n for n in ours if f"{room}.{n}" not in beside}
            assert not outside & (set(COMMANDS) - {room}), f"{name}: {outside}"
            assert inside


def test_the_core_needs_jax_and_optax_only():
    standard = {
        "__future__",
        "collections",
        "contextlib",
        "contextvars",
        "dataclasses",
        "difflib",
        "errno",
        "functools",
        "importlib",
        "inspect",
        "itertools",
        "json",
        "math",
        "operator",
        "os",
        "pathlib",
        "signal",
        "sys",
        "tempfile",
        "threading",
        "types",
        "typing",
        "urllib",
        "zlib",
    }
    for name in CORE:
        _, others = imports(PACKAGE / f"{name}.py")
        assert others <= standard | {"jax", "optax", "numpy"}, name
    for name in DIALECTS:
        _, others = imports(PACKAGE / f"{name.replace('.', '/')}.py")
        assert others <= standard | {"warnings", "jax", "optax", "numpy"}, name


def test_importing_the_package_imports_nothing_for_people():
    code = (
        "import sys, rmsprop_jax; print([m for m in sys.modules if m.split('.')[0] in "
        "('rich', 'matplotlib', 'sklearn', 'torch', 'tensorflow', 'flax', 'h5py', "
        "'orbax', 'safetensors') "
        "or m.startswith(('rmsprop_jax.cli', 'rmsprop_jax.demo'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("name", CORE)
def test_core_files_are_short(name):
    lines = (PACKAGE / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 250, f"{name} has {len(lines)} lines: is it one thing?"


def test_the_update_rule_stands_in_one_place():
    code = {name: path for name, path in modules() if name in CORE + DIALECTS}
    with_root = [
        name
        for name, path in code.items()
        if any(
            isinstance(node, ast.Attribute) and node.attr in ("sqrt", "rsqrt")
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert with_root == ["_rms"]


def test_the_top_level_holds_what_the_design_says():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} == {
        "pyproject.toml", "README.md", "LICENSE", "rmsprop_jax", "tests", "notebooks",
    }  # fmt: skip


def test_an_import_starts_no_device():
    # Or jax.distributed.initialize would come too late, and so would its settings.
    program = (
        "import rmsprop_jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_plain_update_is_a_short_way():
    tx, grads = rmsprop(0.1), {"w": jnp.ones(3)}
    state, way = tx.init(grads), []

    def entered(frame, event, _):
        code = frame.f_code
        if event == "call" and str(PACKAGE) in code.co_filename:
            way.append((code.co_filename, code.co_qualname))

    sys.setprofile(entered)
    try:
        tx.update(grads, state, grads)
    finally:
        sys.setprofile(None)
    files = [file for file, _ in way]
    functions = {entry for entry in way if not entry[1].endswith(">")}
    assert len(set(files)) <= 5
    assert len(functions) <= 16
    assert 1 + sum(a != b for a, b in pairwise(files)) <= 14
