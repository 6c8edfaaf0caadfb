"""Runs a program that was written for whole arrays where each device has a part.

A transformation is traced with the shapes of the whole arrays, so that its masks and
its means are those of one device. What was traced is then run on flat, padded parts:
arithmetic acts on each part, a reduction leaves the padding out and gathers one number
of each device, and whatever else would mix elements is refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from . import _operations, _parts, _pieces
from ._exchange import Later, Reduction, exchange, known
from ._pieces import Piece, Places, is_plain, part_of, whole_of


class NotSplitError(ValueError):
    """A transformation does what parts of arrays do not allow."""


class Program:
    """One run of a program, with the operations in it that wait for other devices."""

    def __init__(
        self,
        axes: tuple[str, ...],
        name_of: Callable[[tuple[int, ...]], str],
        functions: dict[Any, Any] | None = None,
    ):
        """Takes what all runs share.

        Args:
          axes: the axes of the mesh over which arrays are in parts.
          name_of: says which leaves have a shape, for errors.
          functions: those that were made of inner programs, by program and arguments.
        """
        self.axes, self.name_of = axes, name_of
        self.reductions: list[Reduction] = []
        self.waiting: list[tuple[Any, list[Any], list[Later]]] = []
        self.functions: dict[Any, Any] = {} if functions is None else functions

    def run(self, closed: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
        """Returns the results, with all numbers of other devices that they need.

        Args:
          closed: the program, traced with the shapes of whole arrays.
          values: its arguments, each a `Piece`, `Places` or a plain array.

        Raises:
          NotSplitError: if the program mixes the elements of a `Piece`.
        """
        results = self.inlined(closed, values)
        while self.reductions:
            reductions, self.reductions = self.reductions, []
            exchange(self.axes, reductions)
            # What this makes known may start reductions, which the next round sends.
            waiting, self.waiting = self.waiting, []
            for eqn, operands, later in waiting:
                for target, value in zip(later, self.one(eqn, operands), strict=True):
                    target.value = value
        return [known(value) for value in results]

    def whole(self, values: Sequence[Any]) -> list[jax.Array]:
        """Returns values as plain arrays, which takes what other devices have."""
        found: list[Any] = [whole_of(x) for x in values]
        split = [i for i, x in enumerate(found) if isinstance(x, Piece)]
        likes = [
            jax.ShapeDtypeStruct(found[i].shape, found[i].data.dtype) for i in split
        ]
        arrays = _parts.whole(self.axes, [found[i].data for i in split], likes)
        for i, array in zip(split, arrays, strict=True):
            found[i] = array
        return found

    def inlined(self, closed: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env |= zip(jaxpr.invars, values, strict=True)

        def read(x: Any) -> Any:
            if isinstance(x, core.Literal):
                return np.asarray(x.val, cast(Any, x.aval).dtype)
            return env[x]

        for eqn in jaxpr.eqns:
            outputs = self.one(eqn, [read(x) for x in eqn.invars])
            env |= zip(eqn.outvars, outputs, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def one(self, eqn: Any, operands: Sequence[Any]) -> list[Any]:
        """Returns the results of one operation, `Later` ones if it has to wait."""
        values = [known(x) for x in operands]
        inner = _operations.inner_program(eqn)
        waits = any(isinstance(x, Later) for x in values)
        if inner is not None and (waits or _operations.is_inlined(inner)):
            return self.inlined(inner, values)
        used = _operations.numbers_used(eqn)
        if used:
            # A parameter that is one number, used as a number.
            values[used] = [
                self.number(x) if isinstance(x, Piece) and x.shape == () else x
                for x in values[used]
            ]
        if any(isinstance(x, Later) for x in values):
            later = [Later() for _ in eqn.outvars]
            self.waiting.append((eqn, list(values), later))
            return later
        if eqn.primitive.name in _operations.FILLS and len(values) <= 1:
            filled = self.filled(eqn, values)
            if filled is not None:
                return [filled]
        if all(is_plain(x) for x in values) and _operations.is_small(eqn):
            return self.bound(eqn, values)
        if inner is not None:
            return self.called(inner, values)
        return self.on_parts(eqn, values)

    def filled(self, eqn: Any, values: list[Any]) -> Any:
        """Returns an array that is made of a number or of nothing, if it is one."""
        aval = eqn.outvars[0].aval
        if not values:
            if not jnp.issubdtype(aval.dtype, jnp.integer):
                return None
            return _pieces.iota(aval.dtype, aval.shape, eqn.params["dimension"])
        if isinstance(values[0], Piece) or _pieces.shape_of(values[0]) != ():
            return None
        return _pieces.full(values[0], aval.shape)

    def on_parts(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Returns the results of an operation on values that are known."""
        name, aval = eqn.primitive.name, eqn.outvars[0].aval
        if name in _operations.PLACING:
            return values
        if name == "optimization_barrier":
            arrays = jax.lax.optimization_barrier([_pieces.array_of(x) for x in values])
            return list(map(_pieces.with_array, values, arrays))
        same_shape = all(
            v.aval.shape == aval.shape
            or (v.aval.size == 1 and not isinstance(x, Piece))
            for v, x in zip(eqn.invars, values, strict=True)
        )
        if name in _operations.SAME_ON_EACH and same_shape:
            return [self.same_on_each(eqn, values, aval)]
        if name in _operations.SAME_ORDER and math.prod(aval.shape) == math.prod(
            eqn.invars[0].aval.shape
        ):
            return [self.reshaped(eqn, values[0], aval.shape)]
        if name == "cond":
            return self.branched(eqn, values)
        pieces = [x for x in values if isinstance(x, Piece)]
        if pieces and _operations.reduces(name) and math.prod(aval.shape) == 1:
            return self.reduced(eqn, values)
        if pieces:
            raise self.refused(name, pieces[0].shape)
        return self.bound(eqn, [whole_of(x) for x in values])

    def bound(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Does an operation on plain arrays, as it stands."""
        named = _operations.axes_named(eqn)
        if named & set(self.axes):
            raise NotSplitError(
                f"`zero` cannot split this transformation: `{eqn.primitive.name}` in "
                f"it combines devices over {sorted(named)}, but inside of `zero` all "
                "sums, means and norms are those of whole leaves already. Leave it "
                "out, or put it outside of `zero`."
            )
        return _operations.bound(eqn, values)

    def same_on_each(self, eqn: Any, values: list[Any], aval: Any) -> Any:
        name, shape = eqn.primitive.name, aval.shape

        def bind(arrays: list[Any]) -> jax.Array:
            return _operations.bound(eqn, arrays)[0]

        # Of the shape (1, 1), say, one number may stand for all elements, too.
        values = [
            x if v.aval.shape in ((), shape) else jnp.reshape(whole_of(x), ())
            for x, v in zip(values, eqn.invars, strict=True)
        ]
        places = _pieces.combined(name, values, bind)
        if places is not None:
            return places
        if _has_no_piece(values) and math.prod(shape) <= _parts.BLOCK:
            return self.bound(eqn, [whole_of(x) for x in values])[0]
        # A number beside arrays stays one, as it does in a program for whole arrays.
        arrays = [
            part_of(self.axes, x, shape) if v.aval.shape == shape else whole_of(x)
            for x, v in zip(values, eqn.invars, strict=True)
        ]
        return Piece(bind(arrays), shape)

    def reshaped(self, eqn: Any, value: Any, shape: tuple[int, ...]) -> Any:
        if isinstance(value, Places) and not any(value.strides):
            return _pieces.full(value.offset, shape)
        if isinstance(value, Places) and value.shape == shape:
            return value
        if _has_no_piece([value]) and math.prod(shape) <= _parts.BLOCK:
            return self.bound(eqn, [whole_of(value)])[0]
        return Piece(part_of(self.axes, value, _pieces.shape_of(value)), shape)

    def reduced(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Reduces what this device has, and leaves the rest to the exchange."""
        shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        arrays, starts, along = _operations.reduction(eqn, values)
        parts = [part_of(self.axes, x, shape) for x in arrays]
        if _pieces.is_padded(self.axes, shape):
            kept = _pieces.inside(self.axes, shape)
            parts = [
                jnp.where(kept, x, jnp.asarray(whole_of(start), x.dtype))
                for x, start in zip(parts, starts, strict=True)
            ]

        def combine(*arrays: jax.Array) -> list[jax.Array]:
            given = [*arrays, *map(whole_of, values[len(arrays) :])]
            found = _operations.bound(eqn, given, {along: (0,)})
            return [x.reshape(out) for x in found]

        later = [Later() for _ in eqn.outvars]
        own = [x.reshape(()) for x in combine(*parts)]
        self.reductions.append(Reduction(own, combine, later))
        return list(later)

    def number(self, value: Piece) -> Later:
        """The one element of a piece, which the first device has."""
        later = Later()

        def first(x: jax.Array) -> list[jax.Array]:
            return [x[0]]  # not a sum: -0 would become 0

        self.reductions.append(Reduction([value.data[0]], first, [later]))
        return later

    def branched(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Runs the branches of a condition, which is the same on all devices."""
        index, *rest = values
        arrays = [_pieces.array_of(x) for x in rest]
        kinds: list[list[Any]] = []

        def branch(closed: Any, in_parts: list[bool] | None = None) -> Any:
            def function(*arrays: jax.Array) -> list[jax.Array]:
                nested = Program(self.axes, self.name_of)
                given = list(map(_pieces.with_array, rest, arrays))
                results = nested.run(closed, given)
                if in_parts is None:
                    kinds.append([is_plain(x) for x in results])
                    return [_pieces.array_of(x) for x in results]
                return [
                    _parts.varying(self.axes, part_of(self.axes, x, v.aval.shape))
                    if split
                    else whole_of(x)
                    for x, v, split in zip(results, eqn.outvars, in_parts, strict=True)
                ]

            return function

        for closed in eqn.params["branches"]:
            jax.eval_shape(branch(closed), *arrays)
        in_parts = [not all(plain) for plain in zip(*kinds, strict=True)]
        functions = [branch(closed, in_parts) for closed in eqn.params["branches"]]
        results = _operations.branches(eqn, whole_of(index), functions, arrays)
        return [
            Piece(x, v.aval.shape) if split else x
            for x, v, split in zip(results, eqn.outvars, in_parts, strict=True)
        ]

    def called(self, closed: core.ClosedJaxpr, values: list[Any]) -> list[Any]:
        """Calls a program as a function, traced once for all leaves of a shape."""
        key = id(closed), tuple(_pieces.kind_of(x) for x in values)
        if key not in self.functions:
            found: list[Any] = []

            def function(*arrays: jax.Array) -> list[jax.Array]:
                nested = Program(self.axes, self.name_of, self.functions)
                given = list(map(_pieces.with_array, values, arrays))
                results = nested.run(closed, given)
                found[:] = [_pieces.with_array(x, None) for x in results]
                return [_pieces.array_of(x) for x in results]

            self.functions[key] = jax.jit(function), found, closed
        function, found, _ = self.functions[key]
        results = function(*[_pieces.array_of(x) for x in values])
        return list(map(_pieces.with_array, found, results))

    def refused(self, name: str, shape: tuple[int, ...]) -> NotSplitError:
        return NotSplitError(
            f"`zero` cannot split this transformation: it applies `{name}` to an array "
            f"of shape {shape}{self.name_of(shape)}, which mixes elements that are on "
            "different devices. What acts element by element, sums over whole leaves "
            "and norms can be split; for all else use `state_sharding` with "
            "`zero_axis`, under `jax.jit`."
        )


def _has_no_piece(values: Sequence[Any]) -> bool:
    return not any(isinstance(x, Piece) for x in values)
