"""Optimizer state of Keras, in .keras, .weights.h5 and the older .h5 files.

In the older files the optimizer's variables have names. The others number them: the
iteration, the learning rate where it is no schedule, then all of one kind, each in the
order of the model's trainable variables: averages of the weights, gathered gradients,
velocities, momentums and average gradients, of which most runs have not all.
"""

import inspect
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import dialects
from . import _files, _hdf5
from ._keras_layers import described, located
from ._record import Record, present
from ._stored import Stored, named, to_arrays, to_record

_ELSEWHERE = {  # arguments of Keras's optimizers that are no business of RMSProp's
    "use_ema": "the averages of the weights (use_ema): keep them with optax.ema",
    "gradient_accumulation_steps": "the gathering of gradients, of which none are "
    "left: optax.MultiSteps(restored.optimizer, {}) goes on with it",
    "loss_scale_factor": "the factor of the loss (loss_scale_factor, {}): it is for "
    "the step to apply",
}
_OWN = {"name", "learning_rate", "ema_momentum", "ema_overwrite_frequency", *_ELSEWHERE}
_KEPT = ("nu", "momentum", "mu")  # in Keras's order
_UNSAID = ("learning_rate", "rho", "momentum", "epsilon", "weight_decay")


def read(
    content: Mapping[str, Any],
    names: Iterable[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Record:
    """Returns the record of a file of Keras.

    Args:
      content: what `load` returns: "variables" (the optimizer's, in order), and where
        the file has them "config" (its configuration) and "weights" (by name).
      names: the paths of the trainable variables, in the model's order
        ([v.path for v in model.trainable_variables]).
      given: arguments of the run that a file of weights does not hold: of two
        accumulators, whether the second is a momentum or a mean.
    """
    content = _with_names(content, names)
    return to_record(_arrays(content), _layout(content, given or {}))


def to_dict(record: Record, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns a record as what `load` returns; "variables" are the optimizer's.

    Keras takes them as ``optimizer.load_own_variables``
    ``({str(i): value for i, value in enumerate(variables)})``.

    Args:
      record: one in Keras's names and layouts.
      like: the content of a file to take all else from.
    """
    (group,) = record.groups
    given = group.hyperparameters
    if like is not None:
        like = _with_names(like, group.names)
        arrays = to_arrays(record, _arrays(like), _layout(like, given))
        count = len(like["variables"])
        return {
            **like,
            "variables": [arrays[i] for i in range(count)],
            "weights": {name: arrays[name] for name in like.get("weights", {})},
        }
    slots = [record.slots[name] for name in group.names]
    rate = present(given.get("learning_rate", 1e-3), record, "learning_rate")
    variables = [np.asarray(record.step or 0, np.int64), np.asarray(rate, np.float32)]
    kept = ["nu", *(["momentum"] if given.get("momentum", 0) else [])]
    for role in kept + (["mu"] if given.get("centered", False) else []):
        values = [getattr(slot, role) for slot in slots]
        variables += [
            np.zeros_like(slot.nu) if value is None else value
            for slot, value in zip(slots, values, strict=True)
        ]
    weights = {"weights": dict(record.weights)} if record.weights else {}
    return {"variables": variables, **weights}


def load(path: Any) -> dict[str, Any]:
    """Returns the optimizer's variables, its configuration and the model's weights."""
    path, model = Path(path), {}
    file: Any = path
    if zipfile.is_zipfile(path):
        _files.check_zip(path)
        with zipfile.ZipFile(path) as archive:
            model = json.loads(_files.unzipped(archive, "config.json"))
            file = io.BytesIO(_files.unzipped(archive, "model.weights.h5"))
    compiled = model.get("compile_config") or {}
    with _hdf5.opened(file, path.name) as weights:
        if "optimizer_weights" in weights or "model_weights" in weights:
            content = _older(weights)
        else:
            places, order, classes = described(model, weights)
            content = {
                "at": _numbered(weights), "order": order, "layers": classes,
                "config": _rmsprop_config(compiled.get("optimizer") or {}),
                "scale": "optimizer/inner_optimizer" in weights, "places": places,
            }  # fmt: skip
        content["variables"] = [weights[at[0]][()] for at in content["at"]]
        content["weights"] = {n: weights[p][()] for n, p in content["places"].items()}
    return {**content, "file": path.read_bytes()}


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
        for value, places in zip(content["variables"], content["at"], strict=True):
            for place in places:
                file[place][...] = value
        for name, place in content["places"].items():
            file[place][...] = content["weights"][name]
    if zipped:
        new = {"model.weights.h5": weights.getvalue()}
        _files.rezipped(path, content["file"], new)
        return
    with _files.replacing(path) as temporary:
        temporary.write_bytes(weights.getvalue())


def _arrays(content: Mapping[str, Any]) -> dict[Any, Any]:
    """Returns the optimizer's variables by number, and the model's by name."""
    return {**dict(enumerate(content["variables"])), **content.get("weights", {})}


def _with_names(
    content: Mapping[str, Any], names: Iterable[str] | None
) -> Mapping[str, Any]:
    """Returns the content with the trained variables under the user's names."""
    if names is None:
        return content
    names = list(names)
    if "file" not in content or "labels" in content:
        return {**content, "order": names}
    file: Any = io.BytesIO(content["file"])
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            file = io.BytesIO(_files.unzipped(archive, "model.weights.h5"))
    with _hdf5.opened(file, "The file") as weights:
        places = located(names, content["places"], weights)
        taken = set(places.values())
        places |= {n: p for n, p in content["places"].items() if p not in taken}
        arrays = {name: weights[place][()] for name, place in places.items()}
    return {**content, "order": names, "places": places, "weights": arrays}


def _layout(content: Mapping[str, Any], given: Mapping[str, Any]) -> Stored:
    """Returns where the optimizer's variables are, by their names or their order.

    Raises:
      ValueError: if that does not show, or the run cannot go on.
    """
    config, variables = dict(content.get("config") or {}), content["variables"]
    weights = {name: name for name in content.get("weights", {})}
    legacy = "decay" in config
    gathered = config.get("gradient_accumulation_steps") or 1
    if variables and int(np.asarray(variables[0])) % gathered:
        raise ValueError(
            "It was saved with gradients gathered (gradient_accumulation_steps), which "
            f"have no place here: save it after a multiple of {gathered} batches."
        )
    if labels := content.get("labels"):
        slots, step, rate = named({n: i for i, n in enumerate(labels)}, weights)
        slots = {
            name: {role: key for role, key in keys.items() if role in _KEPT}
            for name, keys in slots.items()
        }
        assumed: tuple[str, ...] = ()
    else:
        slots, rate, assumed = _by_order(content, config, given)
        step = 0
    accepted = inspect.signature(dialects.DIALECTS["tf_keras" if legacy else "keras"])
    hyperparameters = {
        name: value
        for name, value in config.items()
        if name in accepted.parameters and name not in _OWN
    }
    number = config.get("learning_rate")
    if rate is None and isinstance(number, int | float):
        hyperparameters["learning_rate"] = number
    left_out = [w.format(config[n]) for n, w in _ELSEWHERE.items() if config.get(n)]
    if content.get("scale"):
        left_out.append("the scale of the loss (mixed_float16): Flax has a dynamic one")
    return Stored(
        "tf_keras" if legacy else "keras", slots, weights, step, gathered, rate,
        hyperparameters, ("learning_rate",) if config else _UNSAID,
        content.get("layers", {}), tuple(left_out), assumed,
    )  # fmt: skip


def _by_order(
    content: Mapping[str, Any], config: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, dict[str, int]], int | None, tuple[str, ...]]:
    """Returns whose the numbered variables are, the rate's number, and assumptions."""
    shapes = [np.shape(value) for value in content["variables"]]
    order, known = content.get("order"), config or given
    if order is None and config and "at" not in content:
        order = list(content.get("weights", {})) or None
    roles = [
        role
        for role, has in (
            ("average", config.get("use_ema")),
            ("accumulator", config.get("gradient_accumulation_steps")),
            ("nu", True),
            ("momentum", known.get("momentum")),
            ("mu", known.get("centered")),
        )
        if has
    ]
    has_rate = shapes[1:2] == [()]
    if config:
        number = isinstance(config.get("learning_rate", 0.0), int | float)
        has_rate = number and "is_legacy_optimizer" not in config
    elif (
        order and (len(shapes) - 2) % len(order) and not (len(shapes) - 1) % len(order)
    ):
        has_rate = False  # the first weight is a scalar
    start = 2 if has_rate else 1
    rest = shapes[start:]
    if not rest:
        raise ValueError(
            f"It has {len(shapes)} optimizer variables; RMSprop's are the iteration,"
            " the learning rate and a velocity for each weight. Was it saved without "
            "the optimizer, or before the first step? Of tf_keras's legacy optimizers "
            "only .h5 files and checkpoints hold the state."
        )
    if order is None:
        raise ValueError(
            "The file numbers the trainable variables and does not name them: pass "
            "`names`, [v.path for v in model.trainable_variables]."
        )
    if not order or len(set(order)) != len(order) or len(rest) % len(order):
        raise ValueError(
            f"`names` must be {len(rest) // len(roles)} different names, one for each "
            f"trainable variable, got {len(order)}: {', '.join(order)}."
        )
    kinds, assumed = len(rest) // len(order), ()
    unsaid = given.get("centered") is None and given.get("momentum", 1)
    if not config and kinds == 3 and unsaid:
        roles, assumed = [*_KEPT], ("centered, by three accumulators",)
    if kinds != len(roles):
        raise ValueError(
            f"It has {kinds} accumulators for each weight, and RMSprop with `momentum` "
            f"{known.get('momentum')} and `centered` {known.get('centered')} keeps "
            f"{len(roles)}; a file of weights does not tell a momentum from a mean, or "
            "from averages of the weights (use_ema) or gathered gradients: give "
            "`momentum` and `centered` as the run had them, or a .keras file."
        )
    slots: dict[str, dict[str, int]] = {name: {} for name in order}
    for i, role in enumerate(roles):
        for j, name in enumerate(order):
            number = start + i * len(order) + j
            if role in _KEPT:
                slots[name][role] = number
            known_shape = np.shape(
                content.get("weights", {}).get(name, np.empty(rest[j]))
            )
            if shapes[number] != known_shape:
                raise ValueError(
                    f"The file numbers the trainable variables, and {name} of shape "
                    f"{known_shape} would have a state of shape {shapes[number]}: pass "
                    "`names`, [v.path for v in model.trainable_variables]."
                )
    if not config and "mu" in roles:
        _check_mean(content["variables"], slots)
    return slots, 1 if has_rate else None, assumed


def _check_mean(variables: list[Any], slots: Mapping[str, Mapping[str, int]]) -> None:
    """Checks that one accumulator can be the mean of what the other squares.

    Raises:
      ValueError: if it is not: then they are others.
    """
    for keys in slots.values():
        square, mean = (np.asarray(variables[keys[role]]) for role in ("nu", "mu"))
        if np.any(square < 0.9 * np.square(mean)):
            raise ValueError(
                "It has 3 accumulators for each weight, which are not those of a "
                "centred run with momentum. If it keeps averages of the weights "
                "(use_ema) or gathers gradients (gradient_accumulation_steps), give "
                "the .keras file, which says so."
            )


def _numbered(file: Any) -> list[tuple[str, ...]]:
    """Returns the places of RMSprop's variables, in order.

    An optimizer that scales the loss has them inside, and again behind its own.
    """
    outer, inner = (
        len(file.get(f"optimizer/{at}vars", ())) for at in ("", "inner_optimizer/")
    )
    if not inner:
        return [(f"optimizer/vars/{i}",) for i in range(outer)]
    twice = range(outer - inner, outer)
    return [
        (f"optimizer/inner_optimizer/vars/{i}", f"optimizer/vars/{j}")
        for i, j in enumerate(twice)
    ]


def _older(file: Any) -> dict[str, Any]:
    """Returns the content of an .h5 file, in which all variables have names."""

    def listed(group: str) -> list[str]:
        found = file[group].attrs.get("weight_names", ()) if group in file else ()
        return [n.decode() if isinstance(n, bytes) else str(n) for n in found]

    labels = listed("optimizer_weights")
    layers = file.get("model_weights", {})
    places = {
        name.removesuffix(":0"): f"model_weights/{layer}/{name}"
        for layer in layers
        for name in listed(f"model_weights/{layer}")
    }
    training = json.loads(file.attrs.get("training_config", "{}"))
    return {
        "at": [(f"optimizer_weights/{label}",) for label in labels],
        "labels": [label.removesuffix(":0") for label in labels],
        "config": _rmsprop_config(training.get("optimizer_config") or {}),
        "places": places,
    }


def _rmsprop_config(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(optimizer.get("config") or {})
    if "inner_optimizer" in config:
        return _rmsprop_config(config["inner_optimizer"])
    if optimizer and optimizer.get("class_name") not in ("RMSprop", "Custom>RMSprop"):
        raise ValueError(
            f"Its optimizer is {optimizer.get('class_name')}, not RMSprop."
        )
    if config.get("use_ema") and config.get("ema_overwrite_frequency"):
        raise ValueError(
            "Its optimizer overwrites the weights by their averages "
            "(ema_overwrite_frequency), which has no place here: use optax.ema."
        )
    return config
