"""States that came back as dictionaries and lists, in their classes again.

Flax and Orbax restore so what they are given no target for, and a state that version
0.1 pickled or wrote may be (count, nu, None). Names tell the classes, but for two.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from .. import _leaves
from .._rms import RmsState
from ._record import STATES

# By the names of their fields; Optax has no public name for some.
_CLASSES: dict[frozenset[str], Any] = {
    **{frozenset(kind._fields): kind for kind in STATES},
    frozenset(("trace",)): optax.TraceState,
    frozenset(("count",)): optax.ScaleByScheduleState,
}
_FIRST = ("count", "nu", "mu")  # the fields of version 0.1, in order
_KNOWN: Any = (
    *STATES,
    optax.ScaleByAdamState,
    optax.TraceState,
    optax.ScaleByScheduleState,
)
# Fields that hold trees like the parameters, whose names are the user's.
_OF_PARAMS = {"acc_grads", "ema", "diagnostics", "hyperparams", "remainder"}


def in_classes(state: Any) -> Any:
    """Returns a state with the states of RMSProp and its momentum in their classes.

    Raises:
      ValueError: if the names do not tell whose average it is.
    """
    if isinstance(state, _KNOWN):
        return state
    if isinstance(state, Mapping):
        return _of_fields(dict(state))
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        fields = getattr(state, "_asdict")()  # noqa: B009, pyright knows no _asdict
        if {"nu", "trace"} & set(fields):
            return _of_fields(fields)
        return type(state)(**{k: _below(k, value) for k, value in fields.items()})
    if isinstance(state, list | tuple):
        if _is_first(state):
            return RmsState(*state)
        return tuple(in_classes(x) for x in state)
    return state


def like(state: Any, wanted: Any) -> Any:
    """Returns a state with the classes of another, leaf by leaf of the same name.

    Raises:
      ValueError: if it does not have these leaves.
    """
    found = dict(_named(state))

    def leaf(path: Any, like: Any) -> Any:
        name = ".".join(_leaves.name_of(path))
        if name not in found or np.shape(found[name]) != like.shape:
            came = np.shape(found[name]) if name in found else "nothing"
            raise ValueError(
                f"`state` is not one of `old_tx`: at {name} it has {came}, expected is "
                f"an array of shape {like.shape}."
            )
        return found[name]

    return jax.tree_util.tree_map_with_path(leaf, wanted)


def _of_fields(fields: dict[str, Any]) -> Any:
    names, order = frozenset(fields), tuple(fields)
    if names == frozenset(_FIRST):
        if order == _FIRST or fields["mu"] is None:
            return RmsState(**fields)
        raise ValueError(
            "`state` has count, mu and nu in a dictionary: that may be of "
            "optax.rmsprop with `centered` and `bias_correction`, of a centred RMSProp "
            "of ours, or of Adam. Pass the transformation that made it as `old_tx`."
        )
    if names in _CLASSES:
        return _CLASSES[names](**fields)
    if names and names == {str(i) for i in range(len(names))}:  # as Flax writes tuples
        return tuple(in_classes(fields[str(i)]) for i in range(len(names)))
    return {key: _below(key, value) for key, value in fields.items()}


def _below(field: str, value: Any) -> Any:
    return value if field in _OF_PARAMS else in_classes(value)


def _is_first(state: Any) -> bool:
    """Whether a tuple is (count, nu, None)."""
    return (
        len(state) == 3
        and hasattr(state[0], "dtype")
        and np.shape(state[0]) == ()
        and state[0].dtype.kind == "i"
        and state[2] is None
    )


def _named(state: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves by path; lists of Orbax count as tuples of Flax."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield ".".join(_leaves.name_of(path)), leaf
