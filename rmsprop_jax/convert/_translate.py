"""From one dialect to another."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _checks
from ._api import drained
from ._record import Group, Record, arguments_of, check_count, fill, maker, present
from ._resume import counted

_COUNTED = ("learning_rate", "decay", "bias_correction")


def translate(
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any],
    to: str,
    to_hyperparameters: Mapping[str, Any],
    step: int | None = None,
) -> Any:
    """Returns the state of one dialect as that of another.

    A momentum of directions becomes one of steps by the learning rate that goes on, and
    back; one of steps stays what it is. Where the rules differ in more than that (the
    place of eps, say), the next steps do, and a warning says in what.

    Args:
      state: the state, inside any chain.
      params: the parameters, or their shapes.
      dialect: the name of the dialect that the state is of.
      hyperparameters: its arguments.
      to: the name of the dialect that goes on.
      to_hyperparameters: its arguments.
      step: how many updates were done, where a schedule needs it and the state does
        not count them.

    Returns:
      The state of the other dialect.

    Raises:
      ValueError: if the state does not fit the parameters, a dialect is not known, or
        a momentum of steps would have to be divided by a learning rate of 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import convert, dialects
      >>> params = jnp.ones(3)
      >>> state = dialects.torch(lr=0.1, alpha=0.9).init(params)
      >>> old, new = {"lr": 0.1, "alpha": 0.9}, {"learning_rate": 0.1, "alpha": 0.9}
      >>> mlx_state = convert.translate(state, params, "torch", old, "mlx", new)
    """
    _checks.instance("to_hyperparameters", to_hyperparameters, Mapping, "a dictionary")
    try:
        maker(to)(**to_hyperparameters)
    except ValueError as error:
        raise ValueError(str(error).replace("`dialect`", "`to`")) from error
    record = drained(state, params, dialect, hyperparameters, counted(params, step))
    old, new = _rule(dialect, hyperparameters), _rule(to, to_hyperparameters)
    check_count(record, {key: new[key] for key in _COUNTED})
    factor = 1.0
    if old["learning_rate_in_momentum"] != new["learning_rate_in_momentum"]:
        factor = present(new["learning_rate"], record, "learning_rate")
        if old["learning_rate_in_momentum"] and new["momentum"]:
            if factor == 0:
                raise ValueError(
                    f"The momentum of {dialect} holds steps and that of {to} directions"
                    f", and the learning rate is 0 at step {record.step}: give another."
                )
            factor = 1 / factor
    slots = {
        name: s
        if s.momentum is None
        else s._replace(momentum=np.asarray(s.momentum * factor, s.momentum.dtype))
        for name, s in record.slots.items()
    }
    differing = _differing(old, new) if dialect != to else []
    if differing:
        warnings.warn(
            f"{to} goes on with another rule than {dialect}: {'; '.join(differing)}.",
            stacklevel=2,
        )
    group = Group(dict(to_hyperparameters), tuple(slots))
    other = Record(to, record.step, (group,), slots)
    return fill(maker(to)(**to_hyperparameters).init(params), other)


def _rule(dialect: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all arguments of `rmsprop` that a dialect's arguments stand for."""
    parameters = inspect.signature(maker("rmsprop")).parameters.values()
    defaults = {p.name: p.default for p in parameters} | {"before": None}
    return {**defaults, **arguments_of(dialect, hyperparameters)}


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns in words what makes a difference from now on."""
    both = [_plain(dict(arguments)) for arguments in (old, new)]
    clipping = [arguments.pop("before") is not None for arguments in both]
    was, now = both
    words = [
        f"`{name}` was {was[name]!r}, is {now[name]!r}"
        for name in was
        if was[name] is not now[name] and not _equal(was[name], now[name])
    ]
    if any(clipping):  # they cannot be compared
        words.append("what it does with the gradient before, clipping say")
    return words


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(np.all(one == other))
    except (TypeError, ValueError):
        return False


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `rmsprop` that make a difference from now on."""
    for name in ("learning_rate_in_momentum", "initial_scale"):
        del arguments[name]
    if not arguments["weight_decay"]:
        arguments |= {"weight_decay": None, "weight_decay_mode": None}
    for name, value in arguments.items():
        if callable(value) and name == "decay":
            value = value(0)
            arguments[name] = getattr(value, "keep", value)
    return arguments
