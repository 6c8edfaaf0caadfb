"""The recursion and its state. The update rule stands here, once."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from . import _bits, _checks, _leaves, _matching, _store
from ._placement import placed
from ._state import RmsState
from .decay import Weights, as_schedule


class Coefficients(NamedTuple):
    """The numbers of one step, in the dtype of the arithmetic.

    Attributes:
      keep: what the old averages are multiplied with.
      take: what the new values are multiplied with.
      left: what a step leaves of a deviation from the mean, which is 1 - take.
      eps_root: what is added inside the square root; None is nothing.
      eps: what is added outside; None is nothing.
      inflation: what nu is multiplied with before the division; None is 1.
    """

    keep: jax.Array
    take: jax.Array
    left: jax.Array
    eps_root: jax.Array | None
    eps: jax.Array | None
    inflation: jax.Array | None


def rms(
    decay: Any,
    eps: Any,
    initial_scale: Any,
    eps_in_sqrt: Any,
    bias_correction: Any,
    *,
    centered: Any,
    skip_nonfinite: Any,
    nu_dtype: Any,
    mu_dtype: Any,
    seed: Any,
    counts: bool = False,
) -> optax.GradientTransformation:
    """`scale_by_rms`, which also `counts` where only its caller needs the number."""
    rho = as_schedule(decay, bias_correction)
    _checks.hyperparameter("eps", eps, "finite and at least 0")
    _checks.hyperparameter("initial_scale", initial_scale, "finite and at least 0")
    eps, initial_scale = (_checks.inside(0, None, x) for x in (eps, initial_scale))
    _checks.flag("eps_in_sqrt", eps_in_sqrt)
    _checks.flag("centered", centered)
    _checks.flag("skip_nonfinite", skip_nonfinite)
    forms = (
        _store.as_format("nu_dtype", nu_dtype, unsigned=True),
        _store.as_format("mu_dtype", mu_dtype),
    )
    if mu_dtype is not None and not centered:
        raise ValueError("`mu_dtype` needs `centered=True`: otherwise there is no mu.")
    _bits.check_seed(seed)
    centered = bool(centered)
    rounds = any(map(_store.is_narrow, forms))
    counts = counts or rounds or centered or callable(rho)
    kind: Any = RmsState if counts else optax.ScaleByRmsState
    eps_root, eps = (eps, None) if eps_in_sqrt else (None, eps)
    update_leaf = partial(
        _shared if rounds else _inlined,
        forms=forms,
        skip_nonfinite=bool(skip_nonfinite),
        may_be_zero=not _checks.is_normal(eps_root),
    )

    def init(params: optax.Params) -> Any:
        _matching.array_leaves("params", params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            _matching.fits(path, leaf, "initial_scale", initial_scale)
        full = partial(_store.full, value=initial_scale, form=forms[0], real=True)
        nu = jax.tree.map(full, params)
        if not counts:
            return optax.ScaleByRmsState(nu=nu)
        zeros = partial(_store.full, value=0, form=forms[1])
        mu = jax.tree.map(zeros, params) if centered else None
        count = jnp.zeros((), jnp.int32)
        return RmsState(count, nu, mu, _store.lowest_of(forms[0]))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        if type(state) is not kind:
            raise _matching.wrong_state("scale_by_rms", state, kind)
        mean = state.mu if counts else None
        if state.nu is not None and centered == (mean is None):
            raise _matching.wrong_centring(centered)
        _matching.gradients(updates, "nu", state.nu, forms[0].dtype)
        lowest = _store.range_of(state, forms[0]) if counts else None
        if mean is not None:
            _matching.gradients(updates, "mu", mean, forms[1].dtype)
        now = rho(state.count) if callable(rho) else rho
        numbers = cache(partial(_coefficients, now, (eps_root, eps), forms[0]))
        source = None
        if rounds:
            source = _bits.sources(updates, ("nu", "mu"), state.count, seed)

        def step(path: Any, g: Any, p: Any, nu: Any, mu: Any) -> Any:
            real = _leaves.arithmetic_dtype(g, nu)
            wide = _leaves.update_dtype(path, g, p, nu if nu_dtype is None else g)
            coefficients = numbers(real)
            if any(x is not None and x.ndim for x in coefficients):
                _matching.fits(path, g, "decay", coefficients.keep, coefficients.take)
                _matching.fits(path, g, "eps", coefficients.eps_root, coefficients.eps)
            if mu is not None:
                _leaves.same_kind(path, "gradient", g, "mu", mu)
            bits = source and (source(path, "nu", nu), source(path, "mu", mu))
            return update_leaf(coefficients, bits, g, nu, mu, lowest, dtype=wide)

        us, nu, mu = _leaves.each(step, updates, params, state.nu, mean)
        if not counts:
            return us, optax.ScaleByRmsState(nu=nu)
        count = jnp.asarray(optax.safe_increment(state.count))
        if lowest is not None:
            nu = _with_one_range(updates, nu, lowest, forms[0])
            lowest = jnp.full_like(lowest, forms[0].lowest)
        return us, RmsState(count, nu, mu if centered else None, lowest)

    return optax.GradientTransformation(placed(init), update)


def _with_one_range(updates: Any, nu: Any, lowest: Any, form: Any) -> Any:
    """Moves the codes that no gradient has replaced into the range of the others."""
    move = partial(_store.moved, lowest=lowest, form=form)
    return jax.tree.map(
        lambda g, x: jax.tree.map(move, x) if g is None else x,
        updates,
        nu,
        is_leaf=_matching.is_none,
    )


def _coefficients(rho: Any, added: Any, form: Any, real: Any) -> Coefficients:
    """Returns the numbers of a step in `real`, of what the decay is then."""
    if isinstance(rho, Weights):
        keep = jnp.asarray(rho.keep, real)
        take = 1 - keep if rho.take is None else jnp.asarray(rho.take, real)
        left = 1 - take
    else:
        # 1 - rho in the caller's precision: float32 leaves three digits of 1 - 0.9999.
        keep = left = jnp.asarray(rho, real)
        take = jnp.asarray(1 - rho, real)
    added = (None if x is None else jnp.asarray(x, real) for x in added)
    inflation = _store.inflation(keep) if form.dtype == jnp.uint8 else None
    return Coefficients(keep, take, left, *added, inflation=inflation)


def _update_leaf(
    coefficients: Coefficients,
    sources: tuple[_bits.Source | None, _bits.Source | None] | None,
    g: Any,
    nu: Any,
    mu: Any,
    lowest: Any,
    *,
    dtype: Any,
    forms: tuple[_store.Format, _store.Format],
    skip_nonfinite: bool,
    may_be_zero: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the update of one leaf, and its accumulators, as they are stored."""
    real = coefficients.keep.dtype
    u, new_nu, new_mu = _recursion(
        coefficients,
        g if g.dtype == real else g.astype(_leaves.like(g, real)),
        _store.read(nu, real, lowest),
        None if mu is None else _store.read(mu, real),
        skip_nonfinite=skip_nonfinite,
        may_be_zero=may_be_zero,
    )
    nu_bits, mu_bits = sources or (None, None)
    if new_nu.dtype != nu.dtype:
        new_nu = _store.write(new_nu, nu, nu_bits, forms[0], lowest)
    if new_mu is not None:
        new_mu = _store.write(new_mu, mu, mu_bits)
    if sources or mu is not None:
        u = _store.tied(u, new_nu, new_mu)
    u = u if u.dtype == dtype else _leaves.saturated(u, dtype)
    return u, new_nu, new_mu


_STATIC = ("dtype", "forms", "skip_nonfinite", "may_be_zero")
# Rounding is long: it is traced and lowered once for all leaves of a shape. All else is
# so short that a function of its own costs more; without a trace it is compiled, too.
_shared = jax.jit(_update_leaf, static_argnames=_STATIC)
_inlined = jax.jit(_update_leaf, static_argnames=_STATIC, inline=True)


def _recursion(
    coefficients: Coefficients,
    g: jax.Array,
    nu: jax.Array,
    mu: jax.Array | None,
    *,
    skip_nonfinite: bool,
    may_be_zero: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The equation in the docstring of `scale_by_rms`, in one precision throughout."""
    keep, take, left, eps_root, eps, inflation = coefficients
    # jnp's functions are traced by themselves for each shape; lax's take scalars, too.
    scalars = not any(x is not None and x.ndim for x in coefficients)
    times, plus = (lax.mul, lax.add) if scalars else (jnp.multiply, jnp.add)
    delta = g if mu is None else g - mu
    square = lax.square(delta) if delta.dtype == nu.dtype else _leaves.square(delta)
    known = jnp.isfinite(square) if skip_nonfinite else None

    if mu is None:
        new_nu = plus(times(keep, nu), times(take, square))
    else:
        # g_t - mu_t is what the mean left of delta_t (rho delta_t): nu is not negative.
        # Not infinite, because rho may be 0; the floor is, where it matters.
        most = float(jnp.finfo(nu.dtype).max)
        new_nu = keep * nu + take * left * jnp.minimum(square, most)
    if known is not None:
        new_nu = jnp.where(known, new_nu, nu)

    new_mu, variance = mu, (new_nu if inflation is None else times(inflation, new_nu))
    if mu is not None:
        # Adds 0 to mu, only so that nu is computed first: nu reads the old mu, and XLA
        # would otherwise copy it before it overwrites the donated buffer (on CPUs 1.6
        # times the time).
        zero = lax.stop_gradient(jnp.minimum(new_nu, 0))
        new_mu = mu + _leaves.on_parts(lambda part: take * part + zero, delta)
        if known is not None:
            new_mu = jnp.where(known, new_mu, mu)
        floor = jnp.where(keep > 0, jnp.finfo(nu.dtype).eps, 1)
        variance = jnp.maximum(variance, floor * _leaves.square(g))

    if eps_root is not None:
        variance = plus(variance, eps_root)
    if may_be_zero:
        # The smallest normal number: 0 / 0 is then 0, and so is its derivative.
        variance = _leaves.at_least(jnp.finfo(nu.dtype).tiny, variance)
    root = lax.sqrt(variance) if eps is None else plus(lax.sqrt(variance), eps)
    u = _leaves.on_parts(lambda part: lax.div(part, root), g)
    if known is not None:
        u = jnp.where(known, u, 0)
    return u, new_nu, new_mu
