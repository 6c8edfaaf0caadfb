"""What makes a dialect of a function: its call and its errors.

A dialect is a function from a framework's own arguments to those of `rmsprop`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypedDict

import jax
import numpy as np
import optax

from .._rmsprop import rmsprop
from .._signature import canonical, factory

P = ParamSpec("P")


class Options(TypedDict, total=False):
    """What every dialect takes beside its framework's arguments, by keyword."""

    skip_nonfinite: bool
    nu_dtype: Any
    mu_dtype: Any
    accumulator_dtype: Any
    seed: Any
    round_params: Any
    weight_decay_mask: Any


_REFUSED = {
    "params": "The parameters are what its `init` gets",
    "parameters": "The parameters are what its `init` gets",
}


def dialect(
    refuses: Mapping[str, str],
) -> Callable[
    [Callable[P, dict[str, Any]]], Callable[P, optax.GradientTransformationExtraArgs]
]:
    """Makes a dialect of a function that returns arguments of `rmsprop`.

    Beside these it may return `before`, a transformation of the gradients.

    Args:
      refuses: keywords that there is a reason to refuse, with the reason.
    """

    def decorate(native: Callable[P, dict[str, Any]]) -> Any:
        own = inspect.signature(native).parameters
        parameters = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
        ours = inspect.signature(rmsprop).parameters
        parameters += [
            ours[name]
            for name in Options.__annotations__
            if name != "weight_decay_mask" or "weight_decay" in own
        ]

        @functools.wraps(native)
        def build(*args: P.args, **kwargs: P.kwargs) -> Any:
            arguments = native(*args, **kwargs)
            before = arguments.pop("before", None)
            try:
                transformation = rmsprop(**arguments)
            except (TypeError, ValueError) as error:
                raise type(error)(_in_native_names(str(error), own)) from error
            return (
                transformation
                if before is None
                else optax.chain(before, transformation)
            )

        return factory(build, parameters, {**_REFUSED, **refuses})

    return decorate


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is off for good: not where it is an array, or traced."""
    return isinstance(value, int | float | np.generic) and value == 0


def unless_zero(value: Any) -> Any:
    """Returns a hyperparameter, or None where it is off for good."""
    return None if is_zero(value) else value


def as_float32(value: Any) -> Any:
    """Rounds a hyperparameter, or what a schedule returns, to float32."""
    if callable(value):
        return lambda count: as_float32(value(count))
    if isinstance(value, jax.Array):
        return value.astype(np.float32)
    return np.float32(value) if isinstance(value, int | float | np.ndarray) else value


def _in_native_names(message: str, own: Mapping[str, Any]) -> str:
    for name in own:
        message = message.replace(f"`{canonical(name)}`", f"`{name}`")
        message = message.replace(f"`{canonical(name)}(0)`", f"`{name}(0)`")
    return message
