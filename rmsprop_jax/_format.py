"""The forms that accumulators are stored in, and how a user names them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _checks

_SIGNED = ("float32", "float64", "bfloat16")
_UNSIGNED = (*_SIGNED, "uint16", "uint8")


class Format(NamedTuple):
    """The form that an accumulator is stored in.

    Attributes:
      dtype: that of the array, or None for that of the arithmetic.
      lowest: for uint8, the exponent of the smallest number: an integer, or an array.
    """

    dtype: Any = None
    lowest: Any = -44


DEFAULT = Format()
LOWEST = DEFAULT.lowest


def uint8(lowest: float = 2.0**-44) -> Format:
    r"""One byte for `nu`, whose range can be moved: a value for `nu_dtype`.

    A code k stands for lowest · 2^⌊k/4⌋ · (1 + (k mod 4)/4): 64 octaves in steps of a
    quarter. A smaller nu, zero included, is stored as `lowest`, so steps are smaller
    than they should be, never larger; a larger one as the largest, 0.875 · 2^64 times
    that. By default that covers gradients from 2.4e-7 to 950; move it to where yours
    are. The state says in which range its codes are, so that a run goes on under
    another one.

    Rounding leaves nu its mean, but makes the mean of 1 / sqrt(nu) too large: steps
    would be longer by 1.0, 2.9 and 3.4 % at decay 0.9, 0.99 and 0.999. So the division
    takes nu times 1 + 0.071 ρ² / (1 + 19 (1 - ρ)), which leaves under 0.3 % of that for
    noisy gradients, those of trained nets among them. Where |g| never changes there is
    less to correct, and steps are up to 3.2 % too short; where nine gradients of ten
    are 0 there is more, and they are up to 2 % too long.

    Args:
      lowest: the smallest nu, in units of the squared gradient; rounded down to a
        power of 2 between 2^-126 and 2^64.

    Returns:
      The form, for `nu_dtype`.

    Raises:
      TypeError: if `lowest` is not a number.
      ValueError: if it is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, storage
      >>> tx = rmsprop(0.1, nu_dtype=storage.uint8(lowest=1e-20))
      >>> tx.init(jnp.ones(4))[0].nu.dtype
      dtype('uint8')
    """
    _checks.number("lowest", lowest, "a number")
    if np.ndim(lowest):
        raise TypeError(f"`lowest` must be one number, got {lowest!r}.")
    lowest = float(lowest)
    if not 2.0**-126 <= lowest <= 2.0**64:
        raise ValueError(
            f"`lowest` must be a number from 2**-126 to 2**64, got {lowest!r}."
        )
    return Format(jnp.dtype(jnp.uint8), math.frexp(lowest)[1] - 1)


def as_format(name: str, dtype: Any, *, unsigned: bool = False) -> Format:
    """Returns the form that a user's dtype means; None is the arithmetic's own.

    Args:
      name: the argument's name, for the error.
      dtype: a dtype, a `Format` or None.
      unsigned: whether the accumulator is never negative.

    Raises:
      TypeError: for a dtype that no accumulator can have here.
      ValueError: for float64 while JAX has 64-bit types switched off.
    """
    if dtype is None:
        return DEFAULT
    form = dtype if isinstance(dtype, Format) else None
    if form is not None and form.dtype is None:
        return form
    accepted = _UNSIGNED if unsigned else _SIGNED
    try:
        if isinstance(dtype, np.generic | np.ndarray | jax.Array):
            raise TypeError  # NumPy and JAX would take its own
        dtype = jnp.dtype(dtype if form is None else form.dtype)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a dtype ({', '.join(accepted)}) or None, got {dtype!r}."
        ) from None
    if dtype.name not in accepted:
        hint = ""
        if dtype.name in _UNSIGNED:
            hint = " It has a sign, for which these codes have no place: use bfloat16."
        raise TypeError(
            f"`{name}` is {dtype.name}; accepted are {', '.join(accepted)}.{hint}"
        )
    if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"`{name}` is float64, but JAX has 64-bit types switched off: call "
            'jax.config.update("jax_enable_x64", True) first, or use float32.'
        )
    return Format(dtype) if form is None else form


def storable(what: str, tree: Any) -> None:
    """Raises for a tree of other things than arrays, or without one that can be `nu`.

    Others, such as the buffers of integer leaves, may be beside it.
    """
    _checks.arrays(what, tree)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    found = [x for x in dtypes if jnp.issubdtype(x, jnp.inexact) or str(x) in _UNSIGNED]
    if dtypes and not found:
        raise TypeError(
            f"`{what}` has {dtypes[0]}, which is no dtype of a `nu`; those are "
            f"{', '.join(_UNSIGNED)}."
        )


def same(name: str, form: Format, what: str, tree: Any) -> None:
    """Raises if a form is given, and there are arrays, but none in it."""
    found = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    if found and form.dtype is not None and form.dtype not in found:
        raise TypeError(
            f"`{name}` is {form.dtype}, but `{what}` has {found[0]}: leave "
            f"`{name}` out, or give the one that it was made with."
        )


def is_narrow(form: Format) -> bool:
    """Whether what is stored in this form is rounded."""
    return form.dtype is not None and jnp.dtype(form.dtype).itemsize < 4


def is_code(dtype: Any) -> bool:
    """Whether numbers of a dtype are codes."""
    return jnp.dtype(dtype).name in ("uint16", "uint8")
