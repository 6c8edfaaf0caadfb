"""`nu` counted by octaves in one pass, and what its quantiles are from that."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _store, storage

OCTAVES = 32
"""Of √ν, each of which is two exponents of ν. More would not fit the registers."""

_MANTISSA = 23
_LOWEST, _HIGHEST = 2.0**-56, 2.0**60
"""Where counting may begin, so that the octaves cover what gradients have."""

_LARGEST = 0x7F7FFFFF  # the bits of float32's largest number


class Spectrum(NamedTuple):
    """How the elements of leaves are spread, each on a row of all arrays but `edges`.

    Attributes:
      edges: [OCTAVES] log2 of the octaves' lower ends.
      at_least: [leaves, OCTAVES] how many are at least as large as an octave's end.
      below_eps: [leaves] how many are below what ε is compared with.
      lowest: [leaves] how many are the smallest number of their dtype.
      highest: [leaves] how many are the largest, infinite or NaN.
      smallest: [leaves] the smallest one, as log2; 0 counts as float32's smallest
        normal number.
      largest: [leaves] the largest one.
    """

    edges: jax.Array
    at_least: jax.Array
    below_eps: jax.Array
    lowest: jax.Array
    highest: jax.Array
    smallest: jax.Array
    largest: jax.Array

    def quantiles(self, q: jax.Array, sizes: jax.Array) -> jax.Array:
        """Returns quantiles [leaves, q] of ν: log ν is linear within an octave."""

        def of_one(at_least: Any, smallest: Any, largest: Any, size: Any) -> jax.Array:
            last = size - 1
            below = jnp.minimum(size - at_least, last)
            ranks = jnp.concatenate([jnp.zeros_like(below[:1]), below, last[None]])
            inner = jnp.clip(self.edges, smallest, largest)
            ends = jnp.concatenate([smallest[None], inner, largest[None]])
            return jnp.exp2(jnp.interp(q * last, ranks, ends))

        return jax.vmap(of_one)(self.at_least, self.smallest, self.largest, sizes)

    def with_total(self) -> "Spectrum":
        """Returns these rows and one more, which is that of all leaves together."""

        def added(x: jax.Array, total: jax.Array) -> jax.Array:
            return jnp.concatenate([x, total[None]])

        sums = {
            name: added(getattr(self, name), jnp.sum(getattr(self, name), axis=0))
            for name in ("at_least", "below_eps", "lowest", "highest")
        }
        smallest = jnp.min(self.smallest, initial=128.0)
        largest = jnp.max(self.largest, initial=-126.0)
        return self._replace(
            **sums,
            smallest=added(self.smallest, smallest),
            largest=added(self.largest, largest),
        )


def spectrum(
    nus: Sequence[jax.Array],
    lowest: Sequence[Any],
    sizes: Sequence[int],
    eps_nu: jax.Array,
) -> Spectrum:
    """Counts the elements of each `nu`.

    Args:
      nus: the accumulators, as they are stored.
      lowest: for each, the exponent of its smallest number where it is uint8.
      sizes: for each, how many elements count: all that follow are padding.
      eps_nu: the ν that ε is compared with, a float32 scalar.
    """
    first = _bits(jnp.clip(eps_nu, _LOWEST, _HIGHEST)) >> _MANTISSA
    octaves = 2 * jnp.arange(OCTAVES, dtype=jnp.int32) - 2
    starts = (first + octaves) << _MANTISSA
    limits = jnp.concatenate([starts, _bits(eps_nu)[None]])
    ends = jnp.zeros((0, 2), jnp.int32)
    counts = jnp.zeros((0, OCTAVES + 3), jnp.float32)
    if nus:  # optax.tree_utils.tree_map_params asks for a state without leaves
        each = zip(nus, lowest, sizes, strict=True)
        found = [_counted(nu, at, limits, size) for nu, at, size in each]
        ends = jnp.stack([pair for pair, _ in found])
        counts = jnp.stack([counts for _, counts in found]).astype(jnp.float32)
    logs = _log2(ends)
    return Spectrum(
        edges=_log2(starts),
        at_least=counts[:, :OCTAVES],
        below_eps=counts[:, OCTAVES],
        lowest=counts[:, OCTAVES + 1],
        highest=counts[:, OCTAVES + 2],
        smallest=logs[:, 0],
        largest=logs[:, 1],
    )


def in_float32(stored: jax.Array, lowest: Any) -> jax.Array:
    """Returns the values of a `nu`, as float32."""
    form = _store.Format(lowest=lowest)
    return storage.decode(stored, form).astype(jnp.float32)


# Traced once for all leaves of a shape; op by op it would hold all comparisons at once.
@partial(jax.jit, static_argnames="size")
def _counted(
    stored: jax.Array, lowest: Any, limits: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the bits of the smallest and the largest element, and all counts.

    It is one reduction of many results, and they are integers: so XLA reads `nu` once
    on every platform, and CPUs do it with vectors. Counts in float32 would stop at
    2^24.
    """
    # The order of bits is that of the numbers, because none is negative.
    bits = _bits(in_float32(stored, lowest))
    inside = None
    if size < stored.size:
        inside = jax.lax.broadcasted_iota(jnp.uint32, stored.shape, 0) < size
    ends = [_bits(jnp.float32(x)) for x in (0, jnp.inf)]
    if stored.dtype == jnp.uint8:
        codes = (jnp.full((1,) * stored.ndim, x, jnp.uint8) for x in (0, 255))
        ends = [_bits(in_float32(code, lowest)) for code in codes]
    *starts, eps_bits = limits
    counted = [bits >= start for start in starts]
    counted += [bits < eps_bits, bits <= ends[0], bits >= ends[1]]
    least = most = bits
    if inside is not None:
        counted = [x & inside for x in counted]
        least = jnp.where(inside, bits, _LARGEST)
        most = jnp.where(inside, bits, 0)
    counts = [x.astype(jnp.uint32) for x in counted]

    def combined(a: Any, b: Any) -> list[jax.Array]:
        sums = [x + y for x, y in zip(a[2:], b[2:], strict=True)]
        return [jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]), *sums]

    none = [jnp.int32(_LARGEST), jnp.int32(0), *[jnp.uint32(0)] * len(counts)]
    axes = tuple(range(stored.ndim))
    found = jax.lax.reduce([least, most, *counts], none, combined, axes)
    return jnp.stack(found[:2]), jnp.stack(found[2:])


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), jnp.int32)


def _log2(bits: jax.Array) -> jax.Array:
    normal = jnp.clip(bits, 1 << _MANTISSA, _LARGEST)
    return jnp.log2(jax.lax.bitcast_convert_type(normal, jnp.float32))
