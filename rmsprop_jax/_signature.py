"""What wraps every function of hyperparameters that a user calls."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from ._injection import Hidden, HyperparameterSignature

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
    "caution": "cautious",
}


def factory(
    function: Callable[P, T],
    refusals: Mapping[str, str] = MappingProxyType({}),
    *,
    like: Callable[..., Any] | None = None,
    python_float: Any = float,
) -> Callable[P, T]:
    """Wraps a function of hyperparameters for the callers that it has.

    A keyword that is not an argument raises a `TypeError` that says which one is
    meant, and `optax.inject_hyperparams` gets numbers that keep their value.

    Args:
      function: what to wrap.
      refusals: keywords that there is a reason to refuse, with the reason.
      like: the function of the same name in Optax. Who reads annotations at run time,
        as Optax's own tests do, finds Optax's for Optax's arguments; type checkers read
        those in the source, which also accept what is accepted here only.
      python_float: the dtype that the function makes of Python floats.
    """
    own = inspect.signature(function)
    theirs = inspect.signature(like).parameters if like else {}
    parameters = [
        p.replace(annotation=theirs[name].annotation) if name in theirs else p
        for name, p in own.parameters.items()
    ]
    returned = own.return_annotation
    signature = HyperparameterSignature(parameters, return_annotation=returned)
    refuse = partial(_refuse_foreign_names, function.__name__, signature, refusals)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse(kwargs)
        for name, value in kwargs.items():
            if isinstance(value, Hidden):
                kwargs[name] = value.function
        return function(*args, **kwargs)

    signature.factory, signature.refuse = wrapper, refuse
    signature.python_float = python_float
    wrapper.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__annotations__["return"] = returned
    return wrapper


def canonical(name: str) -> str:
    """Returns what `rmsprop` calls an argument that another framework calls `name`."""
    return FOREIGN_NAMES.get(name, name)


def _refuse_foreign_names(
    function: str,
    signature: inspect.Signature,
    refusals: Mapping[str, str],
    keywords: dict[str, Any],
) -> None:
    for name in keywords:
        if name in signature.parameters:
            continue
        meant = [p for p in signature.parameters if canonical(p) == canonical(name)]
        meant += difflib.get_close_matches(name, signature.parameters, 1)
        if name in refusals:
            advice = refusals[name]
        elif name in FOREIGN_NAMES and not meant:
            advice = f"It is `{canonical(name)}` of `rmsprop_jax.rmsprop`"
        elif meant:
            advice = f"Here it is called `{meant[0]}`"
        else:
            advice = "It takes " + ", ".join(f"`{p}`" for p in signature.parameters)
        raise TypeError(f"{function} has no argument `{name}`. {advice}.")
