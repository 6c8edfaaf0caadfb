"""The leaves of any trees by name, as a checkpoint keeps them, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from flax import nnx
from jax.core import Tracer

from .._leaves import name_of

Name = tuple[str, ...]

_SHOWN = 6  # differences that an error lists


def state_of(tree: Any) -> Any:
    """Returns the arrays of an NNX object, in which one may stand in two places."""
    return nnx.state(tree) if isinstance(tree, nnx.Pytree) else tree


def named(trees: Mapping[str, Any]) -> dict[Name, Any]:
    """Returns the leaves of trees by name; an NNX variable's `value` is not part of it.

    Raises:
      ValueError: if two leaves have one name where Orbax writes them.
    """
    leaves, dotted = {}, set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(trees)):
        name = name_of(path)
        if ".".join(name) in dotted:
            raise ValueError(f"Two leaves have one name, {'.'.join(name)}: rename one.")
        dotted.add(".".join(name))
        leaves[name] = leaf
    return leaves


def check(leaves: Mapping[Name, Any], *, with_values: bool = True) -> None:
    """Raises for the first leaf that a checkpoint cannot hold.

    Args:
      leaves: the leaves by name.
      with_values: whether a shape without values is such a leaf.

    Raises:
      TypeError: with the leaf's name, what it is and what to do.
      RuntimeError: if an array was donated or deleted.
    """
    for name, leaf in leaves.items():
        reason = _unwritable(leaf, with_values)
        if reason:
            raise TypeError(f"{'.'.join(name)} {reason}")
        if with_values and isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise RuntimeError(
                f"{'.'.join(name)} is an array that was deleted, or donated to a "
                "compiled function: give what that function returned."
            )


def _unwritable(leaf: Any, with_values: bool) -> str | None:
    if isinstance(leaf, Tracer):
        return "is traced: call this outside of `jax.jit`, `jax.grad` and the like."
    if is_abstract(leaf):
        return "is a shape without values: give an array." if with_values else None
    if is_key(leaf):
        return None
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not isinstance(
        leaf, jax.Array | np.ndarray | np.generic | complex | int | float
    ):
        what = f"is a {type(leaf).__name__}, {str(leaf)[:60]!r}"
    elif not (jnp.issubdtype(dtype, np.number) or np.dtype(dtype).kind == "b"):
        what = f"has dtype {dtype}"
    else:
        try:
            tensorstore.dtype(dtype)
        except (TypeError, ValueError):
            return f"has dtype {dtype}, which Orbax cannot write: give another."
        return None
    return (
        f"{what}: a checkpoint holds arrays and numbers. Save the arrays alone, of an "
        "Equinox model `eqx.filter(model, eqx.is_array)`, and keep the rest in the "
        "code or in `position`."
    )


def to_write(leaves: Mapping[Name, Any]) -> dict[str, Any]:
    """Returns the leaves as nested dictionaries of what Orbax can write.

    Random keys become their data; arrays without elements, which it refuses, go.
    """
    return nested(
        {
            name: jax.random.key_data(leaf) if is_key(leaf) else _as_array(leaf)
            for name, leaf in leaves.items()
            if _size(leaf)
        }
    )


def to_read(leaves: Mapping[Name, Any]) -> dict[str, Any]:
    """Returns what Orbax shall make, as nested dictionaries: where, and of what dtype.

    What is on no particular device is read as NumPy's, for `replaced` to place.
    """
    return nested({n: _target(leaf) for n, leaf in leaves.items() if _size(leaf)})


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Name]:
    """Returns the names of leaves that two such dictionaries do not have alike."""
    one, other = flat(saved), flat(wanted)
    return [
        name
        for name in dict.fromkeys((*other, *one))
        if name not in one
        or name not in other
        or _described(one[name]) != _described(other[name])
    ]


def in_words(
    names: list[Name], saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
    """Returns the first differences in words, and how many there are beside."""
    one, other = flat(saved), flat(wanted)

    def said(name: Name) -> str:
        if name not in one:
            was = "was not saved"
        else:
            was = f"was saved as {_described(one[name])}"
        if name not in other:
            return f"{'.'.join(name)} {was}, and is not expected"
        return f"{'.'.join(name)} {was}, expected is {_described(other[name])}"

    words = [said(name) for name in names[:_SHOWN]]
    more = len(names) - len(words)
    return [*words, f"and {more} more"] if more else words


def replaced(trees: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns trees with the leaves that Orbax read, in their places."""
    arrays, leaves = flat(found), named(trees)
    treedef = jax.tree_util.tree_structure(dict(trees))
    return treedef.unflatten(
        [_back(arrays.get(name), leaf) for name, leaf in leaves.items()]
    )


def _back(array: Any, leaf: Any) -> Any:
    """Returns an array that was read as the kind of thing that `leaf` is."""
    if array is None:  # it has no elements
        return jnp.zeros(leaf.shape, leaf.dtype) if is_abstract(leaf) else leaf
    if is_key(leaf):
        key = jax.random.wrap_key_data(
            jnp.asarray(array), impl=key_implementation(leaf)
        )
        return key if _sharding(leaf) is None else jax.device_put(key, _sharding(leaf))
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(array.item())
    if isinstance(leaf, jax.Array) or is_abstract(leaf):
        return jnp.asarray(array)
    return array


def _target(leaf: Any) -> Any:
    sharding = _sharding(leaf)
    if is_key(leaf):
        leaf, sharding = jax.eval_shape(jax.random.key_data, leaf), None
    elif not (isinstance(leaf, jax.Array) or is_abstract(leaf)):
        leaf = _as_array(leaf)
    if sharding is not None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # no memory


def _sharding(leaf: Any) -> Any:
    placed = is_abstract(leaf) or getattr(leaf, "committed", False)
    return leaf.sharding if placed else None


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf is a shape without values."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)


def key_implementation(key: Any) -> str:
    """Returns the name of the generator of a key, which may be abstract."""
    names = []
    jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), key)
    return names[0]


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _size(leaf: Any) -> int:
    return leaf.size if hasattr(leaf, "size") else np.size(leaf)


def _described(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def nested(leaves: Mapping[Name, Any]) -> dict[str, Any]:
    """Returns leaves by name as nested dictionaries."""
    tree: dict[str, Any] = {}
    for (*parents, last), leaf in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flat(tree: Mapping[str, Any], start: Name = ()) -> dict[Name, Any]:
    """Returns the leaves of nested dictionaries by name."""
    leaves: dict[Name, Any] = {}
    for key, value in tree.items():
        name = (*start, key)
        leaves |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return leaves
