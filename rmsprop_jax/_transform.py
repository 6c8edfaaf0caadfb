"""The recursion: `scale_by_rms` and its state. The update rule stands here, once."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import _bits, _checks, _leaves, storage
from ._signature import factory
from .decay import as_schedule, weights


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`, the same for every option.

    A learning-rate schedule has a `count` of its own beside this one, so that
    `optax.tree_utils.tree_get(state, "count")` finds two: ask for "ScaleByRmsState".

    Attributes:
      count: how many updates were done, an int32 scalar.
      nu: the moving average of |g|², or of the squared deviation from `mu` where
        centred: a real array for each parameter, of its shape.
      mu: the moving average of g where centred, otherwise None (an empty tree).
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: optax.Updates
    mu: optax.Updates | None


@partial(factory, like=optax.scale_by_rms)
def scale_by_rms(
    decay: jax.typing.ArrayLike | Callable[[Any], Any] = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    skip_nonfinite: bool = False,
    nu_dtype: Any = None,
    mu_dtype: Any = None,
    seed: jax.typing.ArrayLike = 0,
) -> optax.GradientTransformation:
    r"""Divides each gradient by a moving root mean square of its own history.

    .. math::
      \delta_t &= g_t - \mu_{t-1} \\
      \mu_t &= \mu_{t-1} + (1 - \rho_t) \, \delta_t
        \qquad \text{where centred, otherwise } \mu \equiv 0 \\
      \nu_t &= \rho_t \, \nu_{t-1} + (1 - \rho_t) \, \delta_t \, (g_t - \mu_t) \\
      u_t &= g_t / (\sqrt{\nu_t + \epsilon_\text{root}} + \epsilon)

    The arithmetic is in float32, or in float64 where gradients or accumulators are;
    the update has the gradient's dtype. Complex gradients use the squared modulus. A
    gradient of None leaves its accumulators as they are.

    Args:
      decay: how much of the average a step keeps: a number in [0, 1), or a schedule,
        a function of the number of updates done that stays in [0, 1)
        (`rmsprop_jax.decay` has some). One that leaves [0, 1] during a run makes the
        updates NaN at once, as a negative `eps` does; 1 itself keeps all of `nu`.
      eps: keeps the division from zero, at least 0: in units of the gradient, or of
        its square where `eps_in_sqrt`.
      initial_scale: the initial value of `nu`, at least 0.
      eps_in_sqrt: whether `eps` is added inside the square root or outside.
      bias_correction: whether to use the average of the gradients seen, without the
        initial value: short for ``decay=rmsprop_jax.decay.debiased(decay)``. Optax's
        is the same for `initial_scale` 0 and, centred, from step 2 on, but up to 1e-5
        off exact arithmetic (1 - 0.999^t in float32), where this is within 5e-7.
      centered: whether to divide by the standard deviation instead. The variance is
        itself the state, so it is never negative; where it falls under the rounding
        error of |g|², as it does for constant gradients, that error stands in (so |u|
        stays below 2,900 in float32), and where rho = 0 forgets all but one gradient,
        which has no variance, |g|² itself does.
      skip_nonfinite: whether an element whose gradient is not finite, or overflows
        when squared, counts as no information: its accumulators stay, its update is 0.
        Otherwise NaN makes that element's `nu` NaN for good, and what is too large to
        square all but stops the element until the average has forgotten it.
      nu_dtype: the dtype of `nu`: float32, float64, bfloat16, uint16, uint8, or
        `storage.uint8` with another range; by default float32, and float64 for float64
        and complex128 parameters. What is narrower is rounded without bias, after the
        division. uint16 and uint8 are codes, which `storage.decode` reads.
      mu_dtype: the dtype of `mu`: float32, float64 or bfloat16; complex, and so at
        least complex64, for complex parameters.
      seed: an integer that tells apart the random bits of runs, or of the layers of a
        `jax.lax.scan`; may be traced. Members of a `jax.vmap` differ without it.

    Returns:
      An `optax.GradientTransformation` whose state is a `ScaleByRmsState`. Its
      updates are not yet scaled by a learning rate, and not negated.

    Raises:
      ValueError: for a number out of its range, or gradients whose tree or shapes are
        not those of the parameters. Not for an array of JAX's, which a run may change.
      TypeError: for an unknown keyword, an argument of the wrong kind, an integer
        leaf.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import scale_by_rms
      >>> tx = optax.chain(scale_by_rms(decay=0.9), optax.scale(-0.01))
      >>> params = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> state = tx.init(params)
      >>> grads = {"w": jnp.asarray([1e-2, 1.0, 1e2], jnp.bfloat16)}
      >>> updates, state = tx.update(grads, state)
      >>> print(updates["w"])  # the scale of the gradient is gone
      [-0.0314941 -0.0314941 -0.0314941]

    References:
      Tieleman and Hinton, Lecture 6.5 - rmsprop, COURSERA: Neural Networks for Machine
      Learning, 2012; centred: Graves, Generating Sequences With Recurrent Neural
      Networks, 2013 (https://arxiv.org/abs/1308.0850). The arguments are those of
      `optax.scale_by_rms` in Optax 0.2.8; those after ``*`` are ours.
    """
    schedule = as_schedule(decay, bias_correction)
    _checks.hyperparameter("eps", eps, "finite and at least 0")
    _checks.hyperparameter("initial_scale", initial_scale, "finite and at least 0")
    eps, initial_scale = (_checks.inside(0, None, x) for x in (eps, initial_scale))
    _checks.flag("eps_in_sqrt", eps_in_sqrt)
    _checks.flag("centered", centered)
    _checks.flag("skip_nonfinite", skip_nonfinite)
    forms = (
        storage.as_format("nu_dtype", nu_dtype, unsigned=True),
        storage.as_format("mu_dtype", mu_dtype),
    )
    if mu_dtype is not None and not centered:
        raise ValueError("`mu_dtype` needs `centered=True`: otherwise there is no mu.")
    _bits.check_seed(seed)
    centered = bool(centered)
    eps_root, eps = (eps, 0.0) if eps_in_sqrt else (0.0, eps)

    def init(params: optax.Params) -> Any:
        _checks.floating_leaves("params", params)
        nu = partial(storage.full, value=initial_scale, form=forms[0], real=True)
        mu = partial(storage.full, value=0, form=forms[1])
        return ScaleByRmsState(
            count=jnp.zeros((), jnp.int32),
            nu=jax.tree.map(nu, params),
            mu=jax.tree.map(mu, params) if centered else None,
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params
        _checks.state_of("scale_by_rms", state, ScaleByRmsState)
        _checks.floating_leaves("gradients", updates)
        _checks.same_tree("gradients", updates, "state's nu", state.nu)
        if state.nu is not None and centered == (state.mu is None):
            found = "no mu" if centered else "a mu"
            raise ValueError(
                f"`centered` is {centered}, but the state has {found}: it comes from "
                "another transformation. Use the state that this one's `init` returns."
            )
        rho = schedule(state.count)

        @cache
        def numbers(real: Any) -> tuple[jax.Array, ...]:
            return *weights(rho, real), *(jnp.asarray(x, real) for x in (eps_root, eps))

        source = _bits.sources(updates, ("nu", "mu"), state.count, seed)

        def step(path: Any, g: Any, nu: Any, mu: Any) -> Any:
            return _update_leaf(
                numbers(_leaves.arithmetic_dtype(g, nu)),
                [source(path, "nu", nu), source(path, "mu", mu)],
                *(g, nu, mu),
                forms=forms,
                skip_nonfinite=bool(skip_nonfinite),
            )

        us, nu, mu = _leaves.each(step, updates, state.nu, state.mu)
        count = jnp.asarray(optax.safe_increment(state.count))
        return us, ScaleByRmsState(count, nu, mu if centered else None)

    return optax.GradientTransformation(storage.placed(init), update)


# Traced and lowered once for all leaves of a shape, of which there may be thousands.
@partial(jax.jit, static_argnames=("forms", "skip_nonfinite"))
def _update_leaf(
    numbers: tuple[jax.Array, ...],
    sources: list[_bits.Source | None],
    g: Any,
    nu: Any,
    mu: Any,
    *,
    forms: tuple[storage.Format, storage.Format],
    skip_nonfinite: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the update of one leaf, and its accumulators, as they are stored."""
    if mu is not None:
        _leaves.same_kind("gradient", g, "mu", mu)
    real = _leaves.arithmetic_dtype(g, nu)
    u, new_nu, new_mu = _recursion(
        jnp.asarray(g, _leaves.like(g, real)),
        storage.read(nu, real, forms[0]),
        None if mu is None else storage.read(mu, real),
        *numbers,
        skip_nonfinite=skip_nonfinite,
    )
    new_nu = storage.write(new_nu, nu, sources[0], forms[0])
    if new_mu is not None:
        new_mu = storage.write(new_mu, mu, sources[1])
    return storage.tied(u, new_nu, new_mu).astype(jnp.result_type(g)), new_nu, new_mu


def _recursion(
    g: jax.Array,
    nu: jax.Array,
    mu: jax.Array | None,
    keep: jax.Array,
    take: jax.Array,
    left: jax.Array,
    eps_root: jax.Array,
    eps: jax.Array,
    *,
    skip_nonfinite: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The equation in the docstring of `scale_by_rms`, in one precision throughout."""
    delta = g if mu is None else g - mu
    square = _leaves.square(delta)

    def unless_skipped(new: jax.Array, old: Any) -> jax.Array:
        return jnp.where(jnp.isfinite(square), new, old) if skip_nonfinite else new

    if mu is None:
        new_mu = None
        new_nu = variance = unless_skipped(keep * nu + take * square, nu)
    else:
        # g_t - mu_t is what the mean left of delta_t (rho delta_t): nu is not negative.
        # Not infinite, because rho may be 0; the floor is, where it matters.
        most = float(jnp.finfo(nu.dtype).max)
        spread = take * left * jnp.minimum(square, most)
        new_nu = unless_skipped(keep * nu + spread, nu)
        # Zero, but mu has to wait for it: if nu could come second, XLA would copy the
        # old mu for it before a donated mu is overwritten (on CPUs 1.6 times the time).
        zero = jax.lax.stop_gradient(jnp.minimum(new_nu, 0))
        step = _leaves.on_parts(lambda part: take * part + zero, delta)
        new_mu = unless_skipped(mu + step, mu)
        floor = jnp.where(keep > 0, jnp.finfo(nu.dtype).eps, 1)
        variance = jnp.maximum(new_nu, floor * _leaves.square(g))
    # The smallest normal number: 0 / 0 is then 0, and so is its derivative.
    root = jnp.sqrt(_leaves.at_least(jnp.finfo(nu.dtype).tiny, variance + eps_root))
    u = _leaves.on_parts(lambda part: part / (root + eps), g)
    return unless_skipped(u, 0), new_nu, new_mu
