"""The file of a record: a .safetensors with the arrays and, as JSON, all the rest."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from . import _files
from ._record import Group, Record, Slots, is_schedule, maker

_KEY = "rmsprop_jax"


def read(path: Any) -> Record:
    """Returns the record in a file that `save` wrote.

    Raises:
      ValueError: if its description is damaged.
    """
    name = Path(path).name
    safetensors = _files.needed("safetensors", f"Reading {name}", extra="convert")
    with safetensors.safe_open(Path(path), "np") as file:
        about = _described(name, (file.metadata() or {})[_KEY])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    slots, weights, joined = {}, {}, {}
    for key, value in arrays.items():
        kind, _, parameter = key.partition("/")
        if kind == "params":
            weights[parameter] = value
        elif kind == "joined":
            joined[parameter] = value
        elif kind in Slots._fields:
            slots.setdefault(parameter, {})[kind] = value
    groups = tuple(
        Group(
            g["hyperparameters"],
            tuple(g["names"]),
            {name: joined[name] for name in g["names"] if name in joined},
            tuple(g.get("waiting", ())),
        )
        for g in about["groups"]
    )
    order = [parameter for group in groups for parameter in group.names]
    resting = {parameter for group in groups for parameter in group.waiting}
    absent = [p for p in order if "nu" not in slots.get(p, {}) and p not in resting]
    unnamed = sorted(slots.keys() - set(order))
    if absent or unnamed or len(set(order)) != len(order):
        raise ValueError(
            f"{name} is damaged: its description and its arrays do not agree "
            f"({', '.join(absent + unnamed) or 'a parameter stands there twice'})."
        )
    return Record(
        about["dialect"],
        about["step"],
        groups,
        {p: Slots(**{"nu": None, **slots.get(p, {})}) for p in order},
        tuple(about["missing"]),
        weights,
        about["is_ours"],
    )


def _described(name: str, text: str) -> dict[str, Any]:
    """Returns the description in a file, whose parts are of the types they should be.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        about = json.loads(text)
        is_whole = (
            isinstance(about["dialect"], str)
            and (about["step"] is None or type(about["step"]) is int)
            and type(about["is_ours"]) is bool
            and all(isinstance(word, str) for word in about["missing"])
            and all(
                isinstance(group["hyperparameters"], dict)
                and all(
                    isinstance(parameter, str)
                    for parameter in [*group["names"], *group.get("waiting", ())]
                )
                for group in about["groups"]
            )
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name} is damaged: its description lacks {error}. Copy it again from "
            "where it was saved."
        ) from error
    if not is_whole or not about["groups"]:
        raise ValueError(
            f"{name} is damaged: parts of its description are not of their type. Copy "
            "it again from where it was saved."
        )
    maker(about["dialect"])  # or says which dialects there are
    return about


def save(path: Any, record: Record) -> None:
    """Writes a record; schedules become arguments that the file lacks."""
    numpy = _files.needed(
        "safetensors.numpy", f"Writing {Path(path).name}", extra="convert"
    )
    groups, missing = [], list(record.missing)
    for group in record.groups:
        kept = {}
        for name, value in group.hyperparameters.items():
            if is_schedule(value):
                missing.append(name)
            else:
                kept[name] = _plain(name, value)
        resting = [n for n in group.names if record.slots[n].nu is None]
        waiting = sorted({*group.waiting, *resting})
        groups.append(
            {"hyperparameters": kept, "names": group.names, "waiting": waiting}
        )
    about = {
        "dialect": record.dialect,
        "step": record.step,
        "groups": groups,
        "missing": sorted(set(missing)),
        "is_ours": record.is_ours,
    }
    arrays = {
        f"{kind}/{name}": np.array(value, order="C")
        for name, slots in record.slots.items()
        for kind, value in slots._asdict().items()
        if value is not None
    }
    arrays |= {
        f"params/{name}": np.array(value, order="C")
        for name, value in (record.weights or {}).items()
    }
    arrays |= {
        f"joined/{name}": np.array(terms, order="C")
        for group in record.groups
        for name, terms in group.joined.items()
    }
    with _files.replacing(path) as temporary:
        numpy.save_file(arrays, temporary, {_KEY: json.dumps(about)})


def is_ours(path: Any) -> bool:
    """Whether a .safetensors file is one of these."""
    safetensors = _files.needed(
        "safetensors", f"Reading {Path(path).name}", extra="convert"
    )
    with safetensors.safe_open(Path(path), "np") as file:
        return _KEY in (file.metadata() or {})


def _plain(name: str, value: Any) -> Any:
    """Returns a hyperparameter as JSON has it."""
    if callable(value) or isinstance(value, np.dtype):  # schedules went before
        dtype: Any = value
        with contextlib.suppress(TypeError):
            return np.dtype(dtype).name
    plain = getattr(value, "item", lambda: value)()
    try:
        json.dumps(plain)
    except TypeError:
        raise ValueError(
            f"`{name}` cannot be kept in a file: {value!r}. Leave it out, and give it "
            "when the file is loaded."
        ) from None
    return plain
