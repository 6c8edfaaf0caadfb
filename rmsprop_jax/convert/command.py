"""`rmsprop-jax convert`: an optimizer's state from one file to another."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.markup
import rich.table

from . import _api, _files, _optax, _ours, _sources
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
    add(
        "--channels-first",
        metavar="PATH=C,H,W",
        nargs="+",
        default=[],
        help="a Dense kernel of yours whose input torch flattens from an image",
    )
    add("--step", type=int, metavar="N", help="how many updates were done, if unsaid")
    add("--like", metavar="FILE", help="a file of the framework to put the state into")
    add("--quiet", action="store_true", help="print nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    try:
        record, places = _convert(arguments)
    except (ValueError, TypeError, NotImplementedError, OSError, ImportError) as error:
        print(f"rmsprop-jax convert: error: {error}", file=sys.stderr)
        return 2
    if not arguments.quiet:
        _show(record, places, arguments.target)
    return 0


def _convert(arguments: argparse.Namespace) -> tuple[Record, list[tuple[str, Place]]]:
    rename = dict(_pairs("--rename", arguments.rename))
    images = {
        path: tuple(int(size) for size in sizes.split(","))
        for path, sizes in _pairs("--channels-first", arguments.channels_first)
    }
    given = {k: _number(v) for k, v in _pairs("--set", arguments.set)}
    target = Path(arguments.target)
    record = _sources.read(
        arguments.source, arguments.framework, arguments.names, given
    )
    if arguments.step is not None:
        record = record._replace(step=arguments.step)
    is_ours = record.is_ours
    places = [(name, Place(name)) for name in record.slots]
    rule = _sources.default_rule(record.dialect, rename, images)
    if arguments.params:
        to_ours = same(rename) if is_ours else rule
        record, places = to_tree(record, _shapes(arguments.params), to_ours)
    record = _api.checked(_api.completed(record, given))
    record = record._replace(is_ours=is_ours or bool(arguments.params))
    if arguments.like is None:
        if target.suffix != ".safetensors":
            raise ValueError(
                f"{target} is a framework's file: pass --like, a file of the same run "
                "to put the state into; or write a .safetensors."
            )
        _ours.save(target, record)
        return record, places
    _sources.check_suffix(target, record.dialect)
    content = _sources.content_of(arguments.like, record.dialect)
    module = _sources.module_of(record.dialect, content)
    old = _sources.read(content, record.dialect, None, given)
    names = [name for group in old.groups for name in group.names]
    back = rule if record.is_ours else (lambda path, shape, names: Place(path))
    tree = {name: slots.nu for name, slots in record.slots.items()}
    record = from_tree(record, tree, back, names, old.weights)
    places = [(path, back(path, leaf.shape, names)) for path, leaf in tree.items()]
    module.save(target, module.to_dict(record, content))
    return record, places


def _show(record: Record, places: list[tuple[str, Place]], target: str) -> None:
    console = rich.console.Console()
    step = "unknown" if record.step is None else record.step
    table = rich.table.Table(title=f"{record.dialect}, step {step}")
    for head in ("parameter", "in the framework", "shape", "accumulators"):
        table.add_column(head, overflow="fold")
    for path, place in places:
        slots = record.slots.get(place.name) or record.slots[path]
        kept = [name for name, value in slots._asdict().items() if value is not None]
        words = (path, str(place), str(slots.nu.shape), ", ".join(kept))
        table.add_row(*map(rich.markup.escape, words))
    console.print(table)
    for group in record.groups:
        values = group.hyperparameters.items()
        shown = ", ".join(f"{name}={value}" for name, value in values)
        console.print(f"hyperparameters: {shown}", highlight=False, markup=False)
    for what, words in (("left out", record.left_out), ("assumed", record.assumed)):
        if words:
            console.print(f"{what}: {'; '.join(words)}", highlight=False, markup=False)
    console.print(f"written: {target}", highlight=False, markup=False)


def _shapes(path: str) -> dict[str, Any]:
    """Returns the shapes in a file of parameters, by path."""
    with _files.reading(path):
        tree = _leaves_in(path)
    return {
        name.replace(".", "/") if path.endswith(".safetensors") else name: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        )
        for name, leaf in names_of(tree).items()
    }


def _leaves_in(path: str) -> Any:
    if path.endswith(".safetensors"):
        numpy = _files.needed(
            "safetensors.numpy", f"Reading {path}", "'rmsprop-jax[convert]'"
        )
        return numpy.load_file(path)
    return _optax.load(path)


def _pairs(option: str, words: list[str]) -> list[tuple[str, str]]:
    for word in words:
        if "=" not in word:
            raise ValueError(f"{option} takes NAME=VALUE, got {word!r}.")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]


def _number(text: str) -> Any:
    if text == "None":
        return None
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text.lower() if text in ("True", "False") else text)
    return text
