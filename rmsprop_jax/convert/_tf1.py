"""Optimizer state of `tf.compat.v1.train.RMSPropOptimizer`, as its Saver writes it.

A checkpoint has the slots beside the variables: "dense/kernel/RMSProp" is E[g²], and
"RMSProp_1" the momentum, or where centred the mean, with the momentum in "RMSProp_2".
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _tensor_bundle
from ._record import Group, Record, Slots

MISSING = ("learning_rate", "decay", "momentum", "epsilon")


def read(
    tensors: Mapping[str, Any],
    names: Iterable[str] | None = None,
    slot: str = "RMSProp",
) -> Record:
    """Returns the record of a checkpoint.

    Args:
      tensors: what `load` returns: the tensors by name.
      names: the variables that the optimizer trains; by default all that have slots.
      slot: the optimizer's name, which is that of its slots.
    """
    end = f"/{slot}"
    found = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    names = tuple(found if names is None else names)
    if not names:
        raise ValueError(
            f"There are no slots {slot!r} in it; it has {', '.join(sorted(tensors))}. "
            "If the optimizer had another name, give it as `name`."
        )
    centered = any(f"{name}{end}_2" in tensors for name in names)
    momentum, mean = ("_2", "_1") if centered else ("_1", "_none")
    slots = {}
    for name in names:
        if f"{name}{end}" not in tensors:
            raise ValueError(f"{name} has no slot {name}{end}.")
        arrays = (
            tensors.get(f"{name}{end}{number}") for number in ("", mean, momentum)
        )
        slots[name] = Slots(*(None if a is None else np.asarray(a) for a in arrays))
    hyperparameters = (
        {"centered": centered}
        if slot == "RMSProp"
        else {"centered": centered, "name": slot}
    )
    return Record(
        "tf1",
        int(tensors["global_step"]) if "global_step" in tensors else None,
        (Group(hyperparameters, names),),
        slots,
        MISSING,
        {name: np.asarray(tensors[name]) for name in names if name in tensors},
    )


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as tensors by name, beside those of another checkpoint.

    Args:
      record: one in TF1's names and layouts.
      like: the tensors of a checkpoint to take all else from.
    """
    tensors = dict(like or {})
    for group in record.groups:
        slot = group.hyperparameters.get("name", "RMSProp")
        centered = group.hyperparameters.get("centered", False)
        for name in group.names:
            nu, mu, momentum = record.slots[name]
            buffer = np.zeros_like(nu) if momentum is None else momentum
            values = (nu, np.zeros_like(nu) if mu is None else mu, buffer)
            values = values if centered else (nu, buffer)
            for number, value in enumerate(values):
                tensors[f"{name}/{slot}" + (f"_{number}" if number else "")] = value
            if record.weights and name in record.weights:
                tensors[name] = record.weights[name]
    kind = np.asarray(tensors.get("global_step", np.int64(0))).dtype
    if record.step is not None:
        tensors["global_step"] = np.asarray(record.step, kind)
    return tensors


def load(path: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint."""
    return _tensor_bundle.read(str(path))


def save(path: Any, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint: PREFIX.index and PREFIX.data-00000-of-00001."""
    _tensor_bundle.write(str(Path(path)), content)
