"""Files of torch: nested dictionaries of tensors, as people and libraries save them.

A .pt holds one; a .safetensors has it flat. Hugging Face's Trainer keeps a folder of
"optimizer.pt" and "model.safetensors", Stable-Baselines3 a .zip of
"policy.optimizer.pth" and "policy.pth", and Lightning's .ckpt a list of optimizers.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _files

OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_states")
MODELS = ("model", "model_state_dict", "state_dict")
SORTED = ".safetensors"  # marks content whose names are in no order
ARCHIVE, SHARDS, FRAMEWORK = ".zip", ".index.json", ".framework"
MARKS = (SORTED, ARCHIVE, SHARDS, FRAMEWORK)  # what content has beside a file's own
_INDEX = "model.safetensors.index.json"
_IN_ZIP = {"optimizer": "policy.optimizer.pth", "model": "policy.pth"}


def load(path: Any) -> dict[str, Any]:
    """Returns the content of a file or a folder as nested dictionaries."""
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    _files.check_zip(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if _IN_ZIP["optimizer"] in archive.namelist():
                parts = {
                    key: _load_torch(path, io.BytesIO(_files.unzipped(archive, name)))
                    for key, name in _IN_ZIP.items()
                }
                about = _files.unzipped(archive, "data").decode()
                like = {FRAMEWORK: "sb3"} if "RMSpropTFLike" in about else {}
                return {**parts, **like, ARCHIVE: path.read_bytes()}
    return _load_torch(path, path)


def _load_torch(path: Path, file: Any) -> dict[str, Any]:
    """Returns what torch reads without executing what is pickled.

    Beside tensors these are plain values: torch's list of what is safe is widened by
    the classes of argparse, pathlib and NumPy that only hold values.
    """
    torch = _files.needed("torch", f"Reading {path.name}", "torch")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        what = found[1] if found else "objects"
        raise ValueError(
            f"{path.name} is damaged, or holds {what} whose pickled code would run: "
            "save state_dict()s, of tensors and plain values alone. Or, if you trust "
            "it, load it yourself and pass what torch.load returns as the source."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path.name} holds a {type(content).__name__}, not a state_dict()."
        )
    tensors = [value for _, value in flat(content) if hasattr(value, "nbytes")]
    unpacked = sum(tensor.nbytes for tensor in tensors)  # of views too, as arrays
    _files.check_growth(path.name, path.stat().st_size, unpacked)
    return dict(content)


def _harmless() -> list[Any]:
    """Returns classes and functions of plain values, which files may name."""
    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdFDSU"}
    paths = (pathlib.PosixPath, pathlib.PurePosixPath)
    holders = (argparse.Namespace, collections.defaultdict)
    return [*holders, *paths, scalar, rebuild, np.ndarray, np.dtype, *dtypes]


def _load_folder(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder of Hugging Face's Trainer."""
    content = {
        "optimizer": _load_torch(folder / "optimizer.pt", folder / "optimizer.pt")
    }
    index = folder / _INDEX
    if index.exists():
        shards = json.loads(index.read_text())["weight_map"]
        files = {Path(name).name for name in shards.values()}  # none of other folders
    else:
        files = {"model.safetensors"} & {file.name for file in folder.iterdir()}
    numpy = _files.needed("safetensors.numpy", f"Reading {folder}", extra="convert")
    shards, model = {}, {}
    for name in sorted(files):
        found = numpy.load_file(folder / name)
        shards |= dict.fromkeys(found, name)
        model |= found
    weights = folder / "pytorch_model.bin"
    if not model and weights.exists():
        return {**content, "model": _load_torch(weights, weights)}
    return {**content, "model": model, SHARDS: shards, SORTED: True}


def _load_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _files.needed("safetensors", f"Reading {path.name}", extra="convert")
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
    """Writes nested dictionaries of arrays as the file or folder that a path names."""
    path = Path(path)
    own = {key: value for key, value in content.items() if key not in MARKS}
    if path.is_dir():
        _save_folder(path, own, content.get(SHARDS, {}))
    elif path.suffix == ".safetensors":
        _save_safetensors(path, own)
    elif ARCHIVE in content:
        _save_zip(path, own, content[ARCHIVE])
    else:
        torch = _files.needed("torch", f"Writing {path.name}", "torch")
        with _files.replacing(path) as temporary:
            torch.save(as_tensors(torch, own), temporary)


def _save_folder(
    folder: Path, content: Mapping[str, Any], shards: Mapping[str, str]
) -> None:
    numpy = _files.needed("safetensors.numpy", f"Writing {folder}", extra="convert")
    for name in set(shards.values()):
        arrays = {
            key: np.array(value, order="C")  # it writes the memory of any other
            for key, value in content["model"].items()
            if shards[key] == name
        }
        with _files.replacing(folder / name) as temporary:
            numpy.save_file(arrays, temporary, {"format": "pt"})
    if len(set(shards.values())) > 1:
        with _files.replacing(folder / _INDEX) as temporary:
            temporary.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    if not shards:
        save(folder / "pytorch_model.bin", content["model"])
    save(folder / "optimizer.pt", content["optimizer"])


def _save_zip(path: Path, content: Mapping[str, Any], old: bytes) -> None:
    torch = _files.needed("torch", f"Writing {path.name}", "torch")
    new = {}
    for key, name in _IN_ZIP.items():
        torch.save(as_tensors(torch, content[key]), stream := io.BytesIO())
        new[name] = stream.getvalue()
    _files.rezipped(path, old, new)


def _save_safetensors(path: Path, content: Mapping[str, Any]) -> None:
    numpy = _files.needed("safetensors.numpy", f"Writing {path.name}", extra="convert")
    arrays, metadata = {}, {}
    for key, value in flat(content):
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


class Parts(NamedTuple):
    """The optimizer and the model in a file's content, and the keys to them."""

    optimizer: Mapping[str, Any]
    model: Mapping[str, Any]
    optimizer_at: tuple[Any, ...]
    model_at: tuple[Any, ...]


def parts_of(content: Mapping[str, Any]) -> Parts:
    """Finds the optimizer's state and the model's, under whatever names they stand.

    Raises:
      ValueError: if there is no optimizer's state, or more than one.
    """
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    if "param_groups" in content:
        found[()] = content
    for key, value in content.items():
        values = value if isinstance(value, list | tuple) else None
        for i, one in enumerate([value] if values is None else values):
            if isinstance(one, Mapping) and "param_groups" in one:
                found[(key,) if values is None else (key, i)] = one
    if not found:
        raise ValueError(
            'There is no optimizer state: it has "param_groups", at the top or under '
            f'"optimizer"; found {", ".join(map(str, content))}.'
        )
    usual = [at for at in found if at and at[0] in OPTIMIZERS]
    if len(found) > 1 and len(usual) != 1:
        names = ", ".join("".join(f"[{key!r}]" for key in at) for at in found)
        raise ValueError(
            f"It has several optimizers, {names}: pass "
            '{"model": …, "optimizer": …} of one.'
        )
    at = usual[0] if len(found) > 1 else next(iter(found))
    models = {
        key: value
        for key, value in content.items()
        if isinstance(value, Mapping) and value and "param_groups" not in value
        and all(hasattr(one, "shape") for one in value.values())
    }  # fmt: skip
    model = first(content, MODELS) or (next(iter(models)) if len(models) == 1 else "")
    is_inside = bool(at) and model in content
    return Parts(
        found[at],
        content[model] if is_inside else {},
        at,
        (model,) if is_inside else (),
    )


def is_content(content: Mapping[str, Any]) -> bool:
    """Whether a dictionary is of a file of torch."""
    with contextlib.suppress(ValueError):
        return "param_groups" in parts_of(content).optimizer
    return bool(first(content, OPTIMIZERS)) or any(
        isinstance(value, Mapping) and "param_groups" in value
        for value in content.values()
    )


def replaced(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    """Returns nested dictionaries and lists with another value somewhere."""
    if not at:
        return value
    new = dict(content) if isinstance(content, Mapping) else list(content)
    new[at[0]] = replaced(new[at[0]], at[1:], value)
    return new


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Returns names of parameters without what wrappers put before all of them.

    DistributedDataParallel calls them "module.…", torch.compile "_orig_mod.…". Returned
    are the names as they are, by those without.
    """
    names = list(names)
    plain = names
    for _ in range(4):
        for start in ("module.", "_orig_mod."):
            if plain and all(name.startswith(start) for name in plain):
                plain = [name.removeprefix(start) for name in plain]
    plain = [name.replace("._orig_mod.", ".") for name in plain]  # of a part
    return dict(zip(plain, names, strict=True))


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
    if isinstance(content, list):
        return [as_tensors(torch, value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        if content.dtype.name == "bfloat16":
            return torch.from_numpy(content.astype(np.float32)).bfloat16()
        return torch.from_numpy(np.array(content))
    return content
