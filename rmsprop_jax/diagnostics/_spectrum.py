"""`nu` counted by octaves in one pass, and what its quantiles are from that."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import storage

OCTAVES = 32
"""Of √ν, each of which is two exponents of ν. More would not fit the registers."""

_MANTISSA = 23
_LOWEST, _HIGHEST = 2.0**-56, 2.0**60
"""Where counting may begin, so that the octaves cover what gradients have."""

_LARGEST = 0x7F7FFFFF  # the bits of float32's largest number


class Spectrum(NamedTuple):
    """How the elements of a leaf are spread, or of several, on leading axes.

    Attributes:
      at_least: [..., OCTAVES] how many are at least as large as an octave's lower end.
      edges: [..., OCTAVES] log2 of these ends.
      smallest: the smallest one, as log2; 0 counts as float32's smallest normal number.
      largest: the largest one.
      below_eps: how many are below what ε is compared with.
      lowest: how many are the smallest number of their dtype.
      highest: how many are the largest, infinite or NaN.
    """

    at_least: jax.Array
    edges: jax.Array
    smallest: jax.Array
    largest: jax.Array
    below_eps: jax.Array
    lowest: jax.Array
    highest: jax.Array

    def quantiles(self, q: jax.Array, size: jax.Array) -> jax.Array:
        """Returns quantiles [..., q] of ν, interpolated in log ν within an octave."""
        if self.smallest.ndim:
            return jax.vmap(Spectrum.quantiles, (0, None, 0))(self, q, size)
        last = size - 1
        below = jnp.minimum(size - self.at_least, last)
        zero = jnp.zeros_like(last)
        ranks = jnp.concatenate([zero[None], below, last[None]])
        inner = jnp.clip(self.edges, self.smallest, self.largest)
        ends = jnp.concatenate([self.smallest[None], inner, self.largest[None]])
        return jnp.exp2(jnp.interp(q * last, ranks, ends))

    def merged(self) -> "Spectrum":
        """Returns that of all leaves on the leading axis."""
        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), self)
        return total._replace(
            edges=jnp.max(self.edges, axis=0, initial=-jnp.inf),
            smallest=jnp.min(self.smallest, axis=0, initial=128.0),
            largest=jnp.max(self.largest, axis=0, initial=-126.0),
        )


# Traced once for all leaves of a shape; op by op it would hold all comparisons at once.
@jax.jit
def spectrum(stored: jax.Array, lowest: Any, eps_nu: jax.Array) -> Spectrum:
    """Counts the elements of a `nu` in one reduction.

    It has many results, and they are integers: so XLA reads `nu` once on every
    platform, and CPUs do it with vectors. Counts in float32 would stop at 2^24.

    Args:
      stored: the accumulator, as it is stored.
      lowest: the exponent of its smallest number where it is uint8.
      eps_nu: the ν that ε is compared with, a float32 scalar.
    """
    stored = jax.lax.stop_gradient(stored)
    form = storage.Format(lowest=lowest)
    nu = storage.decode(stored, form).astype(jnp.float32)
    bits = _bits(nu)  # whose order is that of the numbers, since none is negative
    first = _bits(jnp.clip(eps_nu, _LOWEST, _HIGHEST)) >> _MANTISSA
    starts = [(first + (2 * k - 2)) << _MANTISSA for k in range(OCTAVES)]
    ends = jnp.asarray([0.0, jnp.inf], jnp.float32)
    if stored.dtype == jnp.uint8:
        codes = jnp.asarray([0, 255], jnp.uint8)
        codes = codes.reshape(2, *[1] * stored.ndim)
        ends = jnp.stack([storage.decode(code, form) for code in codes])
    lowest, highest = _bits(ends)
    counted = [bits >= start for start in starts]
    counted += [bits < _bits(eps_nu), bits <= lowest, bits >= highest]
    counts = [x.astype(jnp.uint32) for x in counted]

    def combined(a: Any, b: Any) -> list[jax.Array]:
        sums = [x + y for x, y in zip(a[2:], b[2:], strict=True)]
        return [jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]), *sums]

    none = [jnp.int32(_LARGEST), jnp.int32(0), *[jnp.uint32(0)] * len(counts)]
    axes = tuple(range(nu.ndim))
    least, most, *sums = jax.lax.reduce([bits, bits, *counts], none, combined, axes)
    *at_least, below_eps, lowest, highest = (x.astype(jnp.float32) for x in sums)
    return Spectrum(
        at_least=jnp.stack(at_least),
        edges=jnp.stack([_log2(start) for start in starts]),
        smallest=_log2(least),
        largest=_log2(most),
        below_eps=below_eps,
        lowest=lowest,
        highest=highest,
    )


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _log2(bits: jax.Array) -> jax.Array:
    normal = jnp.clip(bits, 1 << _MANTISSA, _LARGEST)
    return jnp.log2(jax.lax.bitcast_convert_type(normal, jnp.float32))
