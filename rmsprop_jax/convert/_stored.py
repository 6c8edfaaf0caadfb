"""Where TensorFlow and Keras keep an optimizer's variables, and how they are named.

All their files hold arrays under keys. A `Stored` says which key is whose; reading and
writing follow it, whatever the file.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._record import Group, Record, Slots, present

# What the frameworks call the accumulators: TF1 and Keras 2, then Keras 3.
ROLES = {
    "rms": "nu", "mg": "mu", "momentum": "momentum",
    "velocity": "nu", "average_gradient": "mu",
    "average": "average", "gradient_accumulator": "accumulator",
}  # fmt: skip


class Stored(NamedTuple):
    """Where the variables of an optimizer are among the arrays of a file.

    Attributes:
      dialect: whose rule it is.
      slots: by the name of each trained variable, in order, the keys by role: "nu",
        "mu", "momentum".
      weights: the keys of the model's arrays, by name.
      step: the key of the number of updates, or None.
      per_step: how much that number grows with one update.
      rate: the key of the learning rate, or None.
      hyperparameters: what the file says of the dialect's arguments.
      missing: those that it does not say.
      layers: as in a `Record`.
      left_out: as in a `Record`.
      assumed: as in a `Record`.
    """

    dialect: str
    slots: dict[str, dict[str, Any]]
    weights: Mapping[str, Any]
    step: Any = None
    per_step: int = 1
    rate: Any = None
    hyperparameters: Mapping[str, Any] = {}
    missing: tuple[str, ...] = ()
    layers: Mapping[str, str] = {}
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def to_record(arrays: Mapping[Any, Any], at: Stored) -> Record:
    """Returns the record of an optimizer whose arrays are at known keys.

    Raises:
      ValueError: if accumulators lack that other variables have.
    """
    kinds = {tuple(sorted(keys)) for keys in at.slots.values()}
    if len(kinds) != 1 or "nu" not in min(kinds):
        raise ValueError(
            "The optimizer's variables are not of one RMSProp: "
            + "; ".join(f"{name} has {', '.join(at.slots[name])}" for name in at.slots)
            + ". If the file has several optimizers, give the `name` of one."
        )
    hyperparameters = {**at.hyperparameters, "centered": "mu" in min(kinds)}
    if at.rate is not None:
        hyperparameters["learning_rate"] = float(np.asarray(arrays[at.rate]))
    step = None if at.step is None else int(np.asarray(arrays[at.step])) // at.per_step
    return Record(
        at.dialect,
        step,
        (Group(hyperparameters, tuple(at.slots)),),
        {
            name: Slots(**{role: np.asarray(arrays[key]) for role, key in keys.items()})
            for name, keys in at.slots.items()
        },
        tuple(name for name in at.missing if name not in hyperparameters),
        {name: np.asarray(arrays[key]) for name, key in at.weights.items()},
        layers=at.layers,
        left_out=at.left_out,
        assumed=at.assumed,
    )


def to_arrays(
    record: Record, arrays: Mapping[Any, Any], at: Stored
) -> dict[Any, np.ndarray]:
    """Returns the arrays with a record's values at their keys, in their dtypes.

    Raises:
      ValueError: if the record has what they have no place for, or the reverse.
    """
    (group,) = record.groups
    new = dict(arrays)

    def put(key: Any, value: Any) -> None:
        old = np.asarray(arrays[key])
        new[key] = np.asarray(value).astype(old.dtype).reshape(old.shape)

    for name in group.names:
        keys = at.slots.get(name, {})
        for role, value in record.slots[name]._asdict().items():
            if role in keys:
                zeros = np.zeros_like(record.slots[name].nu)
                put(keys[role], zeros if value is None else value)
            elif value is not None:
                raise ValueError(
                    f"The file has no place for the {role} of {name}: is it of a run "
                    "with other options?"
                )
    lost = [name for name in record.weights or {} if name not in at.weights]
    if lost:
        raise ValueError(
            f"The file does not show where {', '.join(lost)} are, to put the "
            "parameters there: give their `jax.ShapeDtypeStruct`s to write the "
            "optimizer's state alone."
        )
    for name, value in (record.weights or {}).items():
        put(at.weights[name], value)
    if at.step is not None and record.step is not None:
        put(at.step, record.step * at.per_step)
    rate = group.hyperparameters.get("learning_rate")
    if at.rate is not None and rate is not None:
        put(at.rate, present(rate, record, "learning_rate"))
    return new


def named(
    keys: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], Any, Any]:
    """Returns whose the variables of a Keras optimizer are, as their names say.

    Keras 2 calls them "RMSprop/dense/kernel/rms", later "RMSprop/velocity/dense/kernel"
    and Keras 3 "rm_sprop/dense_kernel_velocity".

    Args:
      keys: the keys of the optimizer's variables, by name.
      weights: the model's variables, by name.

    Returns:
      The keys by variable and role; that of the step, and that of the learning rate.
    """
    flat = {name.replace("/", "_"): name for name in weights}
    flat |= {f"{flattened}_0": name for flattened, name in flat.items()}  # of "w:0"
    slots: dict[str, dict[str, Any]] = {}
    step = rate = None
    for name, key in keys.items():
        _, _, rest = name.rpartition("/") if "/" not in name else name.partition("/")
        last = rest.rpartition("/")[2]
        first, _, behind = rest.partition("/")
        end = re.fullmatch(rf"(.*?)_({'|'.join(sorted(ROLES, key=len)[::-1])})", rest)
        if last in ("iter", "iteration"):
            step = key
        elif last == "learning_rate":
            rate = key
        elif last in ROLES and rest.rpartition("/")[0] in weights:
            slots.setdefault(rest.rpartition("/")[0], {})[ROLES[last]] = key
        elif first in ROLES and behind in weights:
            slots.setdefault(behind, {})[ROLES[first]] = key
        elif end and end[1] in flat:
            slots.setdefault(flat[end[1]], {})[ROLES[end[2]]] = key
    return {name: slots[name] for name in weights if name in slots}, step, rate
