"""Which array of a Keras file is which variable of the model.

The files number a layer's variables and name none: "layers/dense/vars/0". Newer ones
keep each layer's name as an attribute, and a .keras file describes the layers of
Sequential and Functional models. A variable's name is its path in the model, without
the model's own name: "encoder/lstm/lstm_cell/kernel".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_CELL = ("kernel", "recurrent_kernel", "bias")
_NORM = ("gamma", "beta")
_SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias")
_LEAVES = {  # the variables of a layer, in order, where not kernel and bias
    "BatchNormalization": (*_NORM, "moving_mean", "moving_variance"),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), _NORM),
    **dict.fromkeys(("LSTMCell", "GRUCell", "SimpleRNNCell"), _CELL),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _SEPARABLE),
    "Embedding": ("embeddings",),
    "PReLU": ("alpha",),
}
_PLAIN = re.compile(r"Dense|EinsumDense|(Depthwise)?Conv\dD(Transpose)?")
_OPTIONS = {"gamma": "scale", "beta": "center", "bias": "use_bias"}
_PARTS = {  # the layers inside a layer, in the order of its variables
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN"), ("cell",)),
    "Bidirectional": ("forward_layer", "backward_layer"),
    "MultiHeadAttention": ("query_dense", "key_dense", "value_dense", "output_dense"),
    "TimeDistributed": ("layer",),
}


def described(
    model: Mapping[str, Any], file: Any
) -> tuple[dict[str, str], list[str] | None, dict[str, str]]:
    """Returns what a .keras file says of the model's variables.

    Args:
      model: its config.json.
      file: its HDF5 content.

    Returns:
      The data sets by name; the trainable variables in the model's order, or None where
      the description does not show it; the classes of the layers by name.
    """
    places: dict[str, str] = {}
    order: list[str] = []
    classes: dict[str, str] = {}
    whole = bool((model.get("config") or {}).get("layers"))

    def visit(layer: Mapping[str, Any], group: Any, name: str, trained: bool) -> None:
        nonlocal whole
        config, kind = layer.get("config") or {}, layer["class_name"]
        trained = trained and config.get("trainable", True)
        if config.get("layers"):
            inside(config, group, name, trained)
            return
        stored = group.get("vars", {})
        leaves = _leaves(kind, config)
        whole &= len(stored) <= len(leaves)
        for i, leaf in zip(range(len(stored)), leaves, strict=False):
            places[f"{name}/{leaf}"] = f"{group.name}/vars/{i}".lstrip("/")
            classes[f"{name}/{leaf}"] = kind
            if trained and not leaf.startswith("moving_"):
                order.append(f"{name}/{leaf}")
        parts = _PARTS.get(kind, ())
        for part in [part for part in parts if part in group]:
            inner = config.get("layer") or config.get("cell") or {
                "class_name": f"{kind}Cell" if part == "cell" else "EinsumDense",
                "config": config,
            }  # fmt: skip
            visit(inner, group[part], f"{name}/{_named(group[part], part)}", trained)
        known = {"vars", "seed_generator", *parts}
        whole &= not any(_has_arrays(group[key]) for key in group if key not in known)

    def inside(config: Mapping[str, Any], group: Any, name: str, trained: bool) -> None:
        nonlocal whole
        children = group.get("layers", {})
        by_name = {_named(children[key], ""): key for key in children}
        numbers: dict[str, int] = {}
        for layer in config["layers"]:
            own, key = layer["config"]["name"], _snake(layer["class_name"])
            number = numbers[key] = numbers.get(key, -1) + 1
            numbered = f"{key}_{number}" if number else key
            key = by_name.get(own, numbered if "" in by_name else "")
            if key in children:
                visit(layer, children[key], f"{name}/{own}".lstrip("/"), trained)

    if whole:
        inside(model["config"], file, "", True)
    return places, order if whole else None, classes


def located(
    names: Iterable[str], places: Mapping[str, str], file: Any
) -> dict[str, str]:
    """Returns the data sets of variables whose paths the user gives, in order.

    A layer is found by the names that the file keeps, or by what `described` found.
    """
    chains: dict[str, list[str]] = {}

    def walk(group: Any, chain: str) -> None:
        for key in group:
            child = group[key]
            if key in ("vars", "optimizer", "metrics") or not hasattr(child, "keys"):
                continue
            own = _named(child, "")
            below = f"{chain}/{own}".lstrip("/") if own else chain
            if own and len(child.get("vars", {})):
                chains.setdefault(below, []).append(f"{child.name}/vars".lstrip("/"))
            walk(child, below)

    walk(file, "")
    found: dict[str, str] = {}
    seen: dict[str, int] = {}
    for name in names:
        parent = name.rpartition("/")[0]
        i = seen[parent] = seen.get(parent, -1) + 1
        ends = [c for c in chains if parent == c or parent.endswith(f"/{c}")]
        groups = chains[max(ends, key=len)] if ends else []
        if not ends and "/" not in parent:
            groups = ["vars"]  # the model's own
        known = [p for p in places if name == p or name.endswith(f"/{p}")]
        if len(groups) == 1 and i < len(file.get(groups[0], ())):
            found[name] = f"{groups[0]}/{i}"
        elif known:
            found[name] = places[max(known, key=len)]
    return found


def _leaves(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    leaves = _LEAVES.get(kind, ("kernel", "bias") if _PLAIN.fullmatch(kind) else ())
    return tuple(leaf for leaf in leaves if config.get(_OPTIONS.get(leaf, ""), True))


def _named(group: Any, default: str) -> str:
    """Returns the name of a layer that its group keeps."""
    attributes = getattr(group.get("vars"), "attrs", {})
    name = attributes.get("name", default)
    return name.decode() if isinstance(name, bytes) else str(name)


def _has_arrays(node: Any) -> bool:
    return not hasattr(node, "keys") or any(_has_arrays(node[key]) for key in node)


def _snake(name: str) -> str:
    """Returns what Keras calls the group of a class: "batch_normalization"."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
