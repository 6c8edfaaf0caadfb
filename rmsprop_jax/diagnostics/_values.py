"""`values`: a state, gradients, updates and parameters in a few scalars."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _leaves, storage
from ._spectrum import Spectrum, spectrum
from ._trees import accumulators, by_path, bytes_by_leaf

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Of the effective learning rates, by default: least, 5 %, median, 95 %, largest."""


class Values(NamedTuple):
    """Float32 scalars, or arrays [leaves] of them; None for what was not asked for.

    Attributes:
      effective_rate: quantiles of α/(√(ν + ε_root) + ε), on a last axis of their own.
      eps_dominates: the fraction of coordinates where ε is larger than what it is
        added to, ν inside the root and √ν outside.
      at_lowest: the fraction where ν is the smallest number of its dtype: 0, and for
        uint8 its `lowest`.
      at_highest: the fraction where it is the largest one, infinite or NaN.
      state_bytes: what the state takes.
      signal_to_noise: Σ|μ|² / Σν where centred.
      update_rms: √(mean |u|²).
      update_to_param: √(Σ|u|² / Σ|θ|²).
      skipped: how many gradients are not finite, or overflow when squared, which are
        those that ``skip_nonfinite=True`` skips.
    """

    effective_rate: Any
    eps_dominates: Any
    at_lowest: Any
    at_highest: Any
    state_bytes: Any
    signal_to_noise: Any = None
    update_rms: Any = None
    update_to_param: Any = None
    skipped: Any = None


class Diagnostics(NamedTuple):
    """What `values` returns, of one structure for every model.

    Attributes:
      leaves: by leaf, in the order of `names`; arrays [leaves].
      total: of all leaves together; scalars.
    """

    leaves: Values
    total: Values


def values(
    state: optax.OptState,
    gradients: optax.Updates | None = None,
    updates: optax.Updates | None = None,
    params: optax.Params | None = None,
    *,
    learning_rate: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_in_sqrt: bool = True,
    nu_dtype: Any = None,
    quantiles: Sequence[float] = QUANTILES,
) -> Diagnostics:
    r"""Returns what a state of RMSProp, and a step with it, say in a few scalars.

    .. math:: \alpha_i = \alpha / (\sqrt{\nu_i + \epsilon_\text{root}} + \epsilon)

    These are the effective learning rates. `nu` is read once: its elements are counted
    between powers of 4, which integer comparisons of their exponents do, in one
    reduction. So quantiles 0 and 1 are those of `nu` itself. Between them, √ν of a
    quantile is off by less than a factor of 2, the width of such an octave. Measured:
    by up to a third where √ν spans an octave or two, by some percent where it spans
    more. The 32 octaves begin at half of ε, at 2^-29 at least; outside them (√ν over
    2e9 ε) a quantile lies between the last octave and the largest.

    Momentum is no part of the effective rate, nor the floor under a variance that is
    all rounding error, nor Optax's own bias correction of the first steps. In a leaf
    of a million and more, sums have the rounding error of float32.

    Args:
      state: the state after the step: an `RmsState` or one of Optax's, anywhere in a
        tree of states; of several, as `optax.partition` has, all.
      gradients: the gradients, for `skipped`; None leaves it out, here and below.
      updates: the updates, for `update_rms`.
      params: the parameters before the step, for `update_to_param`, with `updates`.
      learning_rate: α, that of this step; 1 for the quantiles of 1/(√ν + ε).
      eps: ε, as for `rmsprop_jax.scale_by_rms`.
      eps_in_sqrt: whether it is inside the root.
      nu_dtype: the `storage.uint8(...)` that was the `nu_dtype`, for a state of 0.1;
        since then the state says it.
      quantiles: which ones, numbers in [0, 1].

    Returns:
      A `Diagnostics`, of scalars by leaf and in total. It may be called in `jit`,
      `vmap`, `scan`, and with sharded arrays, of which none is gathered.

    Raises:
      ValueError: if there is no state of RMSProp in `state`, or a number is out of its
        range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import diagnostics, rmsprop
      >>> params = {"w": jnp.ones(1000), "b": jnp.zeros(3)}
      >>> tx = rmsprop(0.1, initial_scale=4.0)
      >>> now = diagnostics.values(tx.init(params), learning_rate=0.1)
      >>> print(now.total.effective_rate)  # 0.1 / √4, everywhere
      [0.05 0.05 0.05 0.05 0.05]
    """
    _checks.number("eps", eps, "finite and at least 0")
    default = storage.as_format("nu_dtype", nu_dtype, unsigned=True).lowest
    wanted = checked_quantiles(quantiles)
    # Or XLA on TPUs makes nu and mu again from all that they come from, for each sum.
    nus, mus, lowest = jax.lax.optimization_barrier(accumulators(state))
    ranges = {name: lowest.get(name, default) for name in nus}
    sizes = jnp.asarray([max(1, nu.size) for nu in nus.values()], jnp.float32)
    eps = jnp.asarray(eps, jnp.float32)
    eps_root, eps = (eps, jnp.float32(0)) if eps_in_sqrt else (jnp.float32(0), eps)
    count = partial(spectrum, eps_nu=eps_root + eps * eps)
    spectra = _stacked([count(nu, ranges[name]) for name, nu in nus.items()])

    sums = {}  # of each leaf, by what is summed
    if mus:
        wide = {k: storage.read(nu, jnp.float32, ranges[k]) for k, nu in nus.items()}
        sums["noise"] = _sums(jnp.sum, wide, nus)
        sums["signal"] = _sums(_power, mus, nus)
    if updates is not None:
        sums["updates"] = _sums(_power, by_path(updates), nus)
    if updates is not None and params is not None:
        sums["params"] = _sums(_power, by_path(params), nus)
    if gradients is not None:
        sums["skipped"] = _sums(_skipped, by_path(gradients), nus)
    size_of = bytes_by_leaf(state, nus)

    def summary(at: Spectrum, n: Any, size: Any, **sums: Any) -> Values:
        nu = at.quantiles(1 - wanted, n)
        u, p = sums.get("updates"), sums.get("params")
        ratio = None if p is None else _ratio(u, p)
        return Values(
            effective_rate=learning_rate_of(learning_rate)[..., None]
            / (jnp.sqrt(nu + eps_root) + eps),
            eps_dominates=at.below_eps / n,
            at_lowest=at.lowest / n,
            at_highest=at.highest / n,
            state_bytes=size,
            signal_to_noise=_ratio(sums["signal"], sums["noise"]) if mus else None,
            update_rms=None if u is None else jnp.sqrt(u / n),
            update_to_param=None if ratio is None else jnp.sqrt(ratio),
            skipped=sums.get("skipped"),
        )

    total = {name: jnp.sum(each) for name, each in sums.items()}
    everything = jnp.float32(sum(storage.sizes(state).values()))
    return Diagnostics(
        leaves=summary(spectra, sizes, jnp.asarray(size_of, jnp.float32), **sums),
        total=summary(spectra.merged(), jnp.sum(sizes), everything, **total),
    )


def checked_quantiles(quantiles: Sequence[float]) -> jax.Array:
    for q in quantiles:
        _checks.number("quantiles", q, "in [0, 1]")
    return jnp.asarray(quantiles, jnp.float32)


def learning_rate_of(learning_rate: Any) -> jax.Array:
    return jnp.asarray(learning_rate).astype(jnp.float32)


def _stacked(trees: list[Spectrum]) -> Spectrum:
    if not trees:  # as of optax.tree_utils.tree_map_params, which asks for no leaves
        empty = spectrum(jnp.zeros(0), 0, jnp.float32(0))
        return jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), empty)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _sums(of: Any, leaves: dict[str, Any], nus: dict[str, Any]) -> jax.Array:
    """Returns the sum of each leaf that has a `nu`, by `of`; 0 of one that is None."""
    sums = [
        of(leaves[name]).astype(jnp.float32) if name in leaves else jnp.float32(0)
        for name in nus
    ]
    return jnp.stack(sums) if sums else jnp.zeros(0, jnp.float32)


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, _leaves.like(x, _leaves.arithmetic_dtype(x)))


def _power(x: Any) -> jax.Array:
    return jnp.sum(_squared(x))


def _squared(x: Any) -> jax.Array:
    return _leaves.square(_wide(x))


def _skipped(g: Any) -> jax.Array:
    """Counts in a reduction of two results: CPUs write what a single one shall sum."""
    finite = jnp.isfinite(_squared(g))
    both = [(~finite).astype(jnp.uint32), finite.astype(jnp.uint32)]

    def added(a: Any, b: Any) -> list[jax.Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    axes = tuple(range(finite.ndim))
    not_finite, rest = jax.lax.reduce(both, [jnp.uint32(0)] * 2, added, axes)
    return jnp.minimum(not_finite, finite.size - rest)  # or XLA drops the other one


def _ratio(above: Any, below: Any) -> jax.Array:
    """Returns above / below, 0 where both are."""
    return jnp.where(above == 0, 0, above / jnp.where(above == 0, 1, below))
