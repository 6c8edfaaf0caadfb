"""Optimizer state in checkpoints of TensorFlow, which TensorFlow reads and writes.

Those of `tf.compat.v1.train.Saver` (in both formats), of `tf.train.Checkpoint`, of
Keras's `save_weights` and the variables of a SavedModel. TF1's RMSProp keeps slots
beside the variables: "dense/kernel/RMSProp" is E[g²], and "RMSProp_1" the momentum, or
where centred the mean, with the momentum in "RMSProp_2". Optimizers of Keras keep
variables whose names say what they are.
"""

import contextlib
import importlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _files
from ._record import Record
from ._stored import Stored, named, to_arrays, to_record

_MISSING = {
    "tf1": ("learning_rate", "decay", "momentum", "epsilon"),
    "keras": ("learning_rate", "rho", "momentum", "epsilon", "weight_decay"),
    "tf_keras": ("learning_rate", "rho", "momentum", "epsilon"),
}
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_PROTOBUF = "tensorflow.core.protobuf"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = re.compile(rf"(.*)/\.OPTIMIZER_SLOT/(.*)/(rms|mg|momentum){re.escape(_VALUE)}")
_OBJECT_ROLES = {"rms": "nu", "mg": "mu", "momentum": "momentum"}
_EXPORT = """tensorflow-cpu. Or where it is installed, once: \
r = tf.train.load_checkpoint({path!r}); np.savez("slots.npz", **{{name: \
r.get_tensor(name) for name in r.get_variable_to_shape_map() if name[0] != "_"}}); \
and pass dict(np.load("slots.npz")) as the source"""


def read(
    tensors: Mapping[str, Any],
    names: Iterable[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Record:
    """Returns the record of a checkpoint.

    Args:
      tensors: what `load` returns: the tensors by name.
      names: the variables that the optimizer trains; by default all that have slots.
      given: the arguments of the call: `name` is that of the slots or of the attribute
        that the optimizer is, and `centered` tells several optimizers' slots apart.
    """
    return to_record(tensors, _layout(tensors, names, given or {}))


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as tensors by name, beside those of another checkpoint.

    Args:
      record: one in TensorFlow's names and layouts.
      like: the tensors of a checkpoint to take all else from.
    """
    (group,) = record.groups
    given = group.hyperparameters
    if like and not (record.dialect == "tf1" and not _has_slots(like, given)):
        return to_arrays(record, like, _layout(like, group.names, given))
    new: dict[str, Any] = dict(like or {})
    for name in group.names:
        nu, mu, buffer = record.slots[name]
        values = [nu, np.zeros_like(nu) if buffer is None else buffer]
        if given.get("centered", False):
            values.insert(1, np.zeros_like(nu) if mu is None else mu)
        slots = _numbered(name, given.get("name", "RMSProp"), len(values), new)
        new.update(zip(slots, values, strict=True))
    new.update(record.weights or {})
    if record.step is not None:
        kind = np.asarray(new.get("global_step", np.int64(0))).dtype
        new["global_step"] = np.asarray(record.step, kind)
    return new


def load(path: Any) -> dict[str, Any]:
    """Returns the tensors of a checkpoint, strings too.

    Raises:
      ImportError: that says how to do without TensorFlow, if it is not installed.
    """
    prefix = str(path).removesuffix(".index")
    tf = _files.needed("tensorflow", f"Reading {path}", _EXPORT.format(path=prefix))
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        types = reader.get_variable_to_dtype_map()
        unpacked = sum(
            int(np.prod(shape)) * (types[name].size or 0)
            for name, shape in shapes.items()
        )
        parts = [*Path(prefix).parent.glob(f"{Path(prefix).name}*")]
        stored = sum(part.stat().st_size for part in parts if part.is_file())
        _files.check_growth(Path(path).name, stored, unpacked)
        return {name: reader.get_tensor(name) for name in sorted(shapes)}
    except (tf.errors.OpError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, or no checkpoint of TensorFlow: "
            f"{str(error).splitlines()[0]}"
        ) from error


def save(path: Any, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint: PREFIX.index and PREFIX.data-00000-of-00001.

    Both are written under other names and moved; until both are, the old data are kept.
    """
    prefix = str(path).removesuffix(".index")
    tf = _files.needed("tensorflow", f"Writing {path}", "tensorflow-cpu")
    names = sorted(content)
    values = [tf.constant(content[name]) for name in names]
    ends = (".data-00000-of-00001", ".index")
    with (
        _kept(Path(prefix + ends[0])),
        _files.replacing(prefix + ends[1]) as index,
        _files.replacing(prefix + ends[0]) as data,
        tempfile.TemporaryDirectory(dir=index.parent, prefix=".tf-") as folder,
    ):
        new = f"{folder}/new"
        tf.raw_ops.SaveV2(
            prefix=new, tensor_names=names, shape_and_slices=[""] * len(names),
            tensors=values,
        )  # fmt: skip
        Path(new + ends[0]).replace(data)
        Path(new + ends[1]).replace(index)


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Keeps a file beside itself, and puts it back if the block raises."""
    copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    with contextlib.suppress(FileNotFoundError):
        os.link(path, copy)
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            copy.replace(path)
        raise
    finally:
        copy.unlink(missing_ok=True)


def prefix_of(path: Path) -> str | None:
    """Returns the prefix of a checkpoint: of a path, a folder or a SavedModel."""
    if path.suffix == ".index" or Path(f"{path}.index").exists():
        return str(path).removesuffix(".index")
    if path.is_dir():
        if (path / "variables" / "variables.index").exists():
            return str(path / "variables" / "variables")
        with contextlib.suppress(OSError):
            text = (path / "checkpoint").read_text()
            latest = re.match(r'model_checkpoint_path: "(.*)"', text)
            return str(path / latest[1]) if latest else None
    elif path.is_file():
        with path.open("rb") as file:  # V1: a table, by the number at its end
            file.seek(max(0, path.stat().st_size - 8))
            is_table = file.read() == 0xDB4775248B80FB57.to_bytes(8, "little")
        return str(path) if is_table else None
    return None


def is_content(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is of a checkpoint's tensors."""
    return any(re.search(r"/RMSProp|/\.ATTRIBUTES/", str(key)) for key in content)


def _layout(
    tensors: Mapping[str, Any], names: Iterable[str] | None, given: Mapping[str, Any]
) -> Stored:
    """Returns where the variables of the optimizer are.

    Raises:
      ValueError: if there are none, or those of several optimizers.
    """
    keys = {name: key for key, name in _full_names(tensors).items()}
    found = _by_object(tensors, keys, given) or _by_name(keys, given)
    chosen = found.slots if names is None else tuple(names)
    absent = [name for name in chosen if name not in found.slots]
    if absent or not chosen:
        of = f" of {', '.join(absent)}" if absent else ""
        slot = given.get("name", "RMSProp")
        raise ValueError(
            f"There are no slots {slot!r}{of} in it; it has {', '.join(sorted(keys))}. "
            "If the optimizer had another name, give it as `name`."
        )
    used = {key for slots in found.slots.values() for key in slots.values()}
    used |= {found.step, found.rate, *found.weights.values()}
    beside = [name for name, key in keys.items() if key not in used and key != _GRAPH]
    return found._replace(
        slots={name: found.slots[name] for name in chosen},
        left_out=(*found.left_out, *(f"the variable {name}" for name in beside)),
    )


def _by_object(
    tensors: Mapping[str, Any], keys: Mapping[str, Any], given: Mapping[str, Any]
) -> Stored | None:
    """Returns the layout that an object-based checkpoint's slots have, if it is one."""
    names = {key: name for name, key in keys.items()}
    slots: dict[str, dict[str, dict[str, str]]] = {}
    weights = {}
    for key in tensors:
        match = _SLOT.fullmatch(key)
        if match:
            variable = match[1] + _VALUE
            name = names.get(variable, match[1])
            weights[name] = variable
            of = slots.setdefault(match[2], {}).setdefault(name, {})
            of[_OBJECT_ROLES[match[3]]] = key
    if not slots:
        return None
    chosen = given.get("name")
    if chosen not in slots and len(slots) > 1:
        raise ValueError(
            f"It has several optimizers: give one of {', '.join(slots)} as `name`."
        )
    optimizer = chosen if chosen in slots else next(iter(slots))
    rho, step, rate, momentum = (
        f"{optimizer}/{name}{_VALUE}"
        for name in ("rho", "iter", "learning_rate", "momentum")
    )
    weights |= {n: k for n, k in keys.items() if _is_weight(k, optimizer, weights)}
    found = Stored("tf1", slots[optimizer], weights, keys.get("global_step"))
    if rho not in tensors:
        return found._replace(missing=_MISSING["tf1"])
    numbers = {
        "rho": rho,
        "momentum": momentum,
        "decay": rho.replace("/rho/", "/decay/"),
    }
    return found._replace(
        dialect="tf_keras",
        step=step,
        rate=rate if rate in tensors else None,
        hyperparameters={
            k: float(tensors[v]) for k, v in numbers.items() if v in tensors
        },
        missing=_MISSING["tf_keras"],
    )


def _by_name(keys: Mapping[str, Any], given: Mapping[str, Any]) -> Stored:
    """Returns the layout that the names show: TF1's slots, or variables of Keras."""
    slot, centered = given.get("name", "RMSProp"), given.get("centered")
    end, slots = f"/{slot}", {}
    for name in [key.removesuffix(end) for key in keys if key.endswith(end)]:
        numbered = _numbered(name, slot, None, keys)
        if len(numbered) not in (2, 3) and centered is not None:
            numbered = numbered[: 3 if centered else 2]
        if len(numbered) not in (2, 3):
            raise ValueError(
                f"{name} has {len(numbered)} slots, {', '.join(numbered)}, and an "
                "RMSProp has 2, or 3 where centred, so they are of several optimizers: "
                "give `centered`, and the first slot as `name`."
            )
        roles = ("nu", "mu", "momentum") if len(numbered) == 3 else ("nu", "momentum")
        slots[name] = {r: keys[k] for r, k in zip(roles, numbered, strict=True)}
    if slots:
        weights = {name: keys[name] for name in slots if name in keys}
        hyperparameters = {} if slot == "RMSProp" else {"name": slot}
        return Stored(
            "tf1", slots, weights, keys.get("global_step"),
            hyperparameters=hyperparameters, missing=_MISSING["tf1"],
        )  # fmt: skip
    optimizer = {n: k for n, k in keys.items() if str(k).startswith("optimizer/_")}
    owned = {n: k for n, k in optimizer.items() if "/_trainable_variables/" not in k}
    weights = {n: k for n, k in keys.items() if n not in owned and _VALUE in str(k)}
    found, step, rate = named(owned, weights)
    return Stored("keras", found, weights, step, rate=rate, missing=_MISSING["keras"])


def _is_weight(key: str, optimizer: str, found: Mapping[str, str]) -> bool:
    own = (f"{optimizer}/", "save_counter/", _GRAPH, "keras_api/")
    slot = "/.OPTIMIZER_SLOT/" in key
    return not slot and not key.startswith(own) and key not in found.values()


def _numbered(
    name: str, slot: str, count: int | None, keys: Mapping[str, Any]
) -> list[str]:
    """Returns the slots of a variable: "RMSProp", "RMSProp_1" and so on.

    A slot "RMSProp_2" without "RMSProp_2_1" is the third of another name's.
    """
    numbered = re.fullmatch(r"(.*)_(\d+)", slot)
    start = 0
    if numbered and keys and f"{name}/{slot}_1" not in keys:
        slot, start = numbered[1], int(numbered[2])
    slots: list[str] = []
    while len(slots) < count if count else True:
        number = start + len(slots)
        key = f"{name}/{slot}" + (f"_{number}" if number else "")
        if count is None and key not in keys:
            break
        slots.append(key)
    return slots


def _has_slots(tensors: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    end = f"/{given.get('name', 'RMSProp')}"
    return any(n.endswith(end) or _SLOT.fullmatch(n) for n in tensors)


def _full_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Returns the variables' names by key, or their paths.

    Paths are what is left where two have one name, or TensorFlow is not installed.
    """
    names = {key: key.removesuffix(_VALUE) for key in tensors}
    graph = tensors.get(_GRAPH)
    if graph is None:
        return names
    try:
        protobuf = importlib.import_module(f"{_PROTOBUF}.trackable_object_graph_pb2")
    except ImportError:
        return names
    nodes = protobuf.TrackableObjectGraph.FromString(bytes(np.asarray(graph).item()))
    full = {
        attribute.checkpoint_key: attribute.full_name
        for node in nodes.nodes
        for attribute in node.attributes
        if attribute.checkpoint_key in tensors
    }
    counts = [*full.values()]
    unique = {k: n for k, n in full.items() if n and counts.count(n) == 1}
    return names | unique
