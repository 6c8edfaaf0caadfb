"""What stands in a compiled program: its kernels, their bytes, what it communicates."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)

_HEAD = re.compile(r"(ENTRY )?%(\S+) \(")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?%([^,\s}]+)")

_CALLS = ("call", "while", "conditional", "async-start")
"""Instructions whose kernels are those of the computation that they name."""

_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "partition-id", "replica-id",
)  # fmt: skip
"""Instructions that start nothing."""


class Kernel(NamedTuple):
    """What a device runs at once.

    Attributes:
      bytes: that it may read and write: of every operand and result, once, or of the
        slices that it takes of one.
      elements: of the largest of these.
    """

    bytes: int
    elements: int


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program, without what communicates."""
    return list(_kernels(_computations(text), "ENTRY"))


def collectives(text: str) -> Counter[str]:
    """Returns how many instructions of a compiled program communicate, by kind."""
    found: Counter[str] = Counter()
    computation = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line
        for kind in COLLECTIVE.findall(line):
            # XLA's name for a reduce-scatter that it writes as a kernel of its own.
            scatters = computation.startswith("%all-reduce-scatter")
            found["reduce-scatter" if scatters and kind == "all-reduce" else kind] += 1
    return found


def estimated_cycles(text: str) -> int | None:
    """Returns the sum of the compiler's estimates, which it makes for TPUs alone."""
    found = re.findall(r'estimated_cycles":"?([0-9]+)', text)
    return sum(map(int, found)) if found else None


def arrays(text: str) -> list[tuple[int, int]]:
    """Returns elements and bytes of every array whose shape stands in a text."""
    found = []
    for bits, shape in _ARRAY.findall(text):
        elements = math.prod(map(int, filter(None, shape.split(","))))
        found.append((elements, elements * int(bits or 8) // 8))
    return found


Instruction = tuple[str, str, str, str]
"""Name, shape, operation, and all that follows the opening parenthesis."""


def _computations(text: str) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found["ENTRY" if head[1] else head[2]] = []
        elif instruction := _INSTRUCTION.match(line):
            name, shape, operation, rest = instruction.groups()
            current.append((name, shape, operation, rest))
    return found


def _kernels(computations: dict[str, list[Instruction]], name: str) -> Iterator[Kernel]:
    shapes = {}
    for result, shape, operation, rest in computations[name]:
        shapes[result] = shape
        if operation in _CALLS:
            for called in _CALLED.findall(rest):
                yield from _kernels(computations, called)
        elif not (
            operation in _FREE
            or operation.endswith("-done")
            or COLLECTIVE.match(f" {operation}(")
        ):
            operands = [shapes[x] for x in _named(rest) if x in shapes]
            if operation == "fusion" and (called := _CALLED.search(rest)):
                read = _read(computations.get(called[1], []))
                operands = [read.get(n) or x for n, x in enumerate(operands)]
            touched = arrays(" ".join([shape, *operands]))
            yield Kernel(
                sum(size for _, size in touched),
                max((elements for elements, _ in touched), default=0),
            )


def _read(fused: list[Instruction]) -> dict[int, str]:
    """Returns the shapes of what a fusion takes of operands that it only slices."""
    found = {}
    for name, shape, operation, rest in fused:
        if operation == "parameter":
            taken = _slices(fused, name, arrays(shape))
            if taken is not None:
                found[int(rest.split(")")[0])] = " ".join(taken)
    return found


def _slices(
    fused: list[Instruction], name: str, whole: list[tuple[int, int]]
) -> list[str] | None:
    """Returns the slices of a value, or of what is made of it element by element.

    None where something else reads it.
    """
    found: list[str] = []
    users = [x for x in fused if name in _named(x[3])]
    for user, shape, operation, _ in users:
        if operation in ("slice", "dynamic-slice"):
            found.append(shape)
        elif arrays(shape)[:1] == whole and operation != "tuple":
            further = _slices(fused, user, whole)
            if further is None:
                return None
            found += further
        else:
            return None
    return found or None


def _named(rest: str) -> list[str]:
    """Returns the names in the rest of an instruction: operands, and what it calls."""
    rest = rest.split("control-predecessors=")[0]
    return list(dict.fromkeys(re.findall(r"%([^,\s)]+)", rest)))
