"""Which hyperparameters the package accepts, and errors that name the others."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_ACCEPTED = {
    "a number": lambda x: np.True_,
    "finite": np.isfinite,
    "finite and at least 0": lambda x: np.isfinite(x) & (x >= 0),
    "finite and greater than 0": lambda x: np.isfinite(x) & (x > 0),
    "in [0, 1)": lambda x: (x >= 0) & (x < 1),
    "in [0, 1]": lambda x: (x >= 0) & (x <= 1),
}


def number(name: str, value: Any, accepted: str, *, or_schedule: bool = False) -> None:
    """Raises unless `value` is a number that is, say, "in [0, 1)".

    Tracers pass, for their value is not known; so does a schedule where one may stand
    (`or_schedule`), once its value at step 0 has been looked at, where it has one here:
    a schedule may need what only a compiled step has, such as an axis with a name.
    """
    if or_schedule and callable(value):
        _takes_a_count(name, value)
        try:
            value = value(np.zeros((), np.int32))
        except Exception:
            return
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
        narrow = getattr(value, "dtype", np.dtype(float)).itemsize < 4
        if narrow and accepted == "in [0, 1)":
            message += (
                f" It came as {value.dtype}, which rounds: pass it as float32, in "
                "`optax.inject_hyperparams` with hyperparam_dtype=jnp.float32."
            )
        raise ValueError(message)


def hyperparameter(name: str, value: Any, accepted: str, **options: Any) -> None:
    """Raises for a number that a caller wrote, unless it is, say, "in [0, 1)".

    An array of JAX's passes, because it may be what a run has made of a number, as in
    population-based training; but not a narrow one, where rounding made it.
    """
    wide = isinstance(value, jax.Array) and value.dtype.itemsize >= 4
    if not (wide and value.dtype.kind in "iuf"):
        number(name, value, accepted, **options)


def inside(least: float, most: float | None, value: Any) -> Any:
    """Returns a number, or NaN where it is not from `least` to `most`, if that is."""
    accepted = (value >= least) & (True if most is None else value <= most)
    if isinstance(value, jax.Array):
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            value = value.astype(jnp.float32)
        return jnp.where(accepted, value, jnp.asarray(jnp.nan, value.dtype))
    return value if np.all(accepted) else np.where(accepted, value, np.nan)[()]


def _takes_a_count(name: str, schedule: Any) -> None:
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError):  # some functions have none
        return
    try:
        signature.bind(0)
    except TypeError as error:
        raise ValueError(
            f"`{name}` is a function, so a schedule, but does not take one argument: "
            f"{error}. A schedule maps the number of updates done, an int32 scalar, to "
            "a number."
        ) from error


def integer(name: str, value: Any, least: int, most: int) -> int:
    """Returns `value` as a Python integer, if it is an integer from least to most.

    NumPy's and JAX's scalars are accepted; True, 2.0 and "2" are not integers.
    """
    dtype = getattr(value, "dtype", np.dtype(object))
    scalar = isinstance(value, np.ndarray | np.generic | jax.Array)
    is_array = scalar and np.ndim(value) == 0 and jnp.issubdtype(dtype, jnp.integer)
    if isinstance(value, Tracer):
        raise TypeError(
            f"`{name}` must be known outside of `jax.jit`, got {value}: call this "
            "where the number is concrete."
        )
    if isinstance(value, bool) or not (isinstance(value, int) or is_array):
        raise TypeError(
            f"`{name}` must be an integer, got {value!r} ({type(value).__name__})."
        )
    whole = int(value)
    if not least <= whole <= most:
        raise ValueError(
            f"`{name}` must be an integer from {least} to {most}, got {whole}."
        )
    return whole


def flag(name: str, value: Any) -> None:
    """Raises unless `value` is a truth value or None, which counts as False.

    Another number than 0 and 1 here is a slipped argument.
    """
    given = value
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if is_array and not isinstance(value, Tracer) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if not isinstance(value, bool | int | float | None) or value not in (None, 0, 1):
        raise TypeError(f"`{name}` must be True or False, got {given!r}.")


def arrays(name: str, tree: Any) -> None:
    """Raises for the first leaf of `tree` that is no array, and no shape of one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "size")):
            raise TypeError(
                f"`{name}` must be a tree of arrays, got {leaf!r} at "
                f"{jax.tree_util.keystr(path) or 'its root'}."
            )


def instance(name: str, value: Any, kind: Any, wanted: str) -> None:
    """Raises unless `value` is of a class, or one of several."""
    if not isinstance(value, kind):
        raise TypeError(
            f"`{name}` must be {wanted}, got {value!r:.80} ({type(value).__name__})."
        )


def transformation(name: str, value: Any) -> None:
    """Raises unless `value` is a transformation, not the function that makes one."""
    if not callable(getattr(value, "init", None)):
        raise TypeError(
            f"`{name}` must be a transformation, such as rmsprop(0.1), got {value!r}."
        )


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is off for good: not where it is an array, or traced."""
    return isinstance(value, int | float | np.generic) and value == 0


def is_normal(value: Any) -> bool:
    """Whether a number is known, and not under float64's and float32's normal ones."""
    if value is None or isinstance(value, jax.Array):
        return False
    return bool(np.all(np.asarray(value) >= np.finfo(np.float32).tiny))


def at_least_float32(value: Any) -> Any:
    """Returns an array of a narrower float dtype as float32, anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        dtype = jnp.result_type(value)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            return jnp.asarray(value, jnp.float32)
    return value
