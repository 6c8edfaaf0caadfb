"""Optimizer state of Keras 3, in .keras and .weights.h5 files.

There the optimizer's variables are numbered: the iteration, the learning rate, then all
velocities, all momentums and all average gradients, each in the order of the model's
trainable variables. Their names follow from the model's layers where a .keras file
describes them; else the user gives them.
"""

import inspect
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects
from . import _files, _hdf5
from ._record import Group, Record, Slots, present

_LEAVES = {  # the trainable variables of a layer, in order, where not kernel and bias
    "BatchNormalization": ("gamma", "beta"),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
    "Embedding": ("embeddings",),
}
_OPTIONS = (("gamma", "scale"), ("beta", "center"))
_COUNTS = {  # how many variables a layer has whose leaves are all there
    "Dense": (1, 2), "Conv1D": (1, 2), "Conv2D": (1, 2), "Conv3D": (1, 2),
    "BatchNormalization": (4,), "LayerNormalization": (2,), "GroupNormalization": (2,),
    "Embedding": (1,),
}  # fmt: skip


def read(
    content: Mapping[str, Any],
    names: Iterable[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Record:
    """Returns the record of a .keras or .weights.h5 file.

    Args:
      content: what `load` returns: "variables" (the optimizer's, in order), and where
        the file has them "config" (its configuration) and "weights" (by name).
      names: the paths of the trainable variables, in the model's order
        ([v.path for v in model.trainable_variables]).
      given: arguments of the run that a file of weights does not hold: of two
        accumulators, whether the second is a momentum or a mean.
    """
    variables = [np.asarray(value) for value in content["variables"]]
    config = dict(content.get("config") or {})
    if len(variables) < 3:
        raise ValueError(
            f"It has {len(variables)} optimizer variables; RMSprop's are the iteration,"
            " the learning rate and a velocity for each weight. Was it saved without "
            "the optimizer, or before the first step?"
        )
    iteration, *rest = variables
    rate = None if _scheduled(config) else float(rest.pop(0))
    names = None if names is None else list(names)
    number = _how_many(rest, config, names)
    count = len(rest) // number
    slots = [rest[i * count : (i + 1) * count] for i in range(number)]
    shapes = [value.shape for value in slots[0]]
    named = _names(content, shapes, names)
    weights = _by_name(content.get("weights", {}), named)
    known = config or given or {}
    if number == 2 and not known.get("momentum") and not known.get("centered"):
        raise ValueError(
            "It has two accumulators for each weight, and a file of weights does not "
            "tell a momentum from a mean: give `momentum` or `centered` as the run had "
            "them, or a .keras file."
        )
    moving = number == 3 or (number == 2 and bool(known.get("momentum")))
    mean = slots[-1] if number == 3 or (number == 2 and not moving) else [None] * count
    buffer = slots[1] if moving else [None] * count
    hyperparameters, missing = _hyperparameters(config, rate)
    hyperparameters["centered"] = mean[0] is not None
    values = zip(slots[0], mean, buffer, strict=True)
    return Record(
        "keras",
        int(iteration),
        (Group(hyperparameters, tuple(named)),),
        {name: Slots(*slot) for name, slot in zip(named, values, strict=True)},
        missing,
        {
            name: weights[name]
            for name, shape in zip(named, shapes, strict=True)
            if name in weights and weights[name].shape == shape
        },
    )


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as what `load` returns; "variables" are the optimizer's.

    Keras takes them as ``optimizer.load_own_variables``
    ``({str(i): value for i, value in enumerate(variables)})``.

    Args:
      record: one in Keras's names and layouts.
      like: the content of a file to take all else from.
    """
    (group,) = record.groups
    slots = [record.slots[name] for name in group.names]
    rate = group.hyperparameters.get("learning_rate", 1e-3)
    rate = present(rate, record, "learning_rate")
    variables: list[Any] = [np.asarray(record.step or 0, np.int64)]
    if not _scheduled((like or {}).get("config")):
        variables.append(np.asarray(rate, np.float32))
    variables += [s.nu for s in slots]
    if group.hyperparameters.get("momentum", 0) > 0:
        buffers = [s.momentum for s in slots]
        variables += [
            np.zeros_like(s.nu) if b is None else b
            for s, b in zip(slots, buffers, strict=True)
        ]
    if group.hyperparameters.get("centered", False):
        variables += [np.zeros_like(s.nu) if s.mu is None else s.mu for s in slots]
    content = {**(like or {}), "variables": variables}
    if record.weights and like is not None:
        old = like.get("weights", {})
        name_of = {_end(name, old): name for name in record.weights}
        lost = [name for name in record.weights if _end(name, old) is None]
        if lost:
            raise ValueError(
                f"The file does not show where {', '.join(lost)} are, to put the "
                "parameters there: give their `jax.ShapeDtypeStruct`s to write the "
                "optimizer's state alone, and set the weights in Keras."
            )
        new = {place: record.weights[name] for place, name in name_of.items()}
        content["weights"] = {**old, **new}
    elif record.weights:
        content["weights"] = dict(record.weights)
    return content


def load(path: Any) -> dict[str, Any]:
    """Returns the optimizer's variables, its configuration and the model's weights."""
    path, model = Path(path), {}
    file: Any = path
    if zipfile.is_zipfile(path):
        _files.check_zip(path)
        with zipfile.ZipFile(path) as archive:
            model = json.loads(_files.unzipped(archive, "config.json"))
            file = io.BytesIO(_files.unzipped(archive, "model.weights.h5"))
    optimizer = (model.get("compile_config") or {}).get("optimizer") or {}
    with _hdf5.opened(file, path.name) as weights:
        stored = weights.get("optimizer/vars", {})
        variables = [stored[str(i)][()] for i in range(len(stored))]
        places = _places(model, weights)
        return {
            "variables": variables,
            "config": _rmsprop_config(optimizer),
            "places": places,
            "weights": {name: weights[place][()] for name, place in places.items()},
            "file": path.read_bytes(),
        }


def save(path: Any, content: Mapping[str, Any]) -> None:
    """Writes a file like the one that `content` was loaded from."""
    path = Path(path)
    if "file" not in content:
        raise ValueError(
            "A Keras file holds the model too: pass `like`, the file to put this "
            "optimizer's state into; or use export(), and Keras's "
            "optimizer.load_own_variables."
        )
    old = io.BytesIO(content["file"])
    zipped = zipfile.is_zipfile(old)
    weights = old
    if zipped:
        with zipfile.ZipFile(old) as archive:
            weights = io.BytesIO(_files.unzipped(archive, "model.weights.h5"))
    with _hdf5.opened(weights, path.name, "r+") as file:
        stored = file["optimizer/vars"]
        if len(stored) != len(content["variables"]):
            raise ValueError(
                f"The file has {len(stored)} optimizer variables, this state "
                f"{len(content['variables'])}: momentum or centering differ."
            )
        for i, value in enumerate(content["variables"]):
            stored[str(i)][...] = value
        for name, place in content["places"].items():
            file[place][...] = content["weights"][name]
    with _files.replacing(path) as temporary:
        if not zipped:
            temporary.write_bytes(weights.getvalue())
            return
        with zipfile.ZipFile(old) as archive, zipfile.ZipFile(temporary, "w") as new:
            for entry in archive.infolist():
                is_weights = entry.filename == "model.weights.h5"
                new.writestr(
                    entry,
                    weights.getvalue()
                    if is_weights
                    else _files.unzipped(archive, entry.filename),
                )


def _places(model: Mapping[str, Any], weights: Any) -> dict[str, str]:
    """Returns the data sets of a model's trainable variables by name, in its order."""
    layers = (model.get("config") or {}).get("layers", [])
    group_of = {
        group["vars"].attrs.get("name", key): key
        for key, group in weights.get("layers", {}).items()
        if "vars" in group
    }
    if not layers:  # a file of weights: its keys are the classes, numbered
        classes = {
            name: re.sub(r"_\d+$", "", key).title().replace("_", "")
            for name, key in group_of.items()
        }
        layers = [
            {"config": {"name": name}, "class_name": kind}
            for name, kind in classes.items()
            if len(weights[f"layers/{group_of[name]}/vars"]) in _COUNTS.get(kind, ())
        ]
    places = {}
    for layer in layers:
        name = layer["config"]["name"]
        if name not in group_of:
            continue
        stored = weights[f"layers/{group_of[name]}/vars"]
        leaves = _LEAVES.get(layer["class_name"], ("kernel", "bias"))
        absent = {
            leaf for leaf, option in _OPTIONS if not layer["config"].get(option, True)
        }
        leaves = [leaf for leaf in leaves if leaf not in absent]
        for i, leaf in zip(range(len(stored)), leaves, strict=False):
            places[f"{name}/{leaf}"] = f"layers/{group_of[name]}/vars/{i}"
    return places


def _names(
    content: Mapping[str, Any],
    shapes: list[tuple[int, ...]],
    names: Iterable[str] | None,
) -> list[str]:
    known = {name: value.shape for name, value in content.get("weights", {}).items()}
    known = known if content.get("config") else {}  # in no order without it
    if names is None and list(known.values()) == shapes:
        return list(known)
    if names is None:
        raise ValueError(
            "The file numbers the trainable variables and does not name them: pass "
            "`names`, [v.path for v in model.trainable_variables]."
        )
    names = list(names)
    if len(names) != len(shapes) or len(set(names)) != len(names):
        raise ValueError(
            f"`names` must be {len(shapes)} different names, one for each trainable "
            f"variable, got {len(names)}: {', '.join(names)}."
        )
    return names


def _end(name: str, known: Iterable[str]) -> str | None:
    """Returns the layer's leaf ("dense/kernel") that a variable's path ends in."""
    ends = [k for k in known if name == k or name.endswith(f"/{k}")]
    return max(ends, key=len, default=None)


def _by_name(
    weights: Mapping[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Returns the weights by the paths of the variables."""
    found = {name: _end(name, weights) for name in names}
    return {name: weights[end] for name, end in found.items() if end is not None}


def _how_many(
    rest: list[np.ndarray], config: Mapping[str, Any], names: list[str] | None
) -> int:
    """Returns how many accumulators each weight has: 1, 2 or 3."""
    if config:
        return 1 + (config["momentum"] > 0) + bool(config["centered"])
    if names and len(rest) % len(names) == 0:
        return len(rest) // len(names)
    shapes = [value.shape for value in rest]
    for number in (3, 2):
        if (
            len(shapes) % number == 0
            and shapes == shapes[: len(shapes) // number] * number
        ):
            return number
    return 1


def _hyperparameters(
    config: Mapping[str, Any], rate: float | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what the file has of the dialect's arguments, and what it lacks."""
    if not config:
        found: dict[str, Any] = {} if rate is None else {"learning_rate": rate}
        return found, ("learning_rate", "rho", "momentum", "epsilon", "weight_decay")
    accepted = inspect.signature(dialects.keras).parameters
    found = {name: value for name, value in config.items() if name in accepted}
    if rate is None:
        del found["learning_rate"]
    else:
        found["learning_rate"] = rate
    return found, ("learning_rate",)


def _scheduled(config: Mapping[str, Any] | None) -> bool:
    return isinstance((config or {}).get("learning_rate"), Mapping)


def _rmsprop_config(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    if optimizer and optimizer.get("class_name") != "RMSprop":
        raise ValueError(
            f"Its optimizer is {optimizer.get('class_name')}, not RMSprop."
        )
    config = dict(optimizer.get("config") or {})
    for name in ("use_ema", "gradient_accumulation_steps"):
        if config.get(name):
            raise ValueError(
                f"Its optimizer has `{name}`, whose variables have no place here: "
                "average with optax.ema, gather with optax.MultiSteps."
            )
    return config
