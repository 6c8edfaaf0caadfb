"""What JAX's operations do with the places of elements, and how to do them again."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from . import _parts

SAME_ON_EACH = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "bitcast_convert_type", "cbrt", "ceil", "clamp", "complex", "conj",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq",
    "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p",
    "logistic", "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter", "not",
    "or", "population_count", "pow", "real", "reduce_precision",
    "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
])  # fmt: skip
"""Operations that compute each element from those at the same place."""

SAME_ORDER = frozenset(["broadcast_in_dim", "expand_dims", "reshape", "squeeze"])
"""Operations that leave all elements in their row-major order, if none is added."""

FILLS = frozenset(["broadcast_in_dim", "iota"])
"""Operations that make an array of a number, or of nothing."""

PLACING = frozenset(["pcast", "pvary", "reshard", "sharding_constraint"])
"""Operations that say where arrays are, which parts of them know already."""

_STARTS: dict[str, Callable[[Any], Any]] = {
    "reduce_sum": lambda dtype: 0,
    "reduce_prod": lambda dtype: 1,
    "reduce_max": lambda dtype: _end(dtype, -1),
    "reduce_min": lambda dtype: _end(dtype, 1),
    "reduce_and": lambda dtype: True,
    "reduce_or": lambda dtype: False,
}
"""By the name of a reduction: the element that changes nothing."""

_SHORT = 8
"""Calls of so few operations are not worth a function of their own."""

_PLAIN = 2**16
"""Arrays of so many elements are made whole, as the keys of all leaves are."""


def reduces(name: str) -> bool:
    return name in _STARTS or name == "reduce"


def numbers_used(eqn: Any) -> slice | None:
    """Returns which operands have to be known, where they are one number, if any."""
    name = eqn.primitive.name
    if name == "optimization_barrier" or name in SAME_ORDER or reduces(name):
        return None
    if name == "cond":
        return slice(0, 1)
    on_numbers = name in SAME_ON_EACH and eqn.outvars[0].aval.shape == ()
    return None if on_numbers or inner_program(eqn) is not None else slice(None)


def is_small(eqn: Any) -> bool:
    """Whether the results of an operation on plain arrays may be plain arrays too."""
    return sum(math.prod(v.aval.shape) for v in eqn.outvars) <= _PLAIN


def reduction(eqn: Any, values: list[Any]) -> tuple[list[Any], list[Any], str]:
    """Returns what is reduced, what changes nothing, and what says along which axes."""
    if eqn.primitive.name != "reduce":
        start = _STARTS[eqn.primitive.name](eqn.invars[0].aval.dtype)
        return values, [start], "axes"
    count = len(values) // 2
    return values[:count], values[count:], "dimensions"


def bound(
    eqn: Any, values: Sequence[Any], changed: dict[str, Any] | None = None
) -> list[jax.Array]:
    """Does an operation again, with other arrays and, where said, other parameters."""
    params = eqn.primitive.get_bind_params({**eqn.params, **(changed or {})})
    results = eqn.primitive.bind(*_parts.all_varying(values), **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def branches(
    eqn: Any, index: Any, functions: list[Any], arrays: list[Any]
) -> list[jax.Array]:
    """Does a condition again, by number or by platform, with other branches."""
    platforms = eqn.params.get("branches_platforms")
    if platforms is None:
        return jax.lax.switch(index, functions, *arrays)
    by_platform = {
        "default" if platform is None else platform: function
        for each, function in zip(platforms, functions, strict=True)
        for platform in (each or [None])
    }
    return jax.lax.platform_dependent(*arrays, **by_platform)


def inner_program(eqn: Any) -> core.ClosedJaxpr | None:
    """Returns what a call calls."""
    if eqn.primitive.name in ("while", "scan", "cond", "reduce", "shard_map"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        found = eqn.params.get(name)
        if isinstance(found, core.ClosedJaxpr):
            return found
        if isinstance(found, core.Jaxpr) and not found.constvars:
            return core.ClosedJaxpr(found, [])
    return None


def is_inlined(closed: core.ClosedJaxpr) -> bool:
    """Reductions are not hidden in functions, so that all are sent together."""
    return len(closed.jaxpr.eqns) <= _SHORT or _has_reduction(closed)


def axes_named(eqn: Any) -> set[str]:
    """Returns the axes of the mesh over which an operation combines devices."""
    if reduces(eqn.primitive.name) or eqn.primitive.name in ("axis_index", "pcast"):
        return set()
    found: set[str] = set()
    for inner in core.jaxprs_in_params(eqn.params):
        found = found.union(*map(axes_named, inner.eqns))
    for key in ("axes", "axis_name"):
        value = eqn.params.get(key, ())
        value = value if isinstance(value, tuple | list) else (value,)
        found |= {name for name in value if isinstance(name, str)}
    return found


def _has_reduction(closed: core.ClosedJaxpr) -> bool:
    return any(
        reduces(eqn.primitive.name)
        or any(map(_has_reduction, filter(None, [inner_program(eqn)])))
        for eqn in closed.jaxpr.eqns
    )


def _end(dtype: Any, sign: int) -> Any:
    """Returns the largest number of a dtype, or for the sign -1 the smallest."""
    if dtype == jnp.bool_:
        return sign > 0
    if jnp.issubdtype(dtype, jnp.inexact):
        return sign * jnp.inf
    return jnp.iinfo(dtype).max if sign > 0 else jnp.iinfo(dtype).min
