"""`rmsprop-jax convert`: an optimizer's state from one file to another."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from . import _api, _files, _ours
from ._names import Place, from_tree, same, to_tree
from ._record import Record, names_of

_DESCRIPTION = """\
Converts the state of an RMSProp between frameworks.

From torch, timm, Stable-Baselines3, bitsandbytes (.pt, .safetensors), Keras 3 (.keras),
TF1 (the checkpoint's prefix) or Optax (.msgpack, .npz) to a .safetensors that
rmsprop_jax.convert.load reads for your parameters; and from such a file back, into a
copy of a file of the framework (--like). Nothing is written unless all of it converts.
"""

_EXAMPLES = """\
examples:
  rmsprop-jax convert run.pt state.safetensors --params params.npz --rename Dense_0=fc1
  rmsprop-jax convert state.safetensors back.pt --like run.pt --rename Dense_0=fc1
  rmsprop-jax convert model.ckpt-10 state.safetensors --params params.npz \\
      --set learning_rate=0.01 decay=0.9 momentum=0.9 epsilon=1e-10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
    add = parser.add_argument
    add("source", help="the file to read, or the prefix of a TF1 checkpoint")
    add("target", help="the file to write")
    add(
        "--params",
        metavar="FILE",
        help="your parameters, for their names and shapes: .npz, .safetensors or "
        ".msgpack, named by path (Dense_0/kernel); without it, names stay the source's",
    )
    add(
        "--rename",
        metavar="PATH=NAME",
        nargs="+",
        default=[],
        help="what the source calls a part of your parameters, where it differs",
    )
    add(
        "--names",
        metavar="NAME",
        nargs="+",
        help="the parameters in the optimizer's order, where the source numbers them",
    )
    add("--framework", help="whose state it is, where the source does not show it")
    add(
        "--set",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="hyperparameters that the source lacks, or others",
    )
    add("--like", metavar="FILE", help="a file of the framework to put the state into")
    add("--quiet", action="store_true", help="print nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    try:
        record, places = _convert(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"rmsprop-jax convert: error: {error}", file=sys.stderr)
        return 2
    if not arguments.quiet:
        _show(record, places, arguments.target)
    return 0


def _convert(arguments: argparse.Namespace) -> tuple[Record, list[tuple[str, Place]]]:
    rename = dict(_pairs("--rename", arguments.rename))
    given = {k: _number(v) for k, v in _pairs("--set", arguments.set)}
    record = _api.read(arguments.source, arguments.framework, arguments.names)
    rule = _api.default_rule(record.dialect, rename)
    is_ours = record.is_ours
    places = [(name, Place(name)) for name in record.slots]
    if arguments.params:
        if is_ours:
            rule = same(rename)
        record, places = to_tree(record, _shapes(arguments.params), rule)
    record = _api.completed(record, given)
    if arguments.like is None:
        if Path(arguments.target).suffix != ".safetensors":
            raise ValueError(
                f"{arguments.target} is a framework's file: pass --like, a file of the "
                "same run to put the state into; or write a .safetensors."
            )
        _ours.save(arguments.target, record)
        return record, places
    content = _api.content_of(arguments.like, record.dialect)
    old = _api.module_of(record.dialect).read(content, record.dialect)
    names = [name for group in old.groups for name in group.names]
    if is_ours or arguments.params:
        tree = {name: slots.nu for name, slots in record.slots.items()}
        places = [(path, rule(path, leaf.shape, names)) for path, leaf in tree.items()]
        record = from_tree(record, tree, rule, names)
    module = _api.module_of(record.dialect)
    module.save(arguments.target, module.to_dict(record, content))
    return record, places


def _show(record: Record, places: list[tuple[str, Place]], target: str) -> None:
    console = rich.console.Console()
    table = rich.table.Table(title=f"{record.dialect}, step {record.step}")
    for head in ("parameter", "in the framework", "shape", "accumulators"):
        table.add_column(head, overflow="fold")
    for path, place in places:
        slots = record.slots.get(path) or record.slots[place.name]
        kept = [name for name, value in slots._asdict().items() if value is not None]
        table.add_row(path, str(place), str(slots.nu.shape), ", ".join(kept))
    console.print(table)
    for group in record.groups:
        values = group.hyperparameters.items()
        shown = ", ".join(f"{name}={value}" for name, value in values)
        console.print(f"hyperparameters: {shown}", highlight=False)
    console.print(f"written: {target}", highlight=False)


def _shapes(path: str) -> dict[str, Any]:
    """Returns the shapes in a file of parameters, by path."""
    if path.endswith(".safetensors"):
        numpy = _files.needed(
            "safetensors.numpy", f"Reading {path}", "'rmsprop-jax[convert]'"
        )
        tree: Any = numpy.load_file(path)
    elif path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            tree = {key: file[key] for key in file.files}
    else:
        import flax.serialization

        tree = flax.serialization.msgpack_restore(Path(path).read_bytes())
    leaves = names_of(tree).items()
    return {
        name.replace(".", "/") if path.endswith(".safetensors") else name: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        )
        for name, leaf in leaves
    }


def _pairs(option: str, words: list[str]) -> list[tuple[str, str]]:
    for word in words:
        if "=" not in word:
            raise ValueError(f"{option} takes NAME=VALUE, got {word!r}.")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]


def _number(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False", "None") else text)
    except ValueError:
        return None if text == "None" else text
