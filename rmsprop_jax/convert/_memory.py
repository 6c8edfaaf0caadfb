"""Which memory of its device an array lies in: that of the device, or of the host."""

from typing import Any

import jax

from ._elements import map_accumulators


def in_default_memory(state: Any) -> Any:
    """Returns a state in the memory that computations read."""

    def moved(leaf: Any) -> Any:
        if not _is_elsewhere(leaf):
            return leaf
        return jax.device_put(leaf, leaf.sharding.with_memory_kind(_default(leaf)))

    return jax.tree.map(moved, state)


def in_memory_of(given: Any, state: Any) -> Any:
    """Returns a state whose accumulators are on the host where those given were."""
    kinds: dict[str, str] = {}

    def seen(name: str, leaf: Any) -> Any:
        if _is_elsewhere(leaf):
            kinds[name] = leaf.sharding.memory_kind
        return leaf

    def moved(name: str, leaf: Any) -> Any:
        if name not in kinds or _is_elsewhere(leaf):
            return leaf
        return jax.device_put(leaf, leaf.sharding.with_memory_kind(kinds[name]))

    map_accumulators(seen, given)
    return map_accumulators(moved, state)


def _is_elsewhere(leaf: Any) -> bool:
    kind = getattr(getattr(leaf, "sharding", None), "memory_kind", None)
    return kind is not None and kind != _default(leaf)


def _default(leaf: Any) -> str:
    device = min(leaf.sharding.device_set, key=lambda device: device.id)
    return device.default_memory().kind
