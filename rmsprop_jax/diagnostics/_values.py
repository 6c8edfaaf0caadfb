"""`values`: a state, gradients, updates and parameters in a few scalars."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks, _leaves, _store, storage
from ._spectrum import in_float32, spectrum
from ._trees import accumulators, beside, bytes_by_leaf, refuse_padding, state_in

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
      update_to_param: √(Σ|u|² / Σ|θ|²); 1 where all parameters are 0, as of the update
        to the parameters that it makes.
      lost: the fraction of parameters that an update which is not 0 leaves where they
        are, because their dtype has no number that is nearer to where they should be.
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
    lost: Any = None
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
    state: Any,
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
    """Returns what a state of RMSProp, and a step with it, say in a few scalars.

    ::

        α / √(ν + eps)               (eps_in_sqrt; otherwise α / (√ν + eps))

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
        tree of states; of several, as `optax.partition` has, all. Also an
        `nnx.Optimizer` or a `TrainState` that has it, or what `nnx.state` makes of it
        (of a centred one `nnx.as_pure`, since `nnx.state` does not tell it from
        Adam's). That of `sharding.zero` needs `params`, whose sizes tell what is
        padding.
      gradients: the gradients, for `skipped`; None leaves it out, here and below. Each
        of these three has at least the leaves that have a `nu`, and None where there
        is no value.
      updates: the updates, for `update_rms`.
      params: the parameters before the step, for `update_to_param` and `lost`, with
        `updates`.
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
      ValueError: if there is no state of RMSProp in `state`, or two have a `nu` for the
        same leaf; for trees that do not have its leaves, in its shapes; for a number
        that is out of its range, and a `learning_rate` or `eps` that is not one.
      TypeError: for an argument of the wrong kind, and a `nu_dtype` that is not the
        state's.

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
    if jnp.ndim(eps):
        raise ValueError(f"`eps` must be one number, got shape {jnp.shape(eps)}.")
    _checks.flag("eps_in_sqrt", eps_in_sqrt)
    _checks.hyperparameter("learning_rate", learning_rate, "finite")
    form = _store.as_format("nu_dtype", nu_dtype, unsigned=True)
    wanted = checked_quantiles(quantiles)
    state = state_in(state)
    nus, mus, lowest = accumulators(state, with_classes=True)
    _store.same("nu_dtype", form, "state", nus)
    given = {"gradients": gradients, "updates": updates, "params": params}
    seen = {
        what: list(beside(what, tree, nus).values())
        for what, tree in given.items()
        if tree is not None
    }
    if not seen:
        refuse_padding(nus)
    alike = [next((x for x in xs if x is not None), nu)
             for nu, *xs in zip(nus.values(), *seen.values(), strict=True)]  # fmt: skip
    sizes = tuple(
        min(np.size(x), nu.size) for x, nu in zip(alike, nus.values(), strict=True)
    )
    return _values(
        list(nus.values()),
        [mus[key] for key in nus] if mus else None,
        [lowest.get(key, form.lowest) for key in nus],
        seen,
        learning_rate_of(learning_rate),
        jnp.asarray(eps, jnp.float32),
        1 - wanted,
        jnp.asarray(bytes_by_leaf(state, nus), jnp.float32),
        jnp.asarray(sum(storage.sizes(state).values()), jnp.float32),
        sizes=sizes,
        eps_in_sqrt=bool(eps_in_sqrt),
    )


# Without a function around it each operation would be compiled, and what overflows on
# the way, such as the square of a gradient that is to be counted, found as a mistake by
# `jax_debug_infs`.
@partial(jax.jit, static_argnames=("sizes", "eps_in_sqrt"), inline=True)
def _values(
    nus: list[Any],
    mus: list[Any] | None,
    lowest: list[Any],
    seen: dict[str, list[Any]],
    learning_rate: jax.Array,
    eps: jax.Array,
    wanted: jax.Array,
    state_bytes: jax.Array,
    all_bytes: jax.Array,
    *,
    sizes: tuple[int, ...],
    eps_in_sqrt: bool,
) -> Diagnostics:
    """Returns what `values` does, of lists of leaves; `wanted` are quantiles of ν."""
    # Without the barrier XLA on TPUs recomputes nu and mu for every sum.
    nus, mus = jax.lax.optimization_barrier((nus, mus))
    eps_root, eps = (
        (eps, jnp.zeros_like(eps)) if eps_in_sqrt else (jnp.zeros_like(eps), eps)
    )
    at = spectrum(nus, lowest, sizes, eps_root + eps * eps).with_total()
    n = jnp.maximum(1, _with_total(jnp.asarray(sizes, jnp.float32)))
    updates, params = seen.get("updates"), seen.get("params")
    u = p = to_noise = lost = None
    if mus is not None:
        most = jnp.finfo(jnp.float32).max
        wide = [
            jnp.minimum(in_float32(nu, x), most)
            for nu, x in zip(nus, lowest, strict=True)
        ]
        noise = [x if k == x.size else jnp.where(jnp.arange(x.size) < k, x, 0)
                 for x, k in zip(wide, sizes, strict=True)]  # fmt: skip
        to_noise = _ratio(_sums(_power, mus), _sums(jnp.sum, noise))
    if updates is not None:
        u = _sums(_power, updates)
    if updates is not None and params is not None:
        p = _sums(_power, params)
        lost = _sums(_lost, updates, params) / n
    nu = at.quantiles(wanted, n)
    rows = Values(
        effective_rate=learning_rate / (jnp.sqrt(nu + eps_root) + eps),
        eps_dominates=at.below_eps / n,
        at_lowest=at.lowest / n,
        at_highest=at.highest / n,
        state_bytes=jnp.concatenate([state_bytes, all_bytes[None]]),
        signal_to_noise=to_noise,
        update_rms=None if u is None else jnp.sqrt(u / n),
        update_to_param=None if u is None or p is None else jnp.sqrt(_to_params(u, p)),
        lost=lost,
        skipped=_sums(_skipped, seen["gradients"]) if "gradients" in seen else None,
    )
    return Diagnostics(
        leaves=jax.tree.map(lambda x: x[:-1], rows),
        total=jax.tree.map(lambda x: x[-1], rows),
    )


def checked_quantiles(quantiles: Sequence[float]) -> jax.Array:
    is_array = isinstance(quantiles, np.ndarray | jax.Array) and quantiles.ndim == 1
    if not is_array and not isinstance(quantiles, Sequence):
        raise TypeError(f"`quantiles` must be several numbers, got {quantiles!r}.")
    if not len(quantiles):
        raise ValueError("`quantiles` must have one number at least.")
    for q in quantiles:
        _checks.number("quantiles", q, "in [0, 1]")
    return jnp.asarray(quantiles, jnp.float32)


def learning_rate_of(learning_rate: Any) -> jax.Array:
    if jnp.ndim(learning_rate):
        raise ValueError(
            "`learning_rate` must be one number for the effective learning rates, got "
            f"an array of shape {jnp.shape(learning_rate)}."
        )
    return jnp.asarray(learning_rate).astype(jnp.float32)


def _with_total(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, jnp.sum(x, keepdims=True)])


def _sums(of: Any, *leaves: list[Any]) -> jax.Array:
    """Returns the sum of each leaf by `of`, 0 where one is None, and that of all."""
    sums = [
        jnp.float32(0)
        if any(x is None for x in each)
        else of(*each).astype(jnp.float32)
        for each in zip(*leaves, strict=True)
    ]
    return _with_total(jnp.stack(sums) if sums else jnp.zeros(0, jnp.float32))


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, _leaves.like(x, _leaves.arithmetic_dtype(x)))


def _power(x: Any) -> jax.Array:
    return jnp.sum(_squared(x))


def _squared(x: Any) -> jax.Array:
    return _leaves.square(_wide(x))


def _lost(u: Any, p: Any) -> jax.Array:
    """Counts where the update is not 0, but `optax.apply_updates` changes nothing.

    It is arithmetic, which every compiler sums as it goes; CPUs would write what
    comparisons return, and TPUs read all again.
    """
    u, p = jnp.asarray(u), jnp.asarray(p)
    dtype, kept = jnp.promote_types(u.dtype, p.dtype), jnp.finfo(p.dtype)
    before = p.astype(dtype)
    after = before + u.astype(dtype)
    if p.dtype != dtype:  # XLA leaves out a conversion to p's dtype and back
        rounded = partial(
            jax.lax.reduce_precision, exponent_bits=kept.nexp, mantissa_bits=kept.nmant
        )
        after = _leaves.on_parts(rounded, after)
    return jnp.sum(_is_zero(after - before) * (1 - _is_zero(u)))


def _is_zero(x: jax.Array) -> jax.Array:
    """Returns 1 where a number is 0, and 0 where it is not."""
    if jnp.iscomplexobj(x):
        return _is_zero(x.real) * _is_zero(x.imag)
    return 1 - jnp.square(jnp.sign(x)).astype(jnp.float32)


def _skipped(g: Any) -> jax.Array:
    """Counts in a reduction of two results: CPUs write what a single one shall sum."""
    finite = jnp.isfinite(_squared(g))
    both = [(~finite).astype(jnp.uint32), finite.astype(jnp.uint32)]

    def added(a: Any, b: Any) -> list[jax.Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    axes = tuple(range(finite.ndim))
    not_finite, rest = jax.lax.reduce(both, [jnp.uint32(0)] * 2, added, axes)
    return jnp.minimum(not_finite, finite.size - rest)  # or XLA drops the other one


def _to_params(u: jax.Array, p: jax.Array) -> jax.Array:
    return _ratio(u, jnp.where(p == 0, u, p))


def _ratio(above: Any, below: Any) -> jax.Array:
    """Returns above / below: 0 where both are, at most the largest number."""
    limits = jnp.finfo(jnp.float32)
    finite = jnp.minimum(above, limits.max)
    least = jnp.maximum(finite / limits.max, limits.tiny)
    return above / jnp.maximum(below, least)
