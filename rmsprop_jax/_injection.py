"""What `optax.inject_hyperparams` needs in order to hand hyperparameters on whole.

It binds a call to the factory's signature and asks for the defaults:
https://github.com/google-deepmind/optax/blob/v0.2.8/optax/schedules/_inject.py#L146
Then it casts Python floats to the dtype of the parameters, where bfloat16 makes 1.0 of
a decay of 0.999 (`_convert_floats`, line 30; strongly typed arrays stay as they are),
and takes everything callable for a schedule, `jnp.float32` and functions that are masks
included (line 155). Written for Optax 0.2.8; the test is
`test_injected_decay_stays_what_it_is_under_bfloat16`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _checks

A_HALF = 0.5
"""In the place of a schedule where a call is looked at: inside the range of each."""


class HyperparameterSignature(inspect.Signature):
    """The signature of a factory; an ordinary one until defaults are applied."""

    factory: Callable[..., Any] | None = None  # whose signature it is
    refuse: Callable[[dict[str, Any]], None] | None = None  # raises for keywords
    python_float: Any = float  # the dtype of Python floats

    def replace(self, **changes: Any) -> "HyperparameterSignature":
        """Returns the signature changed, as of a `functools.partial`."""
        changed = super().replace(**changes)
        changed.factory, changed.refuse = self.factory, self.refuse
        changed.python_float = self.python_float
        return changed

    __replace__ = replace

    def bind(self, *args: Any, **kwargs: Any) -> "HyperparameterArguments":
        """Returns the arguments that are given, as they are."""
        if self.refuse is not None:
            self.refuse(kwargs)
        return HyperparameterArguments(self, super().bind(*args, **kwargs).arguments)


class HyperparameterArguments(inspect.BoundArguments):
    """Bound arguments whose floats become wide arrays once defaults are applied."""

    def apply_defaults(self) -> None:
        """Adds the defaults, and makes of all what `inject_hyperparams` keeps whole.

        Numbers out of their range raise here as they do in the call itself: the arrays
        that the factory gets later are what a run made of them, which it accepts.
        """
        given = set(self.arguments)
        super().apply_defaults()
        arguments = self.arguments
        signature = cast(HyperparameterSignature, self.signature)
        factory, dtype = signature.factory, signature.python_float
        if factory is not None and _complete(factory, arguments):
            factory(
                **{n: A_HALF if _scheduled(n, x) else x for n, x in arguments.items()}
            )
        for name, value in arguments.items():
            if _scheduled(name, value):
                if not isinstance(value, optax.schedules.StatefulSchedule):
                    arguments[name] = _with_wide_values(value, dtype)
            elif name.endswith("_mask") and callable(value):
                arguments[name] = Hidden(value)
            elif callable(value):
                arguments[name] = jnp.dtype(cast(Any, value))
            elif name == "seed" and name not in given:
                # NumPy's integers are not injected: the state has what Optax's has.
                arguments[name] = np.int64(value)
            else:
                arguments[name] = _strongly_typed(value, dtype)


class Hidden(NamedTuple):
    """Hides a function that is no schedule from `optax.inject_hyperparams`."""

    function: Callable[..., Any]


def _scheduled(name: str, value: Any) -> bool:
    """Whether `value` is a function of the step, and no mask or dtype."""
    return callable(value) and not name.endswith(("_mask", "_dtype"))


def _complete(factory: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """Whether a call has all that it needs: that of a partial may not."""
    parameters = inspect.signature(factory).parameters.values()
    return all(p.name in arguments for p in parameters if p.default is p.empty)


def _strongly_typed(value: Any, python_float: Any) -> Any:
    value = _checks.at_least_float32(of_python(python_float, value))
    if isinstance(value, float | np.floating):
        return jnp.asarray(value, float)
    # A schedule's result is weakly typed where it came from Python numbers.
    return value.astype(value.dtype) if isinstance(value, jax.Array) else value


def of_python(dtype: Any, value: Any) -> Any:
    """Rounds a Python float, or what a schedule makes of them, to `dtype`."""
    if dtype is float:
        return value
    if callable(value):
        return functools.wraps(value)(lambda count: of_python(dtype, value(count)))
    if type(value) is float:
        return dtype(value)
    weak = isinstance(value, jax.Array) and getattr(value, "weak_type", False)
    # Python integers stay what they are: a seed, for example.
    rounds = weak and jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(dtype) if rounds else value


def _with_wide_values(
    schedule: Callable[..., Any], python_float: Any
) -> Callable[..., Any]:
    return functools.wraps(schedule)(
        lambda *args: _strongly_typed(schedule(*args), python_float)
    )
