"""`rmsprop-jax convert`: an optimizer's state from one file to another."""

import argparse
import contextlib
import json
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table

from . import _api, _files, _optax, _ours, _sources
from ._moving import from_tree, to_tree
from ._origins import Place
from ._record import Record, Slots, names_of
from ._sources import default_rule

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
  rmsprop-jax convert run.pt state.safetensors --params params.npz \\
      --weights my_model.py:to_jax
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
        "--weights",
        metavar="MODULE.py:FUNCTION",
        help="your function from the source's arrays by name to your parameters",
    )
    add(
        "--leave-out",
        metavar="NAME",
        nargs="+",
        default=[],
        help="parameters or modules of the source that your parameters do not have",
    )
    add(
        "--channels-first",
        metavar="PATH=C,H,W",
        nargs="*",
        help="the Dense kernels of yours whose input torch flattens from an image, or "
        "nothing if there are none",
    )
    add(
        "--transposed",
        metavar="PATH",
        nargs="*",
        help="your ConvTransposes without transpose_kernel, or nothing for none",
    )
    add("--strict", action="store_true", help="assume nothing that is not said")
    add("--step", type=int, metavar="N", help="how many updates were done, if unsaid")
    add("--like", metavar="FILE", help="a file of the framework to put the state into")
    add("--quiet", action="store_true", help="print nothing")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    try:
        record, places, warning = _convert(arguments)
    except (ValueError, TypeError, NotImplementedError, OSError, ImportError) as error:
        print(f"rmsprop-jax convert: error: {error}", file=sys.stderr)
        return 2
    if not arguments.quiet:
        _show(record, places, arguments.target)
    if warning:
        print(f"rmsprop-jax convert: warning: {warning}", file=sys.stderr)
    return 0


def _convert(
    arguments: argparse.Namespace,
) -> tuple[Record, list[tuple[str, Place]], str]:
    given = {k: _number(v) for k, v in _pairs("--set", arguments.set)}
    target = Path(arguments.target)
    record = _sources.read(
        arguments.source, arguments.framework, arguments.names, given
    )
    if arguments.step is not None:
        record = record._replace(step=arguments.step)
    is_ours = record.is_ours
    places = [(name, Place(name)) for name in record.slots]
    if arguments.params:
        tree, function, left = _shapes(arguments.params), default_rule(record), ()
        if not (is_ours and arguments.like):  # there they are of what it goes into
            function, left = _function(arguments, record), arguments.leave_out
        record, places = to_tree(record, tree, function, left)
    _api.check_assumed(record, arguments.strict)
    record = _api.checked(_api.completed(record, given))
    if not arguments.params and not (is_ours and arguments.like):
        _check_unused(arguments)
    record = record._replace(is_ours=is_ours or bool(arguments.params))
    if arguments.like is None:
        if target.suffix != ".safetensors":
            raise ValueError(
                f"{target} is a framework's file: pass --like, a file of the same run "
                "to put the state into; or write a .safetensors."
            )
        _ours.save(target, record)
        return record, places, ""
    _sources.check_suffix(target, record.dialect)
    content = _sources.content_of(arguments.like, record.dialect)
    module = _sources.module_of(record.dialect, content)
    old = _sources.read(content, record.dialect, arguments.names, given)
    tree = {name: slots.nu for name, slots in record.slots.items()}
    function: Any = _function(arguments, old)
    if not record.is_ours:
        function = partial(_same_names, list(record.slots))
    step, record = record.step, _api.with_step(record, old)
    record, places = from_tree(record, tree, function, old, arguments.leave_out)
    module.save(target, module.to_dict(record, content))
    return record, places, _api.older(record, old, step)


def _function(arguments: argparse.Namespace, record: Record) -> Any:
    """Returns the user's function, or the rule with the user's arguments."""
    rename = dict(_pairs("--rename", arguments.rename))
    if arguments.weights:
        path, _, name = arguments.weights.rpartition(":")
        if not Path(path).is_file():
            raise ValueError(
                f"--weights takes MODULE.py:FUNCTION, got {arguments.weights!r}."
            )
        sys.path.insert(0, str(Path(path).parent))  # as `python MODULE.py` has it
        function = runpy.run_path(path).get(name)
        if not callable(function):
            raise ValueError(f"{path} has no function {name}.")
        return function
    images = arguments.channels_first
    if images is not None:
        images = {
            path: tuple(int(size) for size in sizes.split(","))
            for path, sizes in _pairs("--channels-first", images)
        }
    return default_rule(record, rename, images, arguments.transposed)


def _check_unused(arguments: argparse.Namespace) -> None:
    for name in ("weights", "rename", "leave_out", "channels_first", "transposed"):
        if getattr(arguments, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} says what your --params are: give these too.")


def _same_names(names: list[str], arrays: Any) -> Any:
    return {name: arrays[name] for name in names}


def _show(record: Record, places: list[tuple[str, Place]], target: str) -> None:
    console = rich.console.Console()
    step = "unknown" if record.step is None else record.step
    table = rich.table.Table(title=f"{record.dialect}, step {step}")
    for head in ("parameter", "in the framework", "shape", "accumulators"):
        table.add_column(head, overflow="fold")
    for path, place in places:
        slots = record.slots.get(path) or record.slots.get(place.name) or Slots(None)
        kept = [name for name, value in slots._asdict().items() if value is not None]
        words = (path, str(place), str(np.shape(slots.nu)), ", ".join(kept))
        table.add_row(*map(rich.markup.escape, words))
    console.print(table)
    lines = [f"assumed: {words}" for words in record.assumed]
    if record.left_out:
        lines.append(f"left out: {', '.join(record.left_out)}")
    for group in record.groups:
        values = group.hyperparameters.items()
        shown = ", ".join(f"{name}={value}" for name, value in values)
        lines.append(f"hyperparameters: {shown}")
    for line in (*lines, f"written: {target}"):
        console.print(line, highlight=False, markup=False)


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
        numpy = _files.needed("safetensors.numpy", f"Reading {path}", extra="convert")
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
