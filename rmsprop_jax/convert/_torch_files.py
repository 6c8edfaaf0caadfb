"""Files of torch: nested dictionaries of tensors, in .pt and in .safetensors."""

import contextlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _files

OPTIMIZERS = ("optimizer", "optimizer_state_dict")
MODELS = ("model", "model_state_dict", "state_dict")
SORTED = ".safetensors"  # marks content whose names are in no order


def load(path: Any) -> dict[str, Any]:
    """Returns the content of a .pt or .safetensors file as nested dictionaries."""
    path = Path(path)
    if path.suffix != ".safetensors":
        torch = _files.needed("torch", f"Reading {path.name}", "torch")
        _files.check_zip(path)
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path.name} is damaged, or holds objects whose pickled code would "
                "run: save state_dict()s, of tensors and plain values alone."
            ) from error
        if not isinstance(content, Mapping):
            raise ValueError(
                f"{path.name} holds a {type(content).__name__}, not a state_dict()."
            )
        tensors = [value for _, value in flat(content) if hasattr(value, "nbytes")]
        unpacked = sum(tensor.nbytes for tensor in tensors)  # of views too, as arrays
        _files.check_growth(path.name, path.stat().st_size, unpacked)
        return dict(content)
    safetensors = _files.needed(
        "safetensors", f"Reading {path.name}", "'rmsprop-jax[convert]'"
    )
    content: dict[str, Any] = {SORTED: True}
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118
            model, _, name = key.partition(".")
            numbered = [
                int(part) if part.isdigit() else part for part in key.split(".")
            ]
            parts = [model, name] if model in MODELS else numbered
            _files.nest(content, parts, file.get_tensor(key))
    optimizer = content.get(first(content, OPTIMIZERS), content)
    for key, text in metadata.items():
        with contextlib.suppress(ValueError):  # a text that is not ours, "pt"
            target = optimizer if key == "param_groups" else content
            target[key] = json.loads(text)
    return content


def save(path: Any, content: Mapping[str, Any]) -> None:
    """Writes nested dictionaries of arrays as .pt or .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        torch = _files.needed("torch", f"Writing {path.name}", "torch")
        with _files.replacing(path) as temporary:
            torch.save(as_tensors(torch, content), temporary)
        return
    numpy = _files.needed(
        "safetensors.numpy", f"Writing {path.name}", "'rmsprop-jax[convert]'"
    )
    arrays, metadata = {}, {}
    for key, value in flat(content):
        if key == SORTED:
            continue
        if key.rpartition(".")[2] == "param_groups":
            metadata["param_groups"] = json.dumps(value)
        elif hasattr(value, "shape") or not key.count("."):
            if hasattr(value, "shape"):
                arrays[key] = np.array(array(value), order="C")  # contiguous
            else:
                metadata[key] = json.dumps(value)
        else:
            arrays[key] = np.asarray(value)
    with _files.replacing(path) as temporary:
        numpy.save_file(arrays, temporary, metadata)


def first(content: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Returns the first of some keys that is there, or "" if none is."""
    return next((key for key in keys if key in content), "")


def array(value: Any) -> np.ndarray:
    """Returns a tensor, an array or a number as an array, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    return np.array(value)


def flat(content: Mapping[Any, Any], start: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def as_tensors(torch: Any, content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: as_tensors(torch, value) for key, value in content.items()}
    if isinstance(content, np.ndarray | np.generic):
        if content.dtype.name == "bfloat16":
            return torch.from_numpy(content.astype(np.float32)).bfloat16()
        return torch.from_numpy(np.array(content))
    return content
