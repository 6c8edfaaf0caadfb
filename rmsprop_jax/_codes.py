"""Codes for numbers that are never negative: the top bits of float32's pattern.

They are unsigned floats without a sign bit. In uint16 there is float32's whole range
with 8 bits of mantissa (bfloat16 has 7), in uint8 64 octaves with 2 bits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _format
from ._format import LOWEST, Format, is_code
from ._state import RmsState

_BIAS = 127  # float32 has 2^e as e + 127, above 23 bits of mantissa


def decode(tree: Any, nu_dtype: Any = None) -> Any:
    """Returns a state, or a `nu`, with float32 values in the place of codes.

    A state says itself in which range its codes of one byte are; a `nu` alone does not.

    Args:
      tree: the state of any chain, whose `RmsState`s are decoded; or a tree of arrays
        without one, such as `state.nu`, all of whose uint16 and uint8 are.
      nu_dtype: for arrays without their state, the `uint8(...)` that was `nu_dtype`,
        if that was not the default.

    Returns:
      The same tree; an `RmsState` has `lowest` None then.

    Raises:
      TypeError: if `nu_dtype` is no dtype of a `nu`, or not that of any array here, or
        no array is of a dtype that a `nu` can have.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, storage
      >>> tx = rmsprop(0.1, initial_scale=0.01, nu_dtype=storage.uint8(1e-20))
      >>> state = tx.init({"w": jnp.ones(2)})
      >>> state[0].nu["w"], storage.decode(state)[0].nu["w"]
      (Array([241, 241], dtype=uint8), Array([0.00976562, 0.00976562], dtype=float32))
    """
    form = _format.as_format("nu_dtype", nu_dtype, unsigned=True)

    def of(node: Any) -> Any:
        if not isinstance(node, RmsState):
            return values(node, form.lowest)
        lowest = form.lowest if node.lowest is None else node.lowest
        nu = jax.tree.map(partial(values, lowest=lowest), node.nu)
        return node._replace(nu=nu, lowest=None)

    decoded = _of_states(of, tree)
    nus = [state.nu for state in _states_in(tree)]
    _format.same("nu_dtype", form, "tree", nus or tree)
    return decoded


def encode(tree: Any, nu_dtype: Any) -> Any:
    """Returns a state, or a `nu`, with codes in the place of values: of `decode`.

    They are the nearest ones: for a start or a file, for an average would stall.

    Args:
      tree: the state of any chain, whose `RmsState`s are encoded; or a tree of arrays
        without one, all of which are.
      nu_dtype: the form that they get, as for `rmsprop`.

    Returns:
      The same tree, which `rmsprop(..., nu_dtype=nu_dtype)` takes.
      `rmsprop_jax.convert.migrate` makes a state of one of Optax's, and of one with
      other options.

    Raises:
      TypeError: if `nu_dtype` is no dtype of a `nu`, an array is of codes already, or
        the tree is a state of Optax's.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import storage
      >>> storage.encode({"w": jnp.asarray([0.01, 1.0])}, "uint8")
      {'w': Array([149, 176], dtype=uint8)}
    """
    form = _format.as_format("nu_dtype", nu_dtype, unsigned=True)
    of_optax = list(filter(_is_optax, jax.tree.leaves(tree, is_leaf=_is_optax)))
    if of_optax and not _states_in(tree):
        raise TypeError(
            f"`tree` has a {type(of_optax[0]).__name__}, whose nu is never of codes: "
            "`rmsprop_jax.convert.migrate(state, tx, params)` makes a state of it."
        )

    def stored(value: Any) -> Any:
        if is_code(value.dtype):
            raise TypeError(f"`tree` has {value.dtype}: `decode` it first.")
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return value  # the buffer of an integer leaf
        return nearest(value, form)

    def of(node: Any) -> Any:
        if not isinstance(node, RmsState):
            return stored(node)
        node = decode(node)
        lowest = jnp.full_like(node.count, form.lowest) if _is_byte(form) else None
        return node._replace(nu=jax.tree.map(stored, node.nu), lowest=lowest)

    return _of_states(of, tree)


def _of_states(function: Any, tree: Any) -> Any:
    """Maps the states of RMSProp in a tree; where there are none, its arrays."""
    states = _states_in(tree)
    if not states:
        _format.storable("tree", tree)
    return jax.tree.map(
        lambda x: function(x) if _is_state(x) or not states else x,
        tree,
        is_leaf=_is_state,
    )


def _states_in(tree: Any) -> list[RmsState]:
    return list(filter(_is_state, jax.tree.leaves(tree, is_leaf=_is_state)))


def _is_state(node: Any) -> bool:
    return isinstance(node, RmsState)


def _is_optax(node: Any) -> bool:
    return isinstance(node, optax.ScaleByRmsState | optax.ScaleByAdamState)


def lowest_of(form: Format) -> jax.Array | None:
    """Returns what a state says of the form of its `nu`."""
    return jnp.asarray(form.lowest, jnp.int32) if _is_byte(form) else None


def range_of(state: RmsState, form: Format) -> jax.Array | None:
    """Returns the exponent of the smallest number that `nu` was written with.

    Raises:
      ValueError: if it has codes of one byte and does not say so.
    """
    if state.lowest is None and _is_byte(form):
        raise ValueError(
            "The state's nu is uint8, but its `lowest`, the range of these codes, is "
            "None: it is of rmsprop_jax 0.1, or was made by hand. Make a state of it "
            "with `rmsprop_jax.convert.migrate(state, tx, params, old_nu_dtype=...)`, "
            "where that is the `nu_dtype` that it was written with."
        )
    return state.lowest


def _is_byte(form: Format) -> bool:
    return form.dtype is not None and jnp.dtype(form.dtype) == jnp.uint8


def values(stored: Any, lowest: Any = LOWEST) -> jax.Array:
    """Returns the float32 values of codes; another array as it is.

    Args:
      stored: an array.
      lowest: for uint8, the exponent of the smallest number: an integer, or an array of
        one for each array that is stacked in `stored`.
    """
    if not is_code(stored.dtype):
        return stored
    code = stored.astype(jnp.uint32)
    if stored.dtype == jnp.uint8:
        offset = 4 * (jnp.asarray(lowest, jnp.int32) + _BIAS)
        offset = offset.reshape(*offset.shape, *[1] * (stored.ndim - offset.ndim))
        code += offset.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(code << shift(stored.dtype), jnp.float32)


def nearest(value: Any, form: Format) -> jax.Array:
    """Returns a value in a form, rounded to nearest."""
    if form.dtype is None or not is_code(form.dtype):
        return jnp.asarray(value, form.dtype)
    value = jnp.asarray(value, jnp.float32)
    return encoded(value, jnp.uint32(1 << (shift(form.dtype) - 1)), form)


def encoded(value: jax.Array, below: Any, form: Format) -> jax.Array:
    """Returns the code of a float32, with `below` added under the bits it keeps."""
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32) + below
    code = (pattern >> shift(form.dtype)).astype(jnp.int32)
    if _is_byte(form):
        code -= 4 * (form.lowest + _BIAS)
    return jax.lax.platform_dependent(
        code,
        tpu=partial(_narrowed_as_float, form.dtype),
        default=partial(_narrowed, form.dtype),
    )


def moved(stored: jax.Array, lowest: Any, form: Format) -> jax.Array:
    """Returns codes of one byte, written from 2^`lowest` on, in another range."""
    if stored.dtype != jnp.uint8:  # the buffer of an integer leaf
        return stored
    code = stored.astype(jnp.int32) + 4 * (lowest - form.lowest)
    return _narrowed(stored.dtype, code)


def shift(dtype: Any) -> int:
    """Returns how many bits of float32's pattern a code leaves out."""
    return 15 if jnp.dtype(dtype) == jnp.uint16 else 21


def _narrowed(dtype: Any, code: jax.Array) -> jax.Array:
    """Returns codes in a dtype, clipped to it."""
    return jnp.clip(code, 0, int(jnp.iinfo(dtype).max)).astype(dtype)


def _narrowed_as_float(dtype: Any, code: jax.Array) -> jax.Array:
    """The same; but of this XLA makes one kernel on TPUs, of integers two."""
    return jnp.clip(code.astype(jnp.float32), 0, float(jnp.iinfo(dtype).max)).astype(
        dtype
    )
