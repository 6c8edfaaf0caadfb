"""What the package accepts, and errors that name what it does not."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

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


def factory(function: Callable[P, T]) -> Callable[P, T]:
    """Wraps a function of hyperparameters for the callers that it has.

    A keyword that is not an argument raises a `TypeError` that says which one is
    meant, and whoever binds the signature in order to hand the hyperparameters on as
    arrays (`optax.inject_hyperparams`) gets numbers that keep their value.
    """
    signature = _HyperparameterSignature.from_callable(function)
    signature.function = function.__name__

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        _refuse_foreign_names(signature, kwargs)
        return function(*args, **kwargs)

    wrapper.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper


class _HyperparameterSignature(inspect.Signature):
    """A signature that binds every float in float32 or wider, and dtypes as dtypes.

    `optax.inject_hyperparams` binds the call, then casts Python floats to the dtype of
    the parameters, where bfloat16 makes 1.0 of a decay of 0.999; it leaves arrays as
    they are. It also takes anything callable for a schedule, `jnp.float32` included.
    """

    function: str

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        _refuse_foreign_names(self, kwargs)
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name.endswith("_dtype"):
                bound.arguments[name] = None if value is None else jnp.dtype(value)
            elif callable(value):
                bound.arguments[name] = _with_wide_values(value)
            else:
                bound.arguments[name] = _strongly_typed(value)
        return bound


def at_least_float32(value: Any) -> Any:
    """Returns an array of a narrower float dtype as float32, anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        dtype = jnp.result_type(value)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            return jnp.asarray(value, jnp.float32)
    return value


def _strongly_typed(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return jnp.asarray(value, float)
    value = at_least_float32(value)
    # A schedule's result is weakly typed where it came from Python numbers.
    return value.astype(value.dtype) if isinstance(value, jax.Array) else value


def _with_wide_values(schedule: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(schedule)(lambda *args: _strongly_typed(schedule(*args)))


def _refuse_foreign_names(
    signature: _HyperparameterSignature, keywords: dict[str, Any]
) -> None:
    for name in keywords:
        if name in signature.parameters:
            continue
        meant = FOREIGN_NAMES.get(name)
        if meant is None:
            close = difflib.get_close_matches(name, signature.parameters, 1)
            meant = close[0] if close else None
        if meant is None:
            advice = "It takes " + ", ".join(f"`{p}`" for p in signature.parameters)
        elif meant in signature.parameters:
            advice = f"Here it is called `{meant}`"
        else:
            advice = f"It is `{meant}` of `rmsprop_jax.rmsprop`"
        raise TypeError(f"{signature.function} has no argument `{name}`. {advice}.")


_ACCEPTED = {
    "finite": np.isfinite,
    "finite and at least 0": lambda x: np.isfinite(x) & (x >= 0),
    "finite and greater than 0": lambda x: np.isfinite(x) & (x > 0),
    "in [0, 1)": lambda x: (x >= 0) & (x < 1),
    "in [0, 1]": lambda x: (x >= 0) & (x <= 1),
}


def number(name: str, value: Any, accepted: str, *, or_schedule: bool = False) -> None:
    """Raises unless `value` is a number that is, say, "in [0, 1)".

    Tracers pass, for their value is not known; so does a schedule where one may stand
    (`or_schedule`), once its value at step 0 has been looked at.
    """
    if or_schedule and callable(value):
        try:
            value = value(np.zeros((), np.int32))
        except Exception as error:
            raise ValueError(
                f"`{name}` is a function, so a schedule, but {name}(0) raised "
                f"{type(error).__name__}: {error}. A schedule maps the number of "
                "updates done, an int32 scalar, to a number."
            ) from error
        name = f"{name}(0)"
    if isinstance(value, Tracer):
        return
    kinds = int | float | np.ndarray | np.generic | jax.Array
    if not isinstance(value, kinds) or np.asarray(value).dtype.kind in "bOUSmMc":
        wanted = "a number or a schedule" if or_schedule else "a number"
        got = value.dtype if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"`{name}` must be {wanted}, got {value!r} ({got}).")
    if not _ACCEPTED[accepted](np.asarray(value, np.float64)).all():
        message = f"`{name}` must be {accepted}, got {value}."
        if getattr(value, "dtype", np.dtype(float)).itemsize < 4:
            message += (
                f" It came as {value.dtype}, which rounds: pass it as float32, in "
                "`optax.inject_hyperparams` with hyperparam_dtype=jnp.float32."
            )
        raise ValueError(message)


def flag(name: str, value: Any) -> None:
    """Raises unless `value` is a truth value: a number here is a slipped argument."""
    if not isinstance(value, bool | np.bool_) and value not in (0, 1):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def floating_leaves(what: str, tree: Any) -> None:
    """Raises for the first leaf of `tree` that is not floating point or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{_where(what, path)} has dtype {dtype}; RMSProp accepts floating "
                "point and complex leaves. Leave others out: optax.masked or "
                "optax.partition, or `wrt=nnx.Param` in Flax NNX."
            )


def same_tree(what: str, tree: Any, other: str, reference: Any) -> None:
    """Raises unless `tree` has the leaves of `reference`, of the same shapes.

    None in `tree` stands for a leaf without a value and fits anywhere.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    try:
        references = treedef.flatten_up_to(reference)
    except ValueError as error:
        ours = {jax.tree_util.keystr(path) for path, _ in leaves}
        theirs = {
            jax.tree_util.keystr(path)
            for path, _ in jax.tree_util.tree_leaves_with_path(reference)
        }
        differences = [
            f"{label} {', '.join(sorted(names)[:8])}"
            for label, names in (("missing:", theirs - ours), ("extra:", ours - theirs))
            if names
        ] or [f"the containers differ: {error}"]
        raise ValueError(
            f"The tree of the {what} is not that of the {other}: "
            f"{'; '.join(differences)}. Pass {what} for the parameters that `init` got."
        ) from None
    for (path, leaf), like in zip(leaves, references, strict=True):
        if leaf is not None and jnp.shape(leaf) != jnp.shape(like):
            raise ValueError(
                f"{_where(what, path)} has shape {jnp.shape(leaf)}, but the {other} "
                f"there has shape {jnp.shape(like)}. Pass {what} for the parameters "
                "that `init` got."
            )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _where(what: str, path: Any) -> str:
    return f"{what}{jax.tree_util.keystr(path)}"
