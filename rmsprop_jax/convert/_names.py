"""The ready functions from a source's arrays to a tree: by names and usual layouts.

A rule knows how Flax calls what torch, Keras and Optax call otherwise, and in which
order the axes lie. What names and shapes cannot decide it asks.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _checks
from ._origins import Problem
from ._record import Record, names_of

_GATES = {"i": 0, "f": 1, "g": 2, "o": 3}  # torch's order; GRUs are not LSTMs
_TRANSPOSED = re.compile(r"transpose|deconv|(^|[/._])(up|tconv)", re.IGNORECASE)
_IMAGES = "a dictionary of (C, H, W) or None"
_CONVOLUTION = re.compile(r"(^|[/._])conv(_?\d+)?([/._]|$)", re.IGNORECASE)


class _Term(NamedTuple):
    """What a leaf is of arrays of the source."""

    names: tuple[str, ...]  # of several, their sum
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None  # the k-th of n, of the first axis
    image: tuple[int, ...] | None = None  # the second axis is a flattened (C, H, W)
    is_flipped: bool = False  # a transposed convolution's kernel, as Flax has it

    def read(self, arrays: Mapping[str, Any]) -> np.ndarray:
        array = sum(np.asarray(arrays[name]) for name in self.names[1:])
        array = (
            arrays[self.names[0]] + array if self.names[1:] else arrays[self.names[0]]
        )
        if self.part is not None:
            array = np.split(array, self.part[1])[self.part[0]]
        if self.image is not None:
            array = array.reshape(len(array), *self.image)
            return np.moveaxis(array, (0, 1), (-1, -2)).reshape(-1, len(array))
        if self.axes is not None:
            array = array.transpose(self.axes)
        if self.is_flipped:
            spatial = tuple(range(array.ndim - 2))
            array = np.flip(array, spatial).swapaxes(-1, -2)
        return array

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the arrays, of that of the leaf."""
        if self.is_flipped:
            leaf = (*leaf[:-2], leaf[-1], leaf[-2])
        if self.axes is not None:
            leaf = tuple(leaf[i] for i in np.argsort(self.axes))
        return (leaf[0] * self.part[1], *leaf[1:]) if self.part else leaf


class Rule:
    """A function from a source's arrays to a tree, by names; of `same` or the like.

    Attributes:
      assumed: what was taken for granted when it was called last, in words.
    """

    def __init__(
        self,
        is_torch: bool,
        rename: Mapping[str, str] | None = None,
        channels_first: Mapping[str, tuple[int, ...] | None] | None = None,
        transposed: Collection[str] | None = None,
        by_path: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps the arguments of the functions below."""
        for name, given, kind, wanted in (
            ("rename", rename, Mapping, "a dictionary from paths to names"),
            ("channels_first", channels_first, Mapping, _IMAGES),
            ("transposed", transposed, Collection, "the paths of modules"),
        ):
            _checks.instance(name, given, kind | None, wanted)
            paths = [0] if isinstance(given, str) else given or ()
            if not all(isinstance(path, str) for path in paths):
                raise TypeError(f"`{name}` must be {wanted}, got {given!r}.")
        for image in (channels_first or {}).values():
            if image is not None and np.shape(image) != (3,):
                raise TypeError(f"`channels_first` must be {_IMAGES}, got {image!r}.")
        self._is_torch, self._rename, self._by_path = is_torch, rename or {}, by_path
        self._images, self._transposed = channels_first, transposed
        self.assumed: list[str] = []

    def by_path(self, names: Mapping[str, str]) -> "Rule":
        """Returns the rule with its layouts, and the user's names by path."""
        arguments = (self._is_torch, None, self._images, self._transposed)
        return Rule(*arguments, dict(names))

    def knowing(self, transposed: Collection[str] | None) -> "Rule":
        """Returns the rule; what a model shows to be transposed counts if unsaid."""
        known = transposed if self._transposed is None else self._transposed
        rename, by_path = self._rename, self._by_path
        return Rule(self._is_torch, rename, self._images, known, by_path)

    def tree(self, arrays: Mapping[str, Any], params: Any, record: Record) -> Any:
        """Returns the leaves by path; a `Problem` where there is one.

        Raises:
          ValueError: if an argument matches nothing.
        """
        leaves = names_of(params)
        terms = self._terms(leaves, arrays)
        self._check_arguments(leaves)
        self.assumed = []
        if not any(isinstance(term, Problem) for term in terms.values()):
            questions = [
                *self._flattened(terms, arrays, leaves),
                *self._convolutions(terms, arrays, leaves, record),
            ]
            if questions:
                raise ValueError("\n".join(questions))
        return {
            path: term
            if isinstance(term, Problem)
            else self._leaf(path, term, arrays, leaf)
            for (path, leaf), term in zip(leaves.items(), terms.values(), strict=True)
        }

    def shapes(self, params: Any, names: Collection[str]) -> dict[str, Any]:
        """Returns the shapes of the source's arrays, as those of the leaves show."""
        leaves, found = names_of(params), {}
        for path, term in self._terms(leaves, names).items():
            if isinstance(term, Problem):
                continue
            dtype = leaves[path].dtype
            shape = term.shape(tuple(leaves[path].shape))
            found |= {n: jax.ShapeDtypeStruct(shape, dtype) for n in term.names}
        return found

    def _leaf(
        self, path: str, term: _Term, arrays: Mapping[str, Any], leaf: Any
    ) -> Any:
        shape, source = tuple(leaf.shape), np.shape(arrays[term.names[0]])
        other = term._replace(is_flipped=not term.is_flipped)
        if len(shape) == len(source) > 2 and term.shape(shape) != source:
            term = other if other.shape(shape) == source else term  # shapes tell
        try:
            found = term.read(arrays)
        except ValueError as error:
            return Problem(f"mis-shaped {path} {shape}: {error}")
        if found.shape == shape:
            return found
        given = f"{term.names[0]} {source} gives {found.shape}"
        return Problem(f"mis-shaped {path} {shape}: {given}")

    def _terms(
        self, leaves: Mapping[str, Any], names: Collection[str]
    ) -> dict[str, _Term | Problem]:
        terms: dict[str, _Term | Problem] = {}
        for path, leaf in leaves.items():
            shape = tuple(leaf.shape)
            renamed = _renamed(path, self._rename)
            candidates, axes, part = (
                _torch_names(renamed, shape)
                if self._is_torch
                else (_same_names(renamed), None, None)
            )
            if self._by_path is not None:
                candidates = [self._by_path[path]] if path in self._by_path else []
            name = next((name for name in candidates if name in names), None)
            if name is not None:
                image = (self._images or {}).get(path)
                is_flipped = self._is_transposed(path)
                terms[path] = _Term((name,), axes, part, image, is_flipped)
            elif candidates:
                lacking = " or ".join(dict.fromkeys(candidates))
                terms[path] = Problem(f"missing {path}: the file has no {lacking}")
            else:
                terms[path] = Problem(f"missing {path}: the rule has no name for it")
        taken = {n for t in terms.values() if isinstance(t, _Term) for n in t.names}
        return {
            path: self._with_twin(path, term, names, taken)
            if isinstance(term, _Term)
            else term
            for path, term in terms.items()
        }

    def _with_twin(
        self, path: str, term: _Term, names: Collection[str], taken: set[str]
    ) -> _Term:
        """Adds an LSTM's other bias, if no leaf has it; a GRU's acts otherwise."""
        (name,) = term.names
        twin = name.replace("bias_hh", "bias_ih")
        if twin == name or twin in taken or twin not in names:
            return term
        modules = path.split("/")[:-1]
        is_lstm = bool(modules) and re.fullmatch(r"h[ifgo]|dense_h", modules[-1])
        return term._replace(names=(name, twin)) if is_lstm else term

    def _is_transposed(self, path: str) -> bool:
        given = self._transposed or ()
        return any(path == start or path == f"{start}/kernel" for start in given)

    def _check_arguments(self, leaves: Mapping[str, Any]) -> None:
        kernels = {path.removesuffix("/kernel") for path in leaves} | leaves.keys()
        given = {
            "rename": [
                start
                for start in self._rename
                if not any(p == start or p.startswith(f"{start}/") for p in leaves)
            ],
            "channels_first": [p for p in self._images or {} if p not in leaves],
            "transposed": [p for p in self._transposed or () if p not in kernels],
            "rule": [path for path in self._by_path or {} if path not in leaves],
        }
        for name, unmatched in given.items():
            if unmatched:
                raise ValueError(
                    f"`{name}` has {', '.join(map(repr, unmatched))}, which is no part "
                    f"of the tree; it has {', '.join(leaves)}."
                )

    def _flattened(
        self, terms: Mapping[str, Any], arrays: Mapping[str, Any], leaves: Any
    ) -> list[str]:
        """Asks which Dense kernels stand behind a flattened image."""
        if not self._is_torch:
            return []
        kernels = {
            term.names[0]: path
            for path, term in terms.items()
            if isinstance(term, _Term) and path.endswith("kernel")
        }
        order, channels, behind, asked, known = list(arrays), set(), set(), [], []
        every = {
            size
            for name, x in arrays.items()
            if len(x.shape) > 2
            for size in x.shape[:2]
        }
        for name in order:
            shape = arrays[name].shape
            if len(shape) > 2:
                channels, behind = set(shape[:2]), set()
            path = kernels.get(name)
            if len(shape) == 2 and path and leaves[path].shape == shape[::-1]:
                wide = shape[1]
                image = (self._images or {}).get(path)
                if image is not None and (
                    int(np.prod(image)) != wide or (every and image[0] not in every)
                ):
                    return [
                        f"`channels_first` calls the input of {path} an image of "
                        f"(C, H, W) = {tuple(image)}: it has {wide} elements, and the "
                        f"convolutions have {sorted(every)} channels."
                    ]
                if any(wide % c == 0 and wide > c > 1 for c in channels or every):
                    (known if wide in behind else asked).append((path, wide))
            if len(shape) == 2:
                behind |= {shape[0]} | (set() if path else {shape[1]})
            elif (
                len(shape) == 1 and name.endswith("weight") and shape[0] not in channels
            ):
                behind.add(shape[0])
        if self._images is not None:
            return []
        if known:
            self.assumed.append(
                f"{', '.join(path for path, _ in known)}: behind another layer, not a "
                "flattened image (channels_first={} says that there is none)"
            )
        return [
            f"{path} has {wide} inputs, and there are convolutions of "
            f"{sorted(channels or every)} channels: it reads either features, so that "
            f"the {wide} stay in order, or an image that torch flattens as (C, H, W) "
            "and Flax as (H, W, C). Say which with torch_to_flax(channels_first="
            f"{{{path!r}: (C, H, W)}}), or {{{path!r}: None}} for features."
            for path, wide in asked
        ]

    def _convolutions(
        self, terms: Mapping[str, Any], arrays: Any, leaves: Any, record: Record
    ) -> list[str]:
        """Asks which square kernels are those of transposed convolutions."""
        asked, known = [], []
        for path, term in terms.items():
            name, shape = term.names[0], tuple(leaves[path].shape)
            if len(shape) < 3 or shape[-1] != shape[-2] or set(shape) == {1}:
                continue
            if self._transposed is not None or not path.endswith("kernel"):
                continue
            kind, words = record.layers.get(name, ""), f"{path} {name}"
            is_named = bool(_TRANSPOSED.search(kind or words))
            if is_named or not (
                kind or _CONVOLUTION.search(words) or not self._is_torch
            ):
                asked.append(path)
            elif self._is_torch:
                known.append(path)
        if known:
            self.assumed.append(
                f"{', '.join(known)}: kernels of convolutions that are not transposed, "
                "by their names (transposed=() says that there are none)"
            )
        return [
            f"{', '.join(asked)}: a kernel with as many channels in as out is either a "
            "convolution's (or that of nnx.ConvTranspose with transpose_kernel=True), "
            "or that of a ConvTranspose without it, which has it flipped. Say which "
            f"are the latter: transposed={tuple(asked)!r}, or transposed=() for none."
        ] * bool(asked)


def same(
    rename: Mapping[str, str] | None = None,
    transposed: Collection[str] | None = None,
) -> Rule:
    """The rule for checkpoints with the tree's layouts: Keras, TF1, Optax and ours.

    Args:
      rename: the checkpoint's names of modules or leaves, by the beginnings of paths,
        such as {"Dense_0": "sequential/dense"}.
      transposed: as for `torch_to_flax`; Keras has torch's kernels of them.

    Returns:
      The rule, for `weights`. Keras's names of leaves stand for Flax's (gamma for
      scale, beta for a normalisation's bias, embeddings for embedding).

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import convert
      >>> slots = {"dense/w/RMSProp": np.ones(3), "dense/w/RMSProp_1": np.zeros(3)}
      >>> restored = convert.load(
      ...     slots,
      ...     {"Dense_0": {"w": np.zeros(3)}},
      ...     weights=convert.same({"Dense_0": "dense"}),
      ...     learning_rate=0.1, decay=0.9, momentum=0.9, epsilon=1e-10,
      ... )
      >>> print(restored.places[0][1])
      dense/w
    """
    return Rule(False, rename, None, transposed)


def torch_to_flax(
    rename: Mapping[str, str] | None = None,
    channels_first: Mapping[str, tuple[int, ...] | None] | None = None,
    transposed: Collection[str] | None = None,
) -> Rule:
    """The rule for torch modules whose counterparts are Flax's, Linen or NNX.

    Linear, convolutions, Embedding, the normalisations and LSTM are known, and
    Sequential's numbers in Linen ("layers_0") and in NNX ("layers/0"). Kernels have
    torch's first axes last: (out, in) is (in, out), (out, in, h, w) is (h, w, in, out).
    A leaf of any other name is a parameter of that name. A Flax LSTM has one bias where
    torch has two, of which it is the sum: in torch both move, so here it moves twice as
    far. All else is for a function of your own, see `load`.

    Args:
      rename: torch's names of modules, by the beginnings of paths, where they differ:
        {"Dense_0": "fc1", "OptimizedLSTMCell_0": "lstm.l1"} (an LSTM's second layer).
      channels_first: by the path of a Dense kernel, (C, H, W) if its input is a
        flattened image. Asked for where a convolution stands before; None there, or
        {} for all, says that it is not.
      transposed: the paths of the modules that are `ConvTranspose` of Flax without
        `transpose_kernel`, whose kernels are flipped. Asked for where shapes do not
        tell; () says that there are none.

    Returns:
      The rule, for `weights`.

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import convert
      >>> state = {0: {"step": 7, "square_avg": np.full((8, 4), 0.5)}}
      >>> group = {"lr": 0.1, "alpha": 0.9, "foreach": None, "params": [0]}
      >>> restored = convert.load(
      ...     {"state": state, "param_groups": [group]},
      ...     {"Dense_0": {"kernel": np.zeros((4, 8))}},
      ...     weights=convert.torch_to_flax({"Dense_0": "fc"}),
      ...     names=["fc.weight"],
      ... )
      >>> print(restored.places[0][1])
      fc.weight, transposed
    """
    return Rule(True, rename, channels_first, transposed)


def _same_names(path: str) -> list[str]:
    leaves = {
        "scale": ("scale", "gamma"),
        "bias": ("bias", "beta"),
        "embedding": ("embedding", "embeddings"),
    }
    head, _, leaf = path.rpartition("/")
    starts = f"{head}/" if head else ""
    return [starts + name for name in leaves.get(leaf, (leaf,))]


def _torch_names(
    path: str, shape: tuple[int, ...]
) -> tuple[list[str], tuple[int, ...] | None, tuple[int, int] | None]:
    """Returns the names that torch may have for a leaf, its axes and its part."""
    *modules, leaf = path.split("/")
    last = modules[-1] if modules else ""
    axes = (*range(2, len(shape)), 1, 0) if leaf == "kernel" else None
    gate = re.fullmatch(r"([ih])([ifgo])_?|dense_([ih])", last)
    if gate:
        *modules, cell = ["", *modules[:-1]]
        layer = re.fullmatch(r"(?:(.*)\.)?(l\d+(?:_reverse)?)", cell)
        cell, number = layer.groups() if layer else (cell, "l0")
        modules = [part for part in (*modules, cell) if part]
        kind = "weight" if leaf == "kernel" else "bias"
        leaves = [f"{kind}_{gate[1] or gate[3]}h{end}" for end in (f"_{number}", "")]
    else:
        leaves = {
            "kernel": ["weight"],
            "scale": ["scale", "weight"],
            "embedding": ["embedding", "weight"],
        }.get(leaf, [leaf])
    part = (_GATES[gate[2]], len(_GATES)) if gate and gate[2] else None
    heads = _module_names(modules)
    return [".".join([*head, name]) for head in heads for name in leaves], axes, part


def _renamed(path: str, rename: Mapping[str, str]) -> str:
    """Replaces the longest beginning of a path that the user renames."""
    for start in sorted(rename, key=len, reverse=True):
        if path == start or path.startswith(f"{start}/"):
            return rename[start] + path[len(start) :]
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
