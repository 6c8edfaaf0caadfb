"""`nu` counted by octaves in one pass, and what its quantiles are from that."""

import itertools
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
        """Returns quantiles [leaves, q] of ν: log ν is linear within an octave.

        Each octave says what it is if the rank is in it or above: so that it is one
        kernel, which `jnp.interp` of each leaf is not.
        """
        last = sizes[:, None] - 1
        below = jnp.minimum(sizes[:, None] - self.at_least, last)
        smallest, largest = self.smallest[:, None], self.largest[:, None]
        ranks = jnp.concatenate([0 * last, below, last], axis=1)
        inner = jnp.clip(self.edges[None], smallest, largest)
        ends = jnp.concatenate([smallest, inner, largest], axis=1)
        low, high = ranks[:, None, :-1], ranks[:, None, 1:]
        start, end = ends[:, None, :-1], ends[:, None, 1:]
        rank = (q[None] * last)[..., None]
        within = start + (rank - low) / jnp.maximum(high - low, 1) * (end - start)
        each = jnp.where(rank >= high, end, within)
        found = jnp.max(each, axis=-1, where=rank >= low, initial=-126.0)
        return jnp.exp2(found)

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
    first = (_bits(jnp.clip(eps_nu, _LOWEST, _HIGHEST)) >> _MANTISSA) - 2
    order = jnp.arange(OCTAVES, dtype=jnp.int32)
    ends = jnp.zeros((0, 2), jnp.int32)
    counts = jnp.zeros((0, OCTAVES + 3), jnp.uint32)
    if nus:  # optax.tree_utils.tree_map_params asks for a state without leaves
        each = zip(nus, lowest, sizes, strict=True)
        eps = _bits(eps_nu)
        found = [_counted(nu, at, first, eps, size) for nu, at, size in each]
        ends = jnp.stack([pair for pair, _ in found])
        counts = jnp.stack([counts for _, counts in found])
    above = (order[None, :] >= order[:, None])[None]
    at_least = jnp.sum(jnp.where(above, counts[:, None, :OCTAVES], 0), axis=-1)
    others = counts[:, OCTAVES:].astype(jnp.float32)
    logs = _log2(ends)
    return Spectrum(
        edges=_log2((first + 2 * order) << _MANTISSA),
        at_least=at_least.astype(jnp.float32),
        below_eps=others[:, 0],
        lowest=others[:, 1],
        highest=others[:, 2],
        smallest=logs[:, 0],
        largest=logs[:, 1],
    )


def in_float32(stored: jax.Array, lowest: Any) -> jax.Array:
    """Returns the values of a `nu`, as float32."""
    form = _store.Format(lowest=lowest)
    return storage.decode(stored, form).astype(jnp.float32)


# Traced once for all leaves of a shape; op by op it would hold all flags at once.
@partial(jax.jit, static_argnames="size")
def _counted(
    stored: jax.Array, lowest: Any, first: jax.Array, eps: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the bits of the smallest and the largest element, and counts.

    The counts are of the octaves that begin at 2^(`first` - 127), the last of which has
    all above, and of elements below `eps`, at the lowest number and at the highest.

    It is one reduction of several results, and they are integers: so XLA reads `nu`
    once on every platform, and CPUs do it with vectors. Counts in float32 would stop at
    2^24.
    """
    # The order of bits is that of the numbers, because none is negative.
    bits = _bits(in_float32(stored, lowest))
    ends = [_bits(jnp.float32(x)) for x in (0, jnp.inf)]
    if stored.dtype == jnp.uint8:
        codes = (jnp.full((1,) * stored.ndim, x, jnp.uint8) for x in (0, 255))
        ends = [_bits(in_float32(code, lowest)) for code in codes]
    flags = [bits < eps, bits <= ends[0], bits >= ends[1]]
    least = most = bits
    if size < stored.size:
        inside = jax.lax.broadcasted_iota(jnp.uint32, stored.shape, 0) < size
        flags = [flag & inside for flag in flags]
        least = jnp.where(inside, bits, _LARGEST)
        most = jnp.where(inside, bits, 0)
    # One word has several counts where they have room. Of fewer results XLA makes code
    # in less time, and fewer are added.
    log2_each = next(x for x in (2, 1, 0) if stored.size < 2 ** (32 >> x))
    each, width = 1 << log2_each, 32 >> log2_each
    words = partial(_words, log2_each=log2_each)
    if each == 1:
        words = partial(
            jax.lax.platform_dependent, cuda=_compared, rocm=_compared, default=words
        )
    words = words(most, first)
    for i, flag in enumerate(flags):
        flag = flag.astype(jnp.uint32) << jnp.uint32(i % each * width)
        words = [*words, flag] if i % each == 0 else [*words[:-1], words[-1] | flag]

    def combined(a: Any, b: Any) -> list[jax.Array]:
        sums = [x + y for x, y in zip(a[2:], b[2:], strict=True)]
        return [jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]), *sums]

    none = [jnp.int32(_LARGEST), jnp.int32(0), *[jnp.uint32(0)] * len(words)]
    axes = tuple(range(stored.ndim))
    found = jax.lax.reduce([least, most, *words], none, combined, axes)
    shifts = jnp.arange(each, dtype=jnp.uint32)[None] * width
    counts = (jnp.stack(found[2:])[:, None] >> shifts) & jnp.uint32(2**width - 1)
    return jnp.stack(found[:2]), counts.reshape(-1)[: OCTAVES + len(flags)]


def _words(bits: jax.Array, first: jax.Array, *, log2_each: int) -> list[jax.Array]:
    """Returns a one in the place of each element's octave, of which a word has some."""
    each, width = 1 << log2_each, 32 >> log2_each
    octave = jnp.minimum(((bits >> _MANTISSA) - first) >> 1, OCTAVES - 1)
    one = jnp.uint32(1) << ((octave & (each - 1)) * width).astype(jnp.uint32)
    word = octave >> log2_each
    return [jnp.where(word == i, one, 0) for i in range(OCTAVES // each)]


def _compared(bits: jax.Array, first: jax.Array) -> list[jax.Array]:
    """Returns the same, of one octave each, of comparisons alone.

    XLA on GPUs (jax 0.10.2) would write the octave of each element to memory.
    """
    starts = [(first + 2 * i) << _MANTISSA for i in range(OCTAVES)]
    above = [bits >= start for start in starts]
    inner = [x & ~y for x, y in itertools.pairwise(above)]
    return [x.astype(jnp.uint32) for x in [*inner, above[-1]]]


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), jnp.int32)


def _log2(bits: jax.Array) -> jax.Array:
    normal = jnp.clip(bits, 1 << _MANTISSA, _LARGEST)
    return jnp.log2(jax.lax.bitcast_convert_type(normal, jnp.float32))
