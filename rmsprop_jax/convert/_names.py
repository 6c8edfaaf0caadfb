"""Naming rules: which array of a checkpoint belongs to which leaf of a parameter tree.

A rule is a function of a leaf's path ("Dense_0/kernel"), its shape and the names in the
checkpoint, and returns a `Place`. A dictionary from paths to names is a rule as well.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._record import Record, Slots, names_of

_GATES = {"i": 0, "f": 1, "g": 2, "o": 3}  # torch's order; GRUs are not LSTMs


class Place(NamedTuple):
    """Where a leaf's numbers are in a checkpoint.

    Attributes:
      name: the array's name there.
      axes: the array's axes in the leaf's order, None for the same.
      part: (k, n) if the leaf is the k-th of n equal parts of the array's first axis.
      channels_first: (C, H, W) if the array's second axis is a flattened image, which
        is (H, W, C) in the leaf's first.
    """

    name: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None
    channels_first: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """Says it to a person: "0.weight, transposed"."""
        if self.channels_first is not None:
            return f"{self.name}, flattened image, channels last"
        words = [self.name]
        if self.part is not None:
            words.append(f"part {self.part[0] + 1} of {self.part[1]}")
        if self.axes == (1, 0):
            words.append("transposed")
        elif self.axes is not None:
            words.append(f"axes {self.axes}")
        return ", ".join(words)

    def read(self, array: np.ndarray) -> np.ndarray:
        """Returns the leaf's numbers, of the array under this name."""
        if self.part is not None:
            k, n = self.part
            array = np.split(array, n)[k]
        if self.channels_first is not None:
            image = array.reshape(len(array), *self.channels_first)
            return np.moveaxis(image, (0, 1), (-1, -2)).reshape(-1, len(array))
        return array if self.axes is None else array.transpose(self.axes)

    def write(self, leaf: np.ndarray) -> np.ndarray:
        """Returns the array, or its part, of the leaf's numbers."""
        if self.channels_first is not None:
            channels, *size = self.channels_first
            image = leaf.reshape(*size, channels, leaf.shape[-1])
            return np.moveaxis(image, (-1, -2), (0, 1)).reshape(leaf.shape[-1], -1)
        return leaf if self.axes is None else leaf.transpose(np.argsort(self.axes))


Rule = Callable[[str, tuple[int, ...], Collection[str]], Place]


def same(rename: Mapping[str, str] | None = None) -> Rule:
    """The rule for checkpoints with the tree's layouts: Keras, TF1, Optax and ours.

    Args:
      rename: the checkpoint's names of modules or leaves, by the beginnings of paths,
        such as {"Dense_0": "sequential/dense"}.

    Returns:
      The rule. Keras's names of leaves stand for Flax's (gamma for scale, beta for a
      normalisation's bias, embeddings for embedding).

    Example:
      >>> from rmsprop_jax import convert
      >>> rule = convert.same({"Dense_0": "dense"})
      >>> rule("Dense_0/kernel", (4, 8), ["dense/kernel", "dense/bias"]).name
      'dense/kernel'
    """
    leaves = {
        "scale": ("scale", "gamma"),
        "bias": ("bias", "beta"),
        "embedding": ("embedding", "embeddings"),
    }

    def rule(path: str, shape: tuple[int, ...], names: Collection[str]) -> Place:
        del shape
        head, _, leaf = _renamed(path, rename).rpartition("/")
        starts = f"{head}/" if head else ""
        candidates = [starts + name for name in leaves.get(leaf, (leaf,))]
        return Place(_choose(path, candidates, names))

    return rule


def torch_to_flax(
    rename: Mapping[str, str] | None = None,
    channels_first: Mapping[str, tuple[int, ...]] | None = None,
) -> Rule:
    """The rule for torch modules whose counterparts are Flax's, Linen or NNX.

    Linear, Conv1d to Conv3d, Embedding, the normalisations and LSTM are known, and
    Sequential's numbers in Linen ("layers_0") and in NNX ("layers/0"). Kernels have
    torch's first axes last: (out, in) is (in, out), (out, in, h, w) is (h, w, in, out).
    A leaf of any other name is a parameter of that name. A Flax LSTM has one bias where
    torch has two, of which it is the sum; their gradients are the same, and ours has
    the state of `bias_hh`. (So the sum moves twice as fast in torch.)

    Args:
      rename: torch's names of modules, by the beginnings of paths, where they differ:
        {"Dense_0": "fc1", "OptimizedLSTMCell_0": "lstm.l1"} (an LSTM's second layer).
      channels_first: by the path of a Dense kernel, (C, H, W) if its input is a
        flattened image.

    Returns:
      The rule.

    Example:
      >>> from rmsprop_jax import convert
      >>> rule = convert.torch_to_flax()
      >>> rule("layers/0/kernel", (4, 8), ["0.weight", "0.bias"])
      Place(name='0.weight', axes=(1, 0), part=None, channels_first=None)
    """
    images = channels_first or {}

    def rule(path: str, shape: tuple[int, ...], names: Collection[str]) -> Place:
        *modules, leaf = _renamed(path, rename).split("/")
        last = modules[-1] if modules else ""
        axes = (*range(2, len(shape)), 1, 0) if leaf == "kernel" else None
        gate = re.fullmatch(r"([ih])([ifgo])_?|dense_([ih])", last)
        if gate:
            *modules, cell = ["", *modules[:-1]]
            layer = re.fullmatch(r"(?:(.*)\.)?(l\d+(?:_reverse)?)", cell)
            cell, number = layer.groups() if layer else (cell, "l0")
            modules = [part for part in (*modules, cell) if part]
            kind = "weight" if leaf == "kernel" else "bias"
            leaves = [
                f"{kind}_{gate[1] or gate[3]}h{end}" for end in (f"_{number}", "")
            ]
        else:
            leaves = {
                "kernel": ["weight"],
                "scale": ["scale", "weight"],
                "embedding": ["embedding", "weight"],
            }.get(leaf, [leaf])
        candidates = [
            ".".join([*head, name])
            for head in _module_names(modules)
            for name in leaves
        ]
        return Place(
            _choose(path, candidates, names),
            axes,
            (_GATES[gate[2]], len(_GATES)) if gate and gate[2] else None,
            images.get(path),
        )

    return rule


def as_rule(rule: Rule | Mapping[str, str] | None, default: Rule) -> Rule:
    """Returns the rule that a user means."""
    if rule is None:
        return default
    if callable(rule):
        return rule
    by_path = dict(rule)

    def looked_up(path: str, shape: tuple[int, ...], names: Collection[str]) -> Place:
        if path not in by_path:
            raise KeyError(f"{path}: the rule has no name for it")
        place = default(path, shape, _Every())  # for its layout
        return place._replace(name=_choose(path, [by_path[path]], names))

    return looked_up


class _Every(set[str]):
    """A set of all names."""

    def __contains__(self, name: object) -> bool:
        return True


def _renamed(path: str, rename: Mapping[str, str] | None) -> str:
    """Replaces the longest beginning of a path that the user renames."""
    for start in sorted(rename or {}, key=len, reverse=True):
        if path == start or path.startswith(f"{start}/"):
            return (rename or {})[start] + path[len(start) :]
    return path


def _module_names(modules: list[str]) -> Iterable[list[str]]:
    """Yields torch's names of a module, of its parts in a Flax path."""
    choices: list[list[list[str]]] = []
    for i, part in enumerate(modules):
        in_sequential = re.fullmatch(r"layers_(\d+)", part)
        numbered = (
            part == "layers" and modules[i + 1 : i + 2] and modules[i + 1].isdigit()
        )
        if in_sequential:
            choices.append([[in_sequential[1]], ["layers", in_sequential[1]], [part]])
        elif numbered or part == "cell":  # of a recurrent layer
            choices.append([[], [part]])
        else:
            choices.append([[part]])
    for choice in itertools.product(*choices):
        yield [part for parts in choice for part in parts]


def _choose(path: str, candidates: list[str], names: Collection[str]) -> str:
    for name in candidates:
        if name in names:
            return name
    raise KeyError(f"{path}: the file has no {' or '.join(dict.fromkeys(candidates))}")


def to_tree(
    record: Record, params: Any, rule: Rule
) -> tuple[Record, list[tuple[str, Place]]]:
    """Returns a record in the names and layouts of a parameter tree, and the places.

    Raises:
      ValueError: that lists every leaf without an entry, every entry without a leaf,
        and every entry of another shape.
    """
    problems: list[str] = []
    places: list[tuple[str, Place]] = []
    slots: dict[str, Slots] = {}
    weights: dict[str, np.ndarray] = {}
    readers: dict[Any, str] = {}
    for path, leaf in names_of(params).items():
        shape = tuple(leaf.shape)
        try:
            place = rule(path, shape, record.slots)
            problems += _shared(place, path, readers)
            found = _on_slots(place.read, record.slots[place.name])
        except KeyError as error:
            problems.append(f"missing {error.args[0]}")
            continue
        except ValueError as error:
            problems.append(f"mis-shaped {path}: {error}")
            continue
        if found.nu.shape != shape:
            source = record.slots[place.name].nu.shape
            problems.append(
                f"mis-shaped {path} {shape}: {place.name} {source} gives "
                f"{found.nu.shape}"
            )
        places.append((path, place))
        slots[path] = found
        weight = _with_twin(place.name, record.weights or {})
        if weight is not None and found.nu.shape == shape:
            weights[path] = place.read(weight)
    used = {place.name for _, place in places}
    problems += [
        f"extra {name} {found.nu.shape}"
        for name, found in record.slots.items()
        if name not in used and _twin(name) not in used
    ]
    if problems:
        raise ValueError(
            "The checkpoint does not fit the parameters:\n  "
            + "\n  ".join(problems)
            + "\nThe rule says which name belongs to which leaf: give it `rename`, or "
            "the other parameter tree."
        )
    paths = {place.name: [] for _, place in places}
    for path, place in places:
        paths[place.name].append(path)
    groups = tuple(
        group._replace(names=tuple(p for n in group.names for p in paths.get(n, ())))
        for group in record.groups
    )
    return record._replace(groups=groups, slots=slots, weights=weights), places


def from_tree(
    record: Record,
    params: Any,
    rule: Rule,
    names: Collection[str],
    before: Mapping[str, np.ndarray] | None = None,
) -> Record:
    """Returns a tree's record in the names and layouts of a checkpoint.

    Args:
      record: one with the names of `params`.
      params: the parameter tree.
      rule: the rule that reads such a checkpoint.
      names: all names in the checkpoint, in the optimizer's order.
      before: the checkpoint's parameters so far. Of an LSTM's two biases one stays as
        it was (zero, if it is not known), and the other takes all that moved.

    Raises:
      ValueError: that lists every leaf without a name and every name without a leaf.
    """
    problems: list[str] = []
    parts: dict[str, dict[int, tuple[str, Any]]] = {}
    writers: dict[Any, str] = {}
    for path, leaf in names_of(params).items():
        try:
            place = rule(path, tuple(leaf.shape), names)
        except KeyError as error:
            problems.append(f"missing {error.args[0]}")
            continue
        problems += _shared(place, path, writers)
        arrays = (*record.slots[path], (record.weights or {}).get(path))
        k = place.part[0] if place.part else 0
        written = [None if a is None else place.write(a) for a in arrays]
        parts.setdefault(place.name, {})[k] = (path, written)
    slots, weights, path_of = {}, {}, {}
    for name in names:
        found = parts.get(name) or parts.get(_twin(name) or "")
        if not found:
            problems.append(f"extra {name}: no leaf goes there")
            continue
        path_of[name] = found[min(found)][0]
        pieces: list[Any] = list(
            zip(*(found[k][1] for k in sorted(found)), strict=True)
        )
        joined = [
            None
            if piece[0] is None
            else np.concatenate(piece)
            if len(piece) > 1
            else piece[0]
            for piece in pieces
        ]
        *accumulators, weight = joined
        slots[name] = _narrowed(Slots(*accumulators))
        if weight is not None:
            weights[name] = _without_twin(name, weight, names, before or {})
    if problems:
        raise ValueError(
            "The parameters do not fit the checkpoint:\n  " + "\n  ".join(problems)
        )
    groups = tuple(
        group._replace(
            names=tuple(name for name in names if path_of[name] in set(group.names))
        )
        for group in record.groups
    )
    return record._replace(
        groups=groups, slots=slots, weights=weights or None, is_ours=False
    )


def _shared(place: Place, path: str, seen: dict[Any, str]) -> list[str]:
    """Returns the problem of a second leaf with a place, if it is one."""
    other = seen.setdefault((place.name, place.part), path)
    return [] if other == path else [f"ambiguous {place}: of {other} and of {path}"]


def _narrowed(slots: Slots) -> Slots:
    """Returns centred slots as frameworks keep them: E[g²] is no wider than E[g]."""
    if slots.mu is None:
        return slots
    return slots._replace(nu=np.asarray(slots.nu).astype(slots.mu.real.dtype))


def _on_slots(function: Callable[[np.ndarray], np.ndarray], slots: Slots) -> Slots:
    arrays: list[Any] = [None if a is None else function(a) for a in slots]
    return Slots(*arrays)


def _twin(name: str) -> str | None:
    """Returns the LSTM bias that gets the gradients of this one, or None."""
    found = re.fullmatch(r"(.*)bias_ih(.*)", name)
    return f"{found[1]}bias_hh{found[2]}" if found else None


def _with_twin(name: str, weights: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Returns a parameter; of an LSTM's biases, their sum."""
    if name not in weights:
        return None
    twins = [weights[other] for other in weights if _twin(other) == name]
    return sum(twins, start=weights[name])


def _without_twin(
    name: str,
    weight: np.ndarray,
    names: Collection[str],
    before: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Returns what an LSTM's bias is, of the sum; any other parameter as it is."""
    zero = np.zeros_like(weight)
    if _twin(name) in names:
        return np.asarray(before.get(name, zero), weight.dtype)
    twins = [other for other in names if _twin(other) == name]
    return weight - sum((np.asarray(before.get(t, zero)) for t in twins), start=zero)
