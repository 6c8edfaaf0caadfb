"""What makes a dialect of a function: its call and its errors.

A dialect is a function from a framework's own arguments to those of `rmsprop`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ParamSpec, TypedDict, get_args

import jax
import numpy as np
import optax

from .. import _checks
from .._checks import is_zero as is_zero
from .._injection import of_python
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
    python_float: Any = float,
) -> Callable[
    [Callable[P, dict[str, Any]]], Callable[P, optax.GradientTransformationExtraArgs]
]:
    """Makes a dialect of a function that returns arguments of `rmsprop`.

    Beside these it may return `before`, a transformation of the gradients.

    Args:
      refuses: keywords that there is a reason to refuse, with the reason.
      python_float: what the framework makes of Python floats first, np.float32 or float
        for nothing; NumPy's and JAX's keep their dtype.
    """

    def decorate(native: Callable[P, dict[str, Any]]) -> Any:
        signature = inspect.signature(native)
        own = signature.parameters
        parameters = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
        ours = inspect.signature(rmsprop).parameters
        parameters += [
            ours[name]
            for name in Options.__annotations__
            if name != "weight_decay_mask" or "weight_decay" in own
        ]

        @functools.wraps(native)
        def build(*args: P.args, **kwargs: P.kwargs) -> Any:
            if args and _are_parameters(args[0]):
                call = f"{native.__name__}({', '.join(f'{k}=…' for k in kwargs)})"
                raise TypeError(
                    f"The first argument is a {type(args[0]).__name__}, as of "
                    f"parameters: leave it out, tx = dialects.{call}; the parameters "
                    "are what tx.init(params) gets."
                )
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()  # these are Python floats, too
            for name, value in call.arguments.items():
                _check_kind(name, value, own[name].annotation)
            rounded = partial(of_python, python_float)
            named = {name: rounded(x) for name, x in call.kwargs.items()}
            arguments = native(*map(rounded, call.args), **named)  # pyright: ignore
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

        build.__signature__ = inspect.Signature(  # pyright: ignore
            parameters, return_annotation=optax.GradientTransformationExtraArgs
        )
        return factory(build, {**_REFUSED, **refuses}, python_float=python_float)

    return decorate


def _check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raises if an argument is of none of the kinds that its annotation has.

    The dialect may round it, compare it or leave it out before `rmsprop` sees it.
    """
    kinds = get_args(annotation) or (annotation,)
    if float in kinds or int in kinds:
        # `rmsprop` says whether None or a schedule may stand there.
        if value is not None and not callable(value):
            _checks.number(name, value, "a number")
    elif bool in kinds:
        _checks.flag(name, value)
    elif str in kinds and not isinstance(value, str | None):
        raise TypeError(f"`{name}` must be a text, got {value!r}.")


def _are_parameters(value: Any) -> bool:
    """Whether a first argument is what other frameworks take there."""
    several = (Iterator, list, tuple, Mapping)
    return isinstance(value, several) or hasattr(value, "parameters")


def unless_zero(value: Any) -> Any:
    """Returns a hyperparameter, or None where it is off for good."""
    return None if is_zero(value) else value


def as_float32(value: Any) -> Any:
    """Rounds a hyperparameter, or what a schedule returns, to float32."""
    if callable(value):
        return functools.wraps(value)(lambda count: as_float32(value(count)))
    if isinstance(value, jax.Array):
        return value.astype(np.float32)
    return np.float32(value) if isinstance(value, int | float | np.ndarray) else value


def _in_native_names(message: str, own: Mapping[str, Any]) -> str:
    for ours, name in {canonical(n): n for n in reversed([*own])}.items():  # the first
        message = message.replace(f"`{ours}`", f"`{name}`")
        message = message.replace(f"`{ours}(0)`", f"`{name}(0)`")
    return message
