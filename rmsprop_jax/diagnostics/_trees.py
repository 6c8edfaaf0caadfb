"""Where the accumulators are in a tree of states, and what their leaves are called."""

from typing import Any

import jax
import optax

from ..convert._record import STATES, path_name


def names(state: optax.OptState) -> list[str]:
    """Returns the names of the leaves of a `Diagnostics`, such as "Dense_0/kernel".

    Args:
      state: the optimizer's state.
    """
    return list(accumulators(state)[0])


def accumulators(state: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns all `nu`, and all `mu` where centred, by the name of their leaf.

    The third are the exponents where the ranges of one-byte codes begin.
    """
    found = [node for node in jax.tree.leaves(state, is_leaf=_is_rms) if _is_rms(node)]
    if not found:
        raise ValueError(
            "`state` has no state of RMSProp: pass what `init` or `update` of "
            "`rmsprop`, `scale_by_rms` or a chain with one of them returned."
        )
    nus, mus, lowest = {}, {}, {}
    for node in found:
        named = by_path(node.nu)
        nus |= named
        mus |= by_path(getattr(node, "mu", None))
        if getattr(node, "lowest", None) is not None:
            lowest |= dict.fromkeys(named, node.lowest)
    return nus, mus, lowest


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves by name; None and what is masked has none."""
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def bytes_by_leaf(state: Any, nus: dict[str, Any]) -> list[int]:
    """Returns the bytes of the arrays whose path ends in each leaf's."""
    sizes = dict.fromkeys(nus, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        ends = [path_name(path[i:]) for i in range(len(path) + 1)]
        name = next((end for end in ends if end in nus), None)  # the longest one
        if name is not None and leaf.shape == nus[name].shape:
            sizes[name] += leaf.size * leaf.dtype.itemsize
    return list(sizes.values())


def _is_rms(node: Any) -> bool:
    """Whether a node is a state of RMSProp: ours, or one of Optax's four."""
    return isinstance(node, STATES)
