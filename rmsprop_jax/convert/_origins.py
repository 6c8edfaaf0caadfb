"""Where each element of each leaf comes from, learned from the user's own function.

The function takes a model's arrays by name to the parameter tree. It is sent the
numbers of the elements in the place of their values, so what comes out says which
element went where, and accumulators move by the same rearrangement. The numbers go as
digits from 0 to 15, one pass for each digit, because every dtype holds those exactly.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._record import names_of

_BASE = 16
_ROUNDS = 8  # of random values; what is no rearrangement passes one in 16 times at most
_LIMIT = 2**31  # elements, whose squares int64 holds


class Place(NamedTuple):
    """Where a leaf's numbers are in a checkpoint, for people.

    Attributes:
      name: the array's name there; several are joined by " and ", or by " + " where
        the leaf holds their sum.
      axes: the array's axes in the leaf's order, None for the same or for another
        rearrangement.
      how: the rearrangement in words, "" for none.
    """

    name: str
    axes: tuple[int, ...] | None = None
    how: str = ""

    def __str__(self) -> str:
        """Says it to a person: "0.weight, transposed"."""
        return f"{self.name}, {self.how}" if self.how else self.name


class Problem:
    """What a rule returns for a leaf that it cannot fill."""

    def __init__(self, text: str) -> None:
        """Keeps the text of the problem."""
        self.text = text


class Origin(NamedTuple):
    """Which elements of the source the elements of a leaf are.

    Attributes:
      first: their numbers, in the shape of the leaf.
      second: where an element is the sum of two, the number of the other, else -1; None
        where no element is a sum.
    """

    first: np.ndarray
    second: np.ndarray | None = None

    @property
    def numbers(self) -> np.ndarray:
        """All elements that go into the leaf."""
        if self.second is None:
            return self.first.ravel()
        return np.append(self.first, self.second[self.second >= 0])

    @property
    def terms(self) -> np.ndarray:
        """How many elements each element is the sum of, in float32."""
        second = np.full(self.first.shape, -1) if self.second is None else self.second
        return 1 + (second >= 0).astype(np.float32)

    def read(self, values: np.ndarray) -> np.ndarray:
        """Returns the leaf, of all values in the source."""
        leaf = values[self.first]
        if self.second is None:
            return leaf
        return leaf + np.where(self.second < 0, 0, values[self.second])


class Numbers:
    """The elements of a source's arrays, numbered; tied arrays share their numbers."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        """Numbers the elements of arrays, or of their shapes, by name."""
        self.arrays = dict(arrays)
        self.parts: dict[str, slice] = {}
        known: dict[int, slice] = {}
        self.size = 0
        for name, array in self.arrays.items():
            if id(array) not in known:
                size = int(np.prod(array.shape))
                known[id(array)] = slice(self.size, self.size + size)
                self.size += size
            self.parts[name] = known[id(array)]
        owners = {part.start: name for name, part in reversed(self.parts.items())}
        owners |= {
            p.start: n for n, p in reversed(self.parts.items()) if p.stop > p.start
        }
        self._starts = np.array(sorted(owners), np.int64)
        self._owners = [owners[start] for start in sorted(owners)]

    def split(self, values: np.ndarray, exact: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays of all values, in the source's dtypes or `exact`ly."""
        return {
            name: values[self.parts[name]]
            .reshape(array.shape)
            .astype(values.dtype if exact else _dtype(array))
            for name, array in self.arrays.items()
        }

    def joined(self, arrays: Mapping[str, Any], dtype: Any) -> np.ndarray:
        """Returns all values of some arrays; zero for those that are not given."""
        values = np.zeros(self.size, dtype)
        for name, array in arrays.items():
            values[self.parts[name]] = np.asarray(array).ravel()
        return values

    def names(self, origin: Origin) -> list[str]:
        """Returns the names of the arrays that a leaf comes from, in order."""
        found = np.searchsorted(self._starts, origin.numbers, "right") - 1
        counts = np.bincount(found, minlength=len(self._owners))
        return [name for name, n in zip(self._owners, counts, strict=True) if n]

    def element(self, number: int) -> str:
        """Returns an element's name, "fc.weight[0, 3]"."""
        at = int(np.searchsorted(self._starts, number, "right")) - 1
        name = self._owners[at]
        return element(name, number - int(self._starts[at]), self.arrays[name].shape)

    def place(self, origin: Origin) -> Place:
        """Returns where a leaf comes from, for people."""
        used = self.names(origin)
        if origin.second is not None:
            return Place(" + ".join(used))
        if len(used) != 1:
            return Place(" and ".join(used), how="joined")
        (name,) = used
        shape, part = self.arrays[name].shape, self.parts[name]
        whole = np.arange(part.start, part.stop).reshape(shape)
        if origin.first.size < whole.size:
            return Place(name, how="a part of it")
        for axes in itertools.permutations(range(len(shape))):
            moved = whole.transpose(axes)
            if moved.shape == origin.first.shape and (moved == origin.first).all():
                if axes == tuple(range(len(shape))):
                    return Place(name)
                how = "transposed" if axes == (1, 0) else f"axes {axes}"
                return Place(name, axes, how)
        return Place(name, how="rearranged")


def learned(
    function: Callable[[Mapping[str, Any]], Any],
    numbers: Numbers,
    leaves: Mapping[str, Any],
    exact: bool = False,
) -> tuple[dict[str, Origin], list[str]]:
    """Returns the origins of the leaves, and the problems of those that have none.

    Args:
      function: returns a tree with the paths and shapes of `leaves`.
      numbers: the arrays that it takes.
      leaves: the leaves of the parameter tree by path.
      exact: whether the function moves integers of 64 bits as they are.
    """

    def sent(values: np.ndarray) -> dict[str, np.ndarray]:
        tree = names_of(function(numbers.split(values, exact)))
        return {path: np.asarray(tree[path]) for path in good}

    if numbers.size > _LIMIT:
        raise ValueError(f"The source has more than {_LIMIT} elements.")
    zeros = np.zeros(numbers.size, np.int64)
    try:
        good, problems = _checked(
            names_of(function(numbers.split(zeros, exact))), leaves
        )
    except KeyError as error:
        raise ValueError(
            f"`weights` asks for {error}, and the source has "
            f"{', '.join(numbers.arrays)}."
        ) from error
    every, last = np.arange(numbers.size), max(numbers.size - 1, 0)
    totals = _counted(sent, every, exact)
    origins = {path: Origin(np.clip(x, 0, last)) for path, x in totals.items()}
    right = _holding(sent, numbers, origins, exact)
    wrong = [path for path, mask in right.items() if not mask.all()]
    if not wrong:
        return origins, problems
    good = wrong  # a + b and a² + b² show the two elements of a sum
    squares = _counted(sent, np.square(every), exact)
    base, once = sent(zeros), sent(zeros + 1)
    for path in wrong:
        apart = np.maximum(2 * squares[path] - np.square(totals[path]), 0)
        apart = np.rint(np.sqrt(apart)).astype(np.int64)
        low, high = ((totals[path] + s * apart) // 2 for s in (-1, 1))
        is_sum = ~right[path] & (low < high) & (low >= 0) & (high <= last)
        origins[path] = Origin(
            np.where(is_sum, low, origins[path].first), np.where(is_sum, high, -1)
        )
    again = _holding(sent, numbers, {path: origins[path] for path in wrong}, exact)
    for path, mask in again.items():
        if not mask.all():
            at = np.unravel_index(np.argmin(mask), mask.shape)
            sums = (int(totals[path][at]), int(squares[path][at]))
            what = _what(
                complex(base[path][at]), complex(once[path][at]), sums, numbers
            )
            where = element(path, int(np.argmin(mask)), mask.shape)
            problems.append(f"{where} is {what}")
            del origins[path]
    return origins, problems


def uses(
    origins: Mapping[str, Origin], numbers: Numbers, trained: list[str]
) -> list[str]:
    """Returns the problems of elements that the optimizer trains: each is used once."""
    used = [np.zeros(0, np.int64), *(origin.numbers for origin in origins.values())]
    count = np.bincount(np.concatenate(used), minlength=numbers.size)
    problems = []
    for name in trained:
        used, shape = count[numbers.parts[name]], numbers.arrays[name].shape
        if used.size and not used.any():
            problems.append(f"extra {name} {shape}: no leaf takes it")
        elif not used.all():
            where = element(name, int(np.argmin(used)), shape)
            left = int(np.sum(used == 0))
            problems.append(f"extra {where}: no leaf takes it, one of {left} elements")
        if (used > 1).any():
            number = numbers.parts[name].start + int(np.argmax(used > 1))
            paths = [p for p, o in origins.items() if (o.numbers == number).any()]
            what = f"ambiguous {numbers.element(number)}: of {' and of '.join(paths)}"
            problems.append(what if len(paths) > 1 else f"{what}, twice")
    return problems


def element(name: str, index: int, shape: tuple[int, ...]) -> str:
    """Returns an element's name, "fc.weight[0, 3]"."""
    where = ", ".join(str(int(i)) for i in np.unravel_index(index, shape))
    return f"{name}[{where}]" if where else name


def _counted(
    sent: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    values: np.ndarray,
    exact: bool,
) -> dict[str, np.ndarray]:
    """Returns what a linear function makes of integers, sent digit by digit."""
    base = 2**62 if exact else _BASE
    total, factor, largest = {}, 1, int(values.max(initial=0))
    while factor == 1 or factor <= largest:
        for path, digit in sent(values // factor % base).items():
            digit = np.real(digit)
            if not exact:
                digit = np.nan_to_num(digit.astype(np.float64), posinf=0, neginf=0)
            term = np.rint(digit).astype(np.int64) * factor
            total[path] = total.get(path, 0) + term
        factor *= base
    return total


def _holding(
    sent: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    numbers: Numbers,
    origins: Mapping[str, Origin],
    exact: bool,
) -> dict[str, np.ndarray]:
    """Returns which elements are what their origins say, for random values."""
    rng = np.random.default_rng(0)
    kinds = {name: _dtype(array).kind for name, array in numbers.arrays.items()}
    right: dict[str, Any] = dict.fromkeys(origins, True)
    most = 2**40 if exact else 8
    for _ in range(1 if exact else _ROUNDS):
        values: Any = rng.integers(1 - most, most, numbers.size)
        if not exact and "c" in kinds.values():
            values = values + 0j
        for name, part in numbers.parts.items():
            if not exact and kinds[name] == "u":
                values[part] = np.abs(values[part])
            elif not exact and kinds[name] == "c":
                values[part].imag = values[part].real[::-1] + 1
        for path, got in sent(values).items():
            right[path] = right[path] & (origins[path].read(values) == got)
    return right


def _checked(
    tree: Mapping[str, Any], leaves: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Returns the leaves that a function gives rightly, and the others' problems."""
    good = []
    problems = [
        f"extra {path}: the tree has no such leaf"
        for path in tree
        if path not in leaves
    ]
    for path, leaf in leaves.items():
        given = tree.get(path, Problem(f"missing {path}: `weights` does not give it"))
        if isinstance(given, Problem):
            problems.append(given.text)
        elif np.shape(given) != tuple(leaf.shape):
            shapes = f"{tuple(leaf.shape)}: `weights` gives {np.shape(given)}"
            problems.append(f"mis-shaped {path} {shapes}")
        else:
            good.append(path)
    return good, problems


def _what(base: complex, once: complex, sums: tuple[int, int], numbers: Numbers) -> str:
    """Says what an element is that is no element of the source, nor a sum of two.

    Args:
      base: what it is where all elements are 0.
      once: where all are 1.
      sums: where they are their numbers, and the squares of these.
      numbers: the elements.
    """
    if base != 0 or once == 0:
        return "a constant, or a difference of elements"
    total, square = sums
    at = total / once.real if once.real not in (0, 1) else -1
    if square * once.real == total**2 and at == int(at) and 0 <= at < numbers.size:
        return f"{numbers.element(int(at))} times {once.real:g}"
    return "a sum of several elements, or no rearrangement at all"


def _dtype(array: Any) -> np.dtype:
    """Returns the dtype that an array is sent in; it has to hold digits."""
    dtype = np.dtype(array.dtype)
    return np.dtype(np.int8) if dtype.kind == "b" else dtype
