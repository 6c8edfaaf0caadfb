"""Which file is whose: the module that reads a source, and the rule for its names."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _files, _keras, _optax, _ours, _tf1, _torch, _torch_files
from ._names import Rule, same, torch_to_flax
from ._record import Record

# Which module reads and writes the files of which dialect.
_MODULES: dict[str, Any] = {
    **dict.fromkeys(_torch.DIALECTS, _torch),
    **{"keras": _keras, "tf_keras": _keras, "tf1": _tf1},
}
_SUFFIXES = {
    ".pt": "torch", ".pth": "torch", ".bin": "torch", ".tar": "torch",
    ".ckpt": "torch", ".zip": "torch",
    ".keras": "keras", ".h5": "keras", ".index": "tf1",
    ".msgpack": "optax", ".npz": "optax",
}  # fmt: skip


def read(
    source: Any,
    framework: str | None,
    names: Iterable[str] | None,
    given: Mapping[str, Any],
) -> Record:
    """Returns the record of a source, in its own names and layouts.

    Args:
      source: a path, the content of a file, or a state of Optax.
      framework: the dialect, where the user says it.
      names: what the source numbers, in order.
      given: the hyperparameters of the call: TF1's `name` is that of the slots, and
        Keras's files of weights do not tell a momentum from a mean.

    Raises:
      ValueError: if it is not a state of RMSProp, or not one that can be told.
    """
    if framework is not None and framework not in {*_MODULES, "optax", "ours"}:
        raise ValueError(
            f"`framework` must be one of {', '.join(_MODULES)}, optax, ours, got "
            f"{framework!r}."
        )
    names = None if names is None else list(names)
    kind, content = _content(source, framework)
    if kind == "ours":
        with _files.reading(source):
            return _ours.read(source)
    if module_named(kind) is _torch:
        record = _torch.read(content, framework, names)
    elif kind == "tf1":
        record = _tf1.read(content, names, given)
    elif kind == "keras":
        record = _keras.read(content, names, given)
    else:
        record = _optax.read(content, names, given)
    negative = [
        name
        for name, slots in record.slots.items()
        if slots.nu is not None and np.any(np.asarray(slots.nu) < 0)
    ]
    if negative:
        raise ValueError(
            f"This is not RMSProp: {', '.join(negative)} has negative values where the "
            "average of g² is expected. Is it the momentum of another optimizer?"
        )
    return record


def content_of(like: Any, dialect: str) -> Any:
    """Returns the content of a file of a dialect, or what is one already."""
    if not isinstance(like, str | os.PathLike):
        return like
    with _files.reading(like):
        prefix = _tf1.prefix_of(Path(like))
        return module_of(dialect).load(like) if prefix is None else _tf1.load(prefix)


def module_of(dialect: str, like: Any = None) -> Any:
    """Returns the module that reads and writes the files of a dialect.

    Args:
      dialect: the dialect.
      like: the content of such a file: TensorFlow's have optimizers of Keras too.

    Raises:
      ValueError: if it has no format of its own.
    """
    if dialect not in _MODULES:
        raise ValueError(
            f"There is no file format of {dialect!r}: save it as .safetensors."
        )
    if isinstance(like, Mapping) and _tf1.is_content(like):
        return _tf1
    return _MODULES[dialect]


def module_named(kind: str) -> Any:
    """Returns the module of a dialect, of Optax or of ours."""
    return {**_MODULES, "optax": _optax, "ours": _ours}[kind]


def check_suffix(path: Path, kind: str) -> None:
    """Checks that a file's name is not that of another framework's files.

    Raises:
      ValueError: if it is.
    """
    usual = _SUFFIXES.get(path.suffix)
    other = usual is not None and module_named(usual) is not module_named(kind)
    if other or (kind == "optax" and path.suffix != ".msgpack"):
        known = [suffix for suffix, k in _SUFFIXES.items() if _same_kind(k, kind)]
        known = {"tf1": ["a prefix without a suffix"], "optax": [".msgpack"]}.get(
            kind, known
        )
        raise ValueError(
            f"{path.name} does not look like a file of {kind}: name it "
            f"{' or '.join(known)}, or .safetensors for a file of ours."
        )


def default_rule(
    record: Record,
    rename: Mapping[str, str] | None = None,
    channels_first: Mapping[str, tuple[int, ...] | None] | None = None,
    transposed: Collection[str] | None = None,
) -> Rule:
    """Returns the rule for the files of a record's dialect, or for ours."""
    if record.is_ours or record.dialect == "optax":
        return same(rename, transposed or ())
    if record.dialect in _torch.DIALECTS:
        return torch_to_flax(rename, channels_first, transposed)
    return same(rename, transposed)


def _same_kind(one: str, other: str) -> bool:
    return module_named(one) is module_named(other)


def _content(source: Any, framework: str | None) -> tuple[str, Any]:
    """Returns what a source is, and its content unless it is a file of ours."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with _files.reading(path):
            usual, path = _kind_of(path, framework)
            of_tensorflow = usual == "tf1" and framework in ("keras", "tf_keras")
            if framework is not None and not (
                of_tensorflow or _same_kind(usual, framework)
            ):
                raise ValueError(
                    f"`framework` is {framework!r}, and {path.name} is a file of "
                    f"{usual}."
                )
            return usual, None if usual == "ours" else module_named(usual).load(path)
    if isinstance(source, Mapping):
        keys = [str(key) for key in source]
        kind = framework or "optax"
        if _torch_files.is_content(source):
            kind = "torch"
        elif "variables" in keys:
            kind = "keras"
        elif _tf1.is_content(source):
            kind = "tf1"
        return kind, source
    return "optax", _optax.nested(source)


def _kind_of(path: Path, framework: str | None) -> tuple[str, Path]:
    """Returns what a file is, by its name and content, or as the user says.

    And its path, which for a checkpoint of TensorFlow is its prefix.
    """
    prefix = _tf1.prefix_of(path)
    if prefix is not None:
        return "tf1", Path(prefix)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(
            f"{path.name} is a pickle, which would execute what is in it: load it "
            "where it comes from, and save flax.serialization.to_bytes(state) as "
            ".msgpack."
        )
    if path.suffix == ".safetensors":
        return "ours" if _ours.is_ours(path) else "torch", path
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix], path
    if (path / "optimizer.pt").exists():
        return "torch", path
    folder = _optax.folder_of(path)
    if folder is not None:
        return "optax", folder
    if framework is None:
        known = ", ".join([".safetensors", *_SUFFIXES])
        raise ValueError(
            f"{path.name} is none of {known}, nor a folder of Hugging Face's Trainer "
            "or Orbax, or a checkpoint of TensorFlow: say what it is with `framework`."
        )
    return framework, path
