"""Optimizer state of torch, timm, Stable-Baselines3 and bitsandbytes.

All four are `optimizer.state_dict()`: "state" by the number of the parameter, and
"param_groups". In a file it may stand alone or as "optimizer" beside "model", or under
the other names that people give them.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import dialects
from . import _bitsandbytes
from ._record import Group, Record, Slots, present
from ._torch_files import (
    FRAMEWORK,
    MARKS,
    SORTED,
    array,
    parts_of,
    plain_names,
    replaced,
)
from ._torch_files import load as load
from ._torch_files import save as save

DIALECTS = ("torch", "timm", "sb3", "bitsandbytes")
_QUANTISED = "__bnb_optimizer_quant_state__"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_KEYS = {"nu": "square_avg", "momentum": "momentum_buffer", "mu": "grad_avg"}


def read(
    content: Mapping[str, Any],
    framework: str | None = None,
    names: Iterable[str] | None = None,
) -> Record:
    """Returns the record of a state dictionary, alone or beside a model.

    Args:
      content: the dictionary, or what `load` returns.
      framework: one of the four; by default what the hyperparameters show.
      names: the names of the parameters in the optimizer's order, group after group; by
        default what the groups or the model beside them show.
    """
    at = parts_of(content)
    optimizer, framework = at.optimizer, framework or content.get(FRAMEWORK)
    groups, state = optimizer["param_groups"], optimizer.get("state", {})
    if not groups:
        raise ValueError("There are no parameters in it: its `param_groups` are empty.")
    model = {k: v for k, v in at.model.items() if hasattr(v, "shape")}
    plain = plain_names(model)
    weights = {name: array(model[key]) for name, key in plain.items()}
    names = None if names is None else list(plain_names(names))
    tied = _tied({name: model[key] for name, key in plain.items()})
    weights |= {name: weights[first] for name, first in tied.items()}
    dialect = _dialect_of(groups[0], framework)
    numbers = [number for group in groups for number in group["params"]]
    entries = {number: _entry(state[number]) for number in numbers if number in state}
    shapes = {number: entry["nu"].shape for number, entry in entries.items()}
    is_ordered = not content.get(SORTED, False)
    learned = {name: value for name, value in weights.items() if name not in tied}
    named, assumed = _names(numbers, shapes, groups, learned, names, is_ordered)
    if any(value.dtype == np.uint8 for value in _codes(state)):
        assumed += ("the 8-bit state of bitsandbytes goes on in float32",)
    slots = {
        named[number]: Slots(
            *(entries.get(number, {}).get(slot) for slot in Slots._fields)
        )
        for number in numbers
    }
    steps = [float(array(entry.get("step", 0))) for entry in state.values()]
    return Record(
        dialect,
        int(max(steps, default=0)),
        tuple(
            Group(
                _hyperparameters(dialect, group),
                tuple(named[number] for number in group["params"]),
            )
            for group in groups
        ),
        slots,
        weights=weights,
        left_out=tuple(
            f"the entry {key!r}"
            for key in content
            if at.optimizer_at
            and key not in ("step", at.optimizer_at[0], *at.model_at, *MARKS)
        ),
        assumed=assumed,
    )


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as a state dictionary of arrays.

    Args:
      record: one in torch's names and layouts.
      like: the content of a file to take the groups and all else from.
    """
    like = like or {}
    at = parts_of(like) if like else None
    old = at.optimizer if at else {}
    numbers = {
        name: i for i, name in enumerate(n for g in record.groups for n in g.names)
    }
    before = old.get("state", {})
    initial = 1.0 if record.dialect in ("timm", "sb3") else 0.0
    waiting = {name for group in record.groups for name in group.waiting}
    waiting = {n for n in waiting if np.all(np.asarray(record.slots[n].nu) == initial)}
    waiting |= {name for name, slots in record.slots.items() if slots.nu is None}
    olds = old.get("param_groups") or [{}] * len(record.groups)
    if len(olds) != len(record.groups):
        raise ValueError(
            f"`like` has {len(olds)} parameter groups, and the state "
            f"{len(record.groups)}: give `Restored.groups` as the hyperparameters."
        )
    state = {
        number: _to_entry(record, record.slots[name], before.get(number, {}))
        for name, number in numbers.items()
        if name not in waiting
    }
    groups = [
        {
            **was,
            **_to_group(record, group.hyperparameters, whole=not was),
            "params": [numbers[name] for name in group.names],
        }
        for group, was in zip(record.groups, olds, strict=True)
    ]
    optimizer = {"state": state, "param_groups": groups}
    if at is None or not at.optimizer_at:
        return optimizer
    content = replaced(like, at.optimizer_at, optimizer)
    if "step" in content:
        content["step"] = record.step
    if at.model_at:
        plain = plain_names(at.model)
        weights = {
            plain.get(n, n): value for n, value in (record.weights or {}).items()
        }
        content = replaced(content, at.model_at, _with_weights(at.model, weights))
    return content


def _with_weights(
    model: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns a model's tensors with other values, tied ones too.

    Raises:
      ValueError: if one has no place there.
    """
    lost = [name for name in weights if name not in model]
    if lost:
        raise ValueError(
            f"The file's model has no {', '.join(lost)}, to put the parameters there: "
            "give their `jax.ShapeDtypeStruct`s to write the optimizer's state alone."
        )
    tied = {}
    for name, old in model.items():
        for other, value in weights.items():
            if name not in weights and _memory(old) == _memory(model[other]):
                tied[name] = value
    new = {**weights, **tied}
    return {**model, **{name: _as(model[name], value) for name, value in new.items()}}


def _tied(model: Mapping[str, Any]) -> dict[str, str]:
    """Returns the first names of tensors that stand there twice, by their others."""
    seen: dict[Any, str] = {}
    firsts = {n: seen.setdefault(_memory(tensor), n) for n, tensor in model.items()}
    return {name: first for name, first in firsts.items() if name != first}


def _codes(state: Mapping[Any, Mapping[str, Any]]) -> Iterable[np.ndarray]:
    for entry in state.values():
        codes = {**entry, **entry.get(_QUANTISED, {})}.get("state1")
        if codes is not None:
            yield array(codes)


def _as(old: Any, value: np.ndarray) -> Any:
    """Returns an array in the dtype of the tensor or the array that it replaces."""
    if hasattr(old, "new_tensor"):
        is_narrow = value.dtype.itemsize == 2  # bfloat16 is not one of torch's here
        return old.new_tensor(value.astype(np.float32) if is_narrow else value)
    return np.asarray(value, old.dtype)


def _memory(tensor: Any) -> Any:
    """Returns what two tensors that are one have in common."""
    is_tensor = hasattr(tensor, "data_ptr") and tensor.numel()
    return (tensor.data_ptr(), tensor.shape) if is_tensor else id(tensor)


def _dialect_of(group: Mapping[str, Any], framework: str | None) -> str:
    """Returns the dialect that a group's hyperparameters show, or that was said.

    Raises:
      ValueError: if they are no RMSProp's, show another one, or two.
    """
    if "betas" in group:
        if len(group["betas"]) != 2 or "amsgrad" in group:
            raise ValueError(
                f"This is not RMSProp: its groups have {', '.join(group)}."
            )
        shown = "bitsandbytes"
    elif "alpha" not in group:
        raise ValueError(
            f"This is not RMSProp: its groups have {', '.join(group)}, and no alpha."
        )
    elif "decoupled_decay" in group:
        shown = "timm"
    elif "foreach" in group:
        shown = "torch"
    elif framework in ("sb3", "torch"):
        shown = framework
    else:
        raise ValueError(
            "This is from Stable-Baselines3, or from torch before 1.12; their files "
            'look the same, and the rules differ: pass framework="sb3" or '
            'framework="torch".'
        )
    if framework not in (None, shown):
        raise ValueError(
            f"`framework` is {framework!r}, and the file is of {shown!r}: load it as "
            "that; `translate` goes from one dialect to another."
        )
    return shown


def _hyperparameters(dialect: str, group: Mapping[str, Any]) -> dict[str, Any]:
    group = dict(group)
    if "betas" in group:
        group["alpha"], group["momentum"] = group.pop("betas")
    accepted = inspect.signature(dialects.DIALECTS[dialect]).parameters
    found = {name: value for name, value in group.items() if name in accepted}
    return {k: array(v).item() if hasattr(v, "shape") else v for k, v in found.items()}


def _to_group(
    record: Record, hyperparameters: Mapping[str, Any], whole: bool
) -> dict[str, Any]:
    """Returns a group's hyperparameters; those not given too if it is to be `whole`.

    Of a schedule it is the present value.
    """
    native = inspect.unwrap(dialects.DIALECTS[record.dialect])
    group = {
        name: hyperparameters.get(name, parameter.default)
        for name, parameter in inspect.signature(native).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        if whole or name in hyperparameters
    }
    group = {name: present(value, record, name) for name, value in group.items()}
    if record.dialect == "bitsandbytes":
        given = {"alpha": 0.99, "momentum": 0, **group}
        group = {k: group[k] for k in ("lr", "eps", "weight_decay") if k in group}
        group["betas"] = (given["alpha"], given["momentum"])
    if group.get("max_lr_snapshot", 0) is None:
        group["max_lr_snapshot"] = group["lr"]
    return group


def _entry(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of one parameter by slot."""
    state = {**state, **state.get(_QUANTISED, {})}
    if "state1" in state and "state2" not in state:
        codes = array(state["state1"])
        return {
            "nu": _bitsandbytes.dequantised(state) if codes.dtype == np.uint8 else codes
        }
    if "square_avg" not in state:
        raise ValueError(f"This is not RMSProp's state: it has {', '.join(state)}.")
    return {slot: array(state[key]) for slot, key in _KEYS.items() if key in state}


def _to_entry(
    record: Record, slots: Slots, before: Mapping[str, Any]
) -> dict[str, Any]:
    step = record.step or 0
    if record.dialect == "bitsandbytes":
        old = {**before, **before.get(_QUANTISED, {})}
        entry: dict[str, Any] = {"state1": slots.nu}
        if "qmap1" in old:
            block = _bitsandbytes.block_of(
                np.size(slots.nu), np.size(array(old["absmax1"]))
            )
            entry = _bitsandbytes.quantised(slots.nu, array(old["qmap1"]), block)
        return {"step": step, _QUANTISED: entry}
    counted = step if record.dialect == "sb3" else np.asarray(step, np.float32)
    values = {_KEYS[slot]: getattr(slots, slot) for slot in _KEYS}
    return {"step": counted, **{k: v for k, v in values.items() if v is not None}}


def _names(
    numbers: list[Any],
    shapes: Mapping[Any, tuple[int, ...]],
    groups: list[Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    names: Iterable[str] | None,
    is_ordered: bool,
) -> tuple[dict[Any, str], tuple[str, ...]]:
    """Returns the name of each parameter's number, and what is assumed for that.

    Of one group, torch's own files have the parameters in the optimizer's order. Other
    libraries sort them; there, and for more groups, only different shapes tell.
    """
    assumed: tuple[str, ...] = ()
    if names is None and all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    learned = [name for name in weights if not name.endswith(_BUFFERS)]
    if names is None:
        by_shape: dict[Any, list[str]] = {}
        for name in learned:
            by_shape.setdefault(weights[name].shape, []).append(name)
        fitting = [by_shape.get(shapes.get(number, ()), []) for number in numbers]
        if all(len(found) == 1 for found in fitting):
            names = [found[0] for found in fitting]
        elif len(groups) == 1 and is_ordered and len(learned) == len(numbers):
            _check_order(learned)
            names = learned
            assumed = ("the optimizer's order of parameters is that of the model's",)
    if names is None:
        raise ValueError(
            "The file numbers the parameters and does not name them: pass `names`, in "
            "the optimizer's order (for one group, [name for name, _ in "
            "model.named_parameters()])."
        )
    names = list(names)
    if len(names) != len(numbers) or len(set(names)) != len(names):
        raise ValueError(
            f"`names` must be {len(numbers)} different names, one for each parameter "
            f"of the optimizer, got {len(names)}: {', '.join(names)}."
        )
    for number, name in zip(numbers, names, strict=True):
        known, shape = weights.get(name), shapes.get(number)
        if known is not None and shape is not None and known.shape != shape:
            raise ValueError(
                f"`names` calls parameter {number} {name}, but its state has shape "
                f"{shape} and that parameter {known.shape}: is the order another one?"
            )
    return dict(zip(numbers, names, strict=True)), assumed


def _check_order(names: list[str]) -> None:
    """Checks that names are not in alphabetical order, which is none of a model's.

    Raises:
      ValueError: if they are.
    """
    counted = sorted(
        names,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in re.split(r"(\d+)", name)
        ],
    )
    if names == sorted(names) != counted:
        raise ValueError(
            f"The model's arrays are in alphabetical order, {', '.join(names[:4])} and "
            "so on, as .safetensors keeps them, and not in the optimizer's: pass "
            "`names` in that ([name for name, _ in model.named_parameters()])."
        )
