"""The numbers of a narrow floating-point dtype, for arithmetic in float32.

They lie on a grid whose spacing is a power of 2 that grows with the number. To move a
parameter p on it, an update d is chosen among these numbers too, for whoever computes
p + d rounds that sum to nearest.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

REMAINDERS = 256
"""Into how many parts a remainder of one byte divides the spacing."""

_BIAS = 127  # float32 has 2^e as e + 127, above 23 bits of mantissa


class Grid(NamedTuple):
    """A dtype as float32 sees it.

    Attributes:
      mantissa: bits of it that are stored.
      lowest: the exponent of the smallest normal number: smaller ones have its spacing.
      largest: the largest finite number.
    """

    mantissa: int
    lowest: int
    largest: float


def grid_of(dtype: Any) -> Grid | None:
    """Returns the grid of a dtype of 16 or 8 bits, or None if it has no such grid.

    `float8_e8m0fnu` has no mantissa, no zero and no sign.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    info: Any = jnp.finfo(dtype)
    if info.bits not in (8, 16) or info.nmant == 0:
        return None
    # A part of the spacing has to be a normal number of float32.
    lowest = max(int(info.minexp), int(info.nmant) + 8 + 1 - _BIAS)
    return Grid(int(info.nmant), lowest, float(info.max))


def spacing(x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Returns the distance of the numbers around x, and its inverse."""
    exponent = (jax.lax.bitcast_convert_type(x, jnp.uint32) >> 23) & 0xFF
    exponent = jnp.maximum(exponent, jnp.uint32(_BIAS + grid.lowest)) - grid.mantissa

    def power(biased: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)

    return power(exponent), power(2 * _BIAS - exponent)


def nearest(x: jax.Array, grid: Grid) -> jax.Array:
    """Returns the number next to x, the even one of two, as addition rounds."""
    if _is_bfloat16(grid):  # in one instruction
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    step, per_step = spacing(x, grid)
    return jnp.round(x * per_step) * step


def uniform(bits: jax.Array) -> jax.Array:
    """Returns numbers in [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def stochastic(x: jax.Array, bits: jax.Array, grid: Grid) -> jax.Array:
    """Returns one of the two numbers around x, such that the mean is x."""
    step, per_step = spacing(x, grid)
    scaled = x * per_step
    below = jnp.floor(scaled)
    return (below + jnp.where(uniform(bits) < scaled - below, 1.0, 0.0)) * step


def to_bfloat16(value: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 without bias; what is not finite stays as it is."""
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32)
    # Infinity has no bits below to carry from.
    pattern += jnp.where(jnp.isnan(value), jnp.uint32(0), bits >> 16)
    top = (pattern >> 16).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(top, jnp.bfloat16)


def to_float16(value: jax.Array, bits: jax.Array) -> jax.Array:
    """Rounds float32 to float16 without bias, subnormal numbers included."""
    kept = stochastic(value, bits, cast(Grid, grid_of(jnp.float16)))
    return jnp.where(jnp.isfinite(value), kept, value).astype(jnp.float16)


def step_to(
    p: jax.Array, u: jax.Array, target: jax.Array, bits: jax.Array, grid: Grid
) -> jax.Array:
    """Returns a d on the grid for which the mean of p + d, rounded, is `target`.

    It is one of two, and which one is drawn such that the mean of the two sums, which
    enclose the target, is the target. For |u| up to a quarter of |p| they are the
    numbers around the target, which d leads to exactly. A larger d has numbers that lie
    too far apart for that, and the sum's own rounding moves it by up to half a spacing:
    so the two lie some spacings below and above u, and their sums are computed.

    Args:
      p: numbers on the grid, as float32.
      u: what shall be added to them. It is d itself where the target is beyond the
        largest number or not finite, for the sum then has to be so too.
      target: p + u, or what p stands for plus u.
      bits: random, uint32.
      grid: of p and d.
    """
    inner, outer = _around(target, grid)
    reach = _reach(u, target, grid)
    is_large = jnp.abs(u) > 0.25 * jnp.abs(p)
    near = jnp.where(is_large, _around(u - reach, grid)[0], inner - p)
    far = jnp.where(is_large, _around(u + reach, grid)[0], outer - p)
    first, last = nearest(p + near, grid), nearest(p + far, grid)
    goes_far = uniform(bits) * jnp.abs(last - first) < jnp.abs(target - first)
    # Next to the largest number one of the sums, or d itself, may be beyond it. In
    # bfloat16 it is the far one, which is infinite then and not drawn.
    if not _is_bfloat16(grid):
        goes_far &= jnp.abs(last) <= grid.largest
    d = jnp.where(goes_far, far, near)
    if not _is_bfloat16(grid):
        d = jnp.clip(d, -grid.largest, grid.largest)
    return jnp.where(jnp.abs(target) <= grid.largest, d, u)


def _around(x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers around x, the one towards zero first, which may be x."""
    if _is_bfloat16(grid):  # the top of float32's pattern
        pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        both = pattern, pattern + jnp.uint32(0x10000)
        inner, outer = (jax.lax.bitcast_convert_type(b, jnp.float32) for b in both)
        return inner, outer
    step, per_step = spacing(x, grid)
    inner = jnp.trunc(x * per_step) * step
    return inner, inner + jnp.where(x < 0, -step, step)


def _reach(u: jax.Array, target: jax.Array, grid: Grid) -> jax.Array:
    """Returns more than the spacings at u and at the target together.

    Where |u| > |p| / 4 the target is less than 5 |u|, so that in bfloat16 they are less
    than 6 |u| / 128.
    """
    if _is_bfloat16(grid):  # in one instruction
        return u * jnp.float32(2.0**-4)
    most = 2 * spacing(jnp.maximum(jnp.abs(target), jnp.abs(u)), grid)[0]
    return jnp.where(target < 0, -most, most)


def _is_bfloat16(grid: Grid) -> bool:
    return grid.mantissa == 7 and grid.largest > 1e38


def weight(p: jax.Array, remainder: jax.Array, grid: Grid) -> jax.Array:
    """Returns what a parameter stands for together with its remainder."""
    part = spacing(p, grid)[0] * jnp.float32(1 / REMAINDERS)
    return p + remainder.astype(jnp.float32) * part


def step_and_remainder(
    p: jax.Array, u: jax.Array, target: jax.Array, bits: jax.Array, grid: Grid
) -> tuple[jax.Array, jax.Array]:
    """Returns a d on the grid, and what p + d then lacks of `target`, as float32.

    The second is a whole number of parts of the spacing, within a byte. A small d leads
    to the number next to the target, after that was rounded to such parts without bias:
    the other way round, what is halfway between two numbers would not get across. A
    large d is itself rounded without bias, for its numbers lie too far apart to choose
    among those around the target; p + d then lacks only what its own rounding loses.
    """
    change = target - p
    step, per_step = spacing(target, grid)
    parts = jnp.floor(target * (per_step * REMAINDERS) + uniform(bits)) / REMAINDERS
    # Subnormal numbers lie as far apart as the smallest normal ones.
    least = 2.0 ** (grid.lowest - grid.mantissa)
    is_large = spacing(change, grid)[0] >= jnp.maximum(step, 2 * least)
    d = jnp.floor(parts + 0.5) * step - p
    d = jnp.where(is_large, stochastic(change, bits, grid), d)
    is_inside = jnp.abs(target) <= grid.largest
    d = jnp.where(is_inside, jnp.clip(d, -grid.largest, grid.largest), u)
    landed = nearest(p + d, grid)
    lacking = jnp.where(is_large, p + d, parts * step) - landed
    # Above a power of 2 the parts are twice as large as below.
    lacking *= spacing(landed, grid)[1] * REMAINDERS
    half = REMAINDERS // 2
    remainder = jnp.clip(jnp.floor(lacking + uniform(bits << 24)), -half, half - 1)
    return d, jnp.where(is_inside, remainder, 0)
