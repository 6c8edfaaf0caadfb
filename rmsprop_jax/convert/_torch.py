"""Optimizer state of torch, timm, Stable-Baselines3 and bitsandbytes.

All four are `optimizer.state_dict()`: "state" by the number of the parameter, and
"param_groups". In a file it may stand alone or as "optimizer" beside "model".
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects
from . import _files
from ._record import Group, Record, Slots

DIALECTS = ("torch", "timm", "sb3", "bitsandbytes")
BLOCK = 256  # elements that share a scale in bitsandbytes
_QUANTISED = "__bnb_optimizer_quant_state__"
_SORTED = ".safetensors"  # marks content whose names are in no order
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_KEYS = {"nu": "square_avg", "momentum": "momentum_buffer", "mu": "grad_avg"}


def read(
    source: Any, framework: str | None = None, names: Iterable[str] | None = None
) -> Record:
    """Returns the record of a state dictionary, or of a .pt or .safetensors file.

    Args:
      source: the dictionary or the path.
      framework: one of the four; by default what the hyperparameters show.
      names: the names of the parameters in the optimizer's order, group after group; by
        default what the groups or the model beside them show.
    """
    content = source if isinstance(source, Mapping) else load(source)
    optimizer = content.get("optimizer", content)
    if "param_groups" not in optimizer:
        raise ValueError(
            'There is no optimizer state: it has "param_groups", at the top or under '
            f'"optimizer"; found {", ".join(map(str, content))}.'
        )
    groups, state = optimizer["param_groups"], optimizer["state"]
    model = content.get("model")
    weights = {name: _array(value) for name, value in (model or {}).items()}
    dialect = framework or _dialect_of(groups[0])
    numbers = [number for group in groups for number in group["params"]]
    entries = {number: _entry(state[number]) for number in numbers if number in state}
    shapes = {number: entry["nu"].shape for number, entry in entries.items()}
    is_ordered = not content.get(_SORTED, False)
    named = _names(numbers, shapes, groups, weights, names, is_ordered)
    slots = {}
    for number in numbers:
        if number in entries:
            entry = entries[number]
        elif named[number] in weights:  # it has had no gradient yet
            initial = 1.0 if dialect in ("timm", "sb3") else 0.0
            entry = {"nu": np.full_like(weights[named[number]], initial)}
        else:
            raise ValueError(
                f"The parameter {named[number]} has no state yet, and the file has no "
                "model to take its shape from: save both, or take a step first."
            )
        slots[named[number]] = Slots(*(entry.get(slot) for slot in Slots._fields))
    steps = [float(_array(entry.get("step", 0))) for entry in state.values()]
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
        weights={name: weights[name] for name in slots if name in weights},
    )


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as a state dictionary of arrays.

    Args:
      record: one in torch's names and layouts.
      like: the content of a file to take the groups and all else from.
    """
    old = (like or {}).get("optimizer", like or {})
    numbers = {
        name: i for i, name in enumerate(n for g in record.groups for n in g.names)
    }
    before = old.get("state", {})
    state = {
        number: _to_entry(record, record.slots[name], before.get(number, {}))
        for name, number in numbers.items()
    }
    groups = [
        {
            **was,
            **_to_group(record, group.hyperparameters, whole=not was),
            "params": [numbers[name] for name in group.names],
        }
        for group, was in zip(
            record.groups,
            old.get("param_groups") or [{}] * len(record.groups),
            strict=True,
        )
    ]
    optimizer = {"state": state, "param_groups": groups}
    if like is None or "optimizer" not in like:
        return optimizer
    content = {k: v for k, v in like.items() if k != _SORTED} | {"optimizer": optimizer}
    if "step" in content:
        content["step"] = record.step
    if "model" in content:
        content["model"] = {**content["model"], **(record.weights or {})}
    return content


def load(path: Any) -> dict[str, Any]:
    """Returns the content of a .pt or .safetensors file as nested dictionaries."""
    path = Path(path)
    if path.suffix != ".safetensors":
        torch = _files.needed("torch", f"Reading {path.name}", "torch")
        return torch.load(path, weights_only=True, map_location="cpu")
    safetensors = _files.needed(
        "safetensors", f"Reading {path.name}", "'rmsprop-jax[convert]'"
    )
    content: dict[str, Any] = {_SORTED: True}
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118
            model, _, name = key.partition(".")
            numbered = [
                int(part) if part.isdigit() else part for part in key.split(".")
            ]
            path = [model, name] if model == "model" else numbered
            _files.nest(content, path, file.get_tensor(key))
    for key, text in metadata.items():
        target = content.get("optimizer", content) if key == "param_groups" else content
        target[key] = json.loads(text)
    return content


def save(path: Any, content: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays as .pt or .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        torch = _files.needed("torch", f"Writing {path.name}", "torch")
        with _files.replacing(path) as temporary:
            torch.save(_as_tensors(torch, content), temporary)
        return
    numpy = _files.needed(
        "safetensors.numpy", f"Writing {path.name}", "'rmsprop-jax[convert]'"
    )
    arrays, metadata = {}, {}
    for key, value in _flat(content):
        if key == _SORTED:
            continue
        if key.rpartition(".")[2] == "param_groups":
            metadata["param_groups"] = json.dumps(value)
        elif hasattr(value, "shape") or not key.count("."):
            if hasattr(value, "shape"):
                arrays[key] = np.array(_array(value), order="C")  # contiguous
            else:
                metadata[key] = json.dumps(value)
        else:
            arrays[key] = np.asarray(value)
    with _files.replacing(path) as temporary:
        numpy.save_file(arrays, temporary, metadata)


def dequantised(state: Mapping[str, Any]) -> np.ndarray:
    """Returns the value of bitsandbytes' 8-bit state: code, map and scale per block."""
    codes, scales = _array(state["state1"]), _array(state["absmax1"])
    values = _array(state["qmap1"])[codes.ravel()]
    values *= np.repeat(scales, BLOCK)[: values.size]
    return values.reshape(codes.shape)


def quantised(value: np.ndarray, qmap: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the nearest codes of bitsandbytes' 8-bit state, as it rounds."""
    flat = np.asarray(value, np.float32).ravel()
    blocks = range(0, flat.size, BLOCK)
    scales = np.array([np.abs(flat[i : i + BLOCK]).max() for i in blocks], np.float32)
    safe = np.where(scales > 0, scales, 1)
    scaled = flat / np.repeat(safe, BLOCK)[: flat.size]
    middles = (qmap[1:] + qmap[:-1]) / 2
    codes = np.searchsorted(middles, scaled).astype(np.uint8)
    return {"state1": codes.reshape(value.shape), "qmap1": qmap, "absmax1": scales}


def _dialect_of(group: Mapping[str, Any]) -> str:
    if "betas" in group:
        return "bitsandbytes"
    if "decoupled_decay" in group:
        return "timm"
    if "alpha" not in group:
        raise ValueError(
            f"This is not RMSProp: its groups have {', '.join(group)}, and no alpha."
        )
    if "foreach" in group:
        return "torch"
    raise ValueError(
        "This is from Stable-Baselines3, or from torch before 1.12; their files look "
        'the same, and the rules differ: pass framework="sb3" or framework="torch".'
    )


def _hyperparameters(dialect: str, group: Mapping[str, Any]) -> dict[str, Any]:
    group = dict(group)
    if "betas" in group:
        group["alpha"], group["momentum"] = group.pop("betas")
    accepted = inspect.signature(dialects.DIALECTS[dialect]).parameters
    found = {name: value for name, value in group.items() if name in accepted}
    return {k: _array(v).item() if hasattr(v, "shape") else v for k, v in found.items()}


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
    for name, value in group.items():
        now: Any = value(record.step) if callable(value) else value
        group[name] = float(now) if callable(value) else now
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
    if "state1" in state:
        codes = _array(state["state1"])
        return {"nu": dequantised(state) if codes.dtype == np.uint8 else codes}
    if "square_avg" not in state:
        raise ValueError(f"This is not RMSProp's state: it has {', '.join(state)}.")
    return {slot: _array(state[key]) for slot, key in _KEYS.items() if key in state}


def _to_entry(
    record: Record, slots: Slots, before: Mapping[str, Any]
) -> dict[str, Any]:
    step = record.step
    if record.dialect == "bitsandbytes":
        old = {**before, **before.get(_QUANTISED, {})}
        entry: dict[str, Any] = {"state1": slots.nu}
        if "qmap1" in old:
            entry = quantised(slots.nu, _array(old["qmap1"]))
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
) -> dict[Any, str]:
    """Returns the name of each parameter's number.

    Of one group, torch's own files have the parameters in the optimizer's order, and
    .safetensors sorts them; there, and for more groups, their shapes may tell.
    """
    if names is None and all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    learned = [name for name in weights if not name.endswith(_BUFFERS)]
    if names is None and len(groups) == 1 and is_ordered:
        names = learned if len(learned) == len(numbers) else None
    if names is None:
        by_shape: dict[Any, list[str]] = {}
        for name in learned:
            by_shape.setdefault(weights[name].shape, []).append(name)
        fitting = [by_shape.get(shapes.get(number, ()), []) for number in numbers]
        if all(len(found) == 1 for found in fitting):
            names = [found[0] for found in fitting]
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
    return dict(zip(numbers, names, strict=True))


def _array(value: Any) -> np.ndarray:
    """Returns a tensor, an array or a number as an array, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    return np.array(value)


def _flat(content: Mapping[Any, Any], start: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _as_tensors(torch: Any, content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _as_tensors(torch, value) for key, value in content.items()}
    if isinstance(content, np.ndarray | np.generic):
        return torch.from_numpy(np.array(content))
    return content
