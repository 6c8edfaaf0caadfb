"""Where the accumulators are in a tree of states, and what their leaves are called."""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._leaves import name_of
from .._matching import is_none, is_number
from .._placement import axes_of, sharding_of, spec_of
from ..convert._record import STATES
from ..sharding import _parts

Key = tuple[str, ...]


class Accumulators(NamedTuple):
    """What the states of RMSProp in a tree have, by the path of each leaf in words.

    Attributes:
      nu: all of them.
      mu: those of states that are centred.
      lowest: for codes of one byte the smallest's exponent, where a state says it.
    """

    nu: dict[Key, Any]
    mu: dict[Key, Any]
    lowest: dict[Key, Any]


class _Moments(NamedTuple):
    """A state of RMSProp whose class is lost."""

    nu: Any
    mu: Any = None
    lowest: Any = None


def names(state: Any) -> list[str]:
    """Returns the names of the leaves of a `Diagnostics`, such as "Dense_0/kernel".

    Args:
      state: the optimizer's state, or what holds it: as for `table`.
    """
    return called(accumulators(state_in(state)).nu)


def called(keys: Any) -> list[str]:
    """Returns names of leaves, of which no two are the same, nor "total"."""
    plain = ["/".join(key) for key in keys]
    return [
        "/".join(repr(part) if "/" in part or name == "total" else part for part in key)
        if plain.count(name) > 1 or name == "total"
        else name
        for key, name in zip(keys, plain, strict=True)
    ]


def state_in(holder: Any) -> Any:
    """Returns the state that an `nnx.Optimizer` or a `TrainState` has, of arrays."""
    return pure(getattr(holder, "opt_state", holder))


def pure(tree: Any) -> Any:
    """Returns a tree with arrays in the places of Flax NNX's variables."""
    nnx = sys.modules.get("flax.nnx")
    return tree if nnx is None else nnx.as_pure(tree)


def field_of(node: Any, name: str) -> Any:
    """Returns a field of a state, which a mapping of Flax NNX's may stand for."""
    if isinstance(node, Mapping):
        return node.get(name)
    return getattr(node, name, None)


def nodes(state: Any, *fields: str) -> list[Any]:
    """Returns the nodes of a state that have these fields, the outermost ones."""

    def has(node: Any) -> bool:
        return all(field_of(node, name) is not None for name in fields)

    return list(filter(has, jax.tree.leaves(state, is_leaf=has)))


def accumulators(state: Any, *, with_classes: bool = False) -> Accumulators:
    """Returns the accumulators of all states of RMSProp in a tree, which is `pure`.

    Args:
      state: the tree.
      with_classes: whether what has no class has to be told from a state of Adam.

    Raises:
      ValueError: if there is none, or two have one leaf, or nothing tells whose it is.
    """
    found: list[Any] = [
        x for x in jax.tree.leaves(state, is_leaf=_is_rms) if _is_rms(x)
    ]
    if not found:  # what `nnx.state` returns has no classes
        for node in nodes(state, "nu"):
            if not isinstance(node, Mapping):
                continue
            if with_classes and field_of(node, "mu") is not None:
                raise ValueError(
                    "`state` has `nu` and `mu` in a mapping, as `nnx.state` makes one "
                    "of a state of centred RMSProp, but also of Adam's: pass the "
                    "`opt_state` itself, or `nnx.as_pure(opt_state)`."
                )
            found.append(_Moments(*(field_of(node, x) for x in _Moments._fields)))
    if not found:
        raise ValueError(
            "`state` has no state of RMSProp: pass what `init` or `update` of "
            "`rmsprop`, `scale_by_rms` or a chain with one of them returned."
        )
    nus, mus, lowest = {}, {}, {}
    for node in found:
        named = by_key("state", node.nu)
        twice = [key for key in named if key in nus]
        if twice:
            raise ValueError(
                f"`state` has {len(found)} states of RMSProp, and more than one has a "
                f"`nu` for the leaf {'/'.join(twice[0])!r}: pass them one at a time."
            )
        nus |= named
        mus |= by_key("state", getattr(node, "mu", None))
        if getattr(node, "lowest", None) is not None:
            lowest |= dict.fromkeys(named, node.lowest)
    return Accumulators(nus, mus, lowest)


def by_key(what: str, tree: Any) -> dict[Key, Any]:
    """Returns the leaves by their paths in words; what is masked has none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {name_of(path): leaf for path, leaf in leaves}
    if len(found) < len(leaves):
        raise ValueError(
            f"`{what}` has two leaves of one name: rename one of "
            f"{', '.join(jax.tree_util.keystr(path) for path, _ in leaves[:20])}."
        )
    return found


def beside(what: str, tree: Any, nus: dict[Key, Any]) -> dict[Key, Any]:
    """Returns the leaf of a tree for each `nu`; None where the tree has None there.

    A leaf without a `nu`, which another optimizer may have, is left out.

    Raises:
      ValueError: if the tree has no leaf for a `nu`, or one of another shape.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(pure(tree), is_leaf=_is_absent)
    leaves = {name_of(path): leaf for path, leaf in paths}
    in_parts = _may_be_in_parts(nus)
    found: dict[Key, Any] = {}
    for key, nu in nus.items():
        name = "/".join(key) or "the parameter"
        if key not in leaves:
            raise ValueError(
                f"`{what}` has no leaf for {name}, of which the state has a `nu` of "
                f"shape {nu.shape}: pass {what} for the parameters that `init` got."
            )
        leaf: Any = None if _is_absent(leaves[key]) else leaves[key]
        found[key] = leaf
        if leaf is None:
            continue
        dtype = jnp.result_type(leaf) if is_number(leaf) else np.dtype(object)
        if dtype != nu.dtype and not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`{what}` has {dtype} for {name}, of which the state has a `nu`: pass "
                f"{what} of floating point."
            )
        if np.shape(leaf) == nu.shape:
            continue
        if not (in_parts and _is_padded(nu, leaf)):
            raise ValueError(
                f"`{what}` has shape {np.shape(leaf)} for {name}, but `nu` has "
                f"{nu.shape}: pass {what} for the parameters that `init` got, whole."
            )
    return found


def refuse_padding(nus: dict[Key, Any]) -> None:
    """Raises where padding would count, since nothing beside the state tells of it."""
    if nus and _may_be_in_parts(nus) and all(any(spec_of(x)) for x in nus.values()):
        raise ValueError(
            "`state` looks like one of `sharding.zero`, whose arrays are flat, in "
            f"parts and padded to a multiple of {_parts.BLOCK}: give `params`, whose "
            "sizes tell what is padding, or put `watch` inside of `zero`."
        )


def bytes_by_leaf(state: Any, nus: dict[Key, Any]) -> list[int]:
    """Returns the bytes of the arrays whose path ends in each leaf's."""
    sizes = dict.fromkeys(nus, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        ends = [name_of(path[i:]) for i in range(len(path) + 1)]
        name = next((end for end in ends if end in nus), None)  # the longest one
        if name is not None and leaf.shape == nus[name].shape:
            sizes[name] += leaf.size * leaf.dtype.itemsize
    return list(sizes.values())


def _may_be_in_parts(nus: dict[Key, Any]) -> bool:
    """Whether all are flat and padded, as those of `sharding.zero` are."""
    return all(x.ndim == 1 and x.size % _parts.BLOCK == 0 for x in nus.values())


def _is_padded(nu: Any, leaf: Any) -> bool:
    """Whether `nu` has the size that `sharding.zero` pads that of a leaf to."""
    if any(spec_of(leaf)):
        return False
    at = sharding_of(nu)
    devices = 1  # or another power of 2, up to `BLOCK`
    if at is not None:
        devices = math.prod(at.mesh.shape[x] for x in axes_of(at.spec, 1)[0])
    return _parts.part_size(np.size(leaf), devices) * devices == nu.size


def _is_absent(leaf: Any) -> bool:
    return is_none(leaf) or isinstance(leaf, optax.MaskedNode)


def _is_rms(node: Any) -> bool:
    """Whether a node is a state of RMSProp: ours, or one of Optax's four."""
    return isinstance(node, STATES)
