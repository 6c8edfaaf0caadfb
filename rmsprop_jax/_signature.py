"""What wraps every function of hyperparameters that a user calls."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._checks import at_least_float32

P = ParamSpec("P")
T = TypeVar("T")

# What other frameworks call our arguments.
FOREIGN_NAMES = {
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "alpha": "decay",
    "rho": "decay",
    "beta": "decay",
    "beta2": "decay",
    "b2": "decay",
    "gamma": "decay",
    "decay_rate": "decay",
    "smoothing": "decay",
    "epsilon": "eps",
    "eps_root": "eps",
    "initial_accumulator_value": "initial_scale",
    "mom": "momentum",
    "use_nesterov": "nesterov",
    "l2": "weight_decay",
    "lr_in_momentum": "learning_rate_in_momentum",
    "decoupled_decay": "weight_decay_mode",
    "mask": "weight_decay_mask",
}


def factory(
    function: Callable[P, T],
    parameters: Sequence[inspect.Parameter] | None = None,
    refusals: Mapping[str, str] = MappingProxyType({}),
) -> Callable[P, T]:
    """Wraps a function of hyperparameters for the callers that it has.

    A keyword that is not an argument raises a `TypeError` that says which one is
    meant, and whoever binds the signature in order to hand the hyperparameters on as
    arrays (`optax.inject_hyperparams`) gets numbers that keep their value.

    Args:
      function: what to wrap.
      parameters: those that its signature shall show, where they differ from its own.
      refusals: keywords that there is a reason to refuse, with the reason.
    """
    if parameters is None:
        parameters = list(inspect.signature(function).parameters.values())
    signature = _HyperparameterSignature(parameters)
    signature.function, signature.refusals = function.__name__, refusals

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        _refuse_foreign_names(signature, kwargs)
        for name, value in kwargs.items():
            if isinstance(value, _Function):
                kwargs[name] = value.function
        return function(*args, **kwargs)

    wrapper.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper


class _HyperparameterSignature(inspect.Signature):
    """A signature that binds every float in float32 or wider, and dtypes as dtypes.

    `optax.inject_hyperparams` binds the call, then casts Python floats to the dtype of
    the parameters, where bfloat16 makes 1.0 of a decay of 0.999; it leaves arrays as
    they are. It also takes anything callable for a schedule, `jnp.float32` and the
    functions that are masks included.
    """

    function = "The factory"  # its name, where it is known
    refusals: Mapping[str, str] = MappingProxyType({})

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        _refuse_foreign_names(self, kwargs)
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name.endswith("_mask") and callable(value):
                bound.arguments[name] = _Function(value)
            elif name.endswith("_dtype") and callable(value):
                bound.arguments[name] = jnp.dtype(cast(Any, value))
            elif callable(value):
                if not isinstance(value, optax.schedules.StatefulSchedule):
                    bound.arguments[name] = _with_wide_values(value)
            else:
                bound.arguments[name] = _strongly_typed(value)
        return bound


class _Function(NamedTuple):
    """A function on its way through whoever takes functions for schedules."""

    function: Callable[..., Any]


def _strongly_typed(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return jnp.asarray(value, float)
    value = at_least_float32(value)
    # A schedule's result is weakly typed where it came from Python numbers.
    return value.astype(value.dtype) if isinstance(value, jax.Array) else value


def _with_wide_values(schedule: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(schedule)(lambda *args: _strongly_typed(schedule(*args)))


def canonical(name: str) -> str:
    """Returns what `rmsprop` calls an argument that another framework calls `name`."""
    return FOREIGN_NAMES.get(name, name)


def _refuse_foreign_names(
    signature: _HyperparameterSignature, keywords: dict[str, Any]
) -> None:
    for name in keywords:
        if name in signature.parameters:
            continue
        meant = [p for p in signature.parameters if canonical(p) == canonical(name)]
        meant += difflib.get_close_matches(name, signature.parameters, 1)
        if name in signature.refusals:
            advice = signature.refusals[name]
        elif name in FOREIGN_NAMES and not meant:
            advice = f"It is `{canonical(name)}` of `rmsprop_jax.rmsprop`"
        elif meant:
            advice = f"Here it is called `{meant[0]}`"
        else:
            advice = "It takes " + ", ".join(f"`{p}`" for p in signature.parameters)
        raise TypeError(f"{signature.function} has no argument `{name}`. {advice}.")
