"""`rmsprop`: the one chain of weight decay, RMS, learning rate and momentum."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import jax
import optax

from . import _chain, _checks, _round_params, _store, _weight_decay
from ._rms import rms
from ._signature import factory
from ._state import RmsState


@partial(factory, like=optax.rmsprop)
def rmsprop(
    learning_rate: optax.ScalarOrSchedule | None,
    decay: jax.typing.ArrayLike | Callable[[Any], Any] = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    initial_scale: jax.typing.ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    learning_rate_in_momentum: bool = True,
    cautious: bool = False,
    accumulator_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mode: Literal["coupled", "decoupled", "independent"] = "coupled",
    weight_decay_mask: Any = None,
    maximize: bool = False,
    skip_nonfinite: bool = False,
    nu_dtype: Any = None,
    mu_dtype: Any = None,
    seed: jax.typing.ArrayLike = 0,
    round_params: bool | Literal["stochastic", "remainder"] = False,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp: the division, with weight decay, a learning rate and momentum.

    ::

        g ← g + λ·θ                  (coupled weight decay)
        u = scale_by_rms(g)
        b ← m·b + α·u
        θ ← θ − b − α·λ·θ            (decoupled weight decay; independent: λ·θ)

    Without momentum b is α·u. With ``learning_rate_in_momentum=False`` b ← m·b + u, and
    the step is α·b. With ``nesterov=True`` the step has m·b + α·u in the place of b.

    For a thousand leaves of a hundred elements, ``optax.flatten(rmsprop(...))`` takes
    0.7 of the time of `optax.rmsprop` on a CPU, because one vector starts fewer
    kernels; for GPT-2 it takes 5 times as long, because it copies all leaves in every
    step. All leaves then have one state, in the dtype that they have together, so that
    masks and placements by leaf do not apply, and `cautious` has one mean.

    Args:
      learning_rate: α, a number or an Optax schedule; None leaves the updates
        neither scaled nor negated.
      decay: ρ, a number in [0, 1) or a schedule: see `scale_by_rms`.
      eps: keeps the division from zero, at least 0: see `scale_by_rms`.
      initial_scale: the initial value of `nu`, at least 0.
      eps_in_sqrt: whether `eps` is added inside the square root or outside.
      centered: whether to divide by the standard deviation: see `scale_by_rms`.
      momentum: m, a number in [0, 1], or None for no momentum and no buffer.
      nesterov: whether the momentum is Nesterov's; needs `momentum`.
      bias_correction: whether the averages leave out their initial values: see
        `scale_by_rms`, also for why it is not Optax's to the last digit.
      learning_rate_in_momentum: whether the buffer gathers steps, as in Optax, TF and
        Keras, or directions, as in torch; it shows when the learning rate changes.
      cautious: whether to leave out the elements of a step that momentum carries
        against the gradient, and to enlarge the rest of each leaf in proportion, up to
        1,000 times (by a mean over the leaf); the buffer keeps all. Needs `momentum`.
      accumulator_dtype: the dtype of the momentum buffer, as for `mu_dtype`. Needs
        `momentum`.
      weight_decay: λ, a number, at least 0, or a schedule; None or 0 for none.
        `update` then needs `params`.
      weight_decay_mode: where the weight decay acts: "coupled", added to the gradient
        (L2 regularisation: torch, timm, Paddle); "decoupled", taken off the parameters
        times the learning rate (AdamW's, Keras); "independent", taken off as it is.
        Where `learning_rate` is None both are added to the updates, which a later
        element scales and negates.
      weight_decay_mask: which leaves decay, as for `optax.masked`: a tree of booleans,
        or a function from parameters to one.
      maximize: whether to ascend, by negating the gradients.
      skip_nonfinite: whether a gradient that is not finite, or overflows when squared,
        counts as no information, element by element: see `scale_by_rms`.
      nu_dtype: the dtype of `nu`: see `scale_by_rms`.
      mu_dtype: the dtype of `mu`, likewise; needs `centered`.
      seed: of the random bits that what is narrow is rounded with: see `scale_by_rms`.
      round_params: whether parameters of 16 and 8 bits are rounded without bias, which
        otherwise lose every update under half the distance to their neighbours (1/512
        of a parameter in bfloat16): "stochastic" for no memory, "remainder" for a byte
        each that keeps what rounding loses, True for "remainder". The updates then
        have the parameters' dtype: apply them as they are. See `rounding.round_params`.

    Returns:
      An `optax.GradientTransformationExtraArgs`; its updates are for
      `optax.apply_updates` and have the dtypes that those of `scale_by_rms` have. Its
      state is a tuple like that of `optax.rmsprop`, with the state of `scale_by_rms`
      first (second after a coupled weight decay; all up to the momentum's in a tuple of
      their own if `cautious`). It is Optax's own where the options are Optax's and no
      step has to be counted: not with a schedule of the decay, bias correction,
      `centered` or narrow accumulators.

    Raises:
      ValueError: for a number out of its range, arguments that exclude each other,
        gradients whose tree or shapes are not those of the parameters, and an update
        without `params` where `weight_decay` needs them.
      TypeError: for an unknown keyword, an argument of the wrong kind, an integer
        leaf.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from rmsprop_jax import rmsprop
      >>> tx = rmsprop(optax.exponential_decay(0.1, 10, 0.9), centered=True)
      >>> params = jnp.asarray([1.0, -2.0, 3.0])
      >>> state = tx.init(params)
      >>> for _ in range(40):
      ...     grads = jax.grad(lambda x: jnp.sum(x**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.all(jnp.abs(params) < 0.05))
      True

    References:
      Tieleman and Hinton, Lecture 6.5 - rmsprop, COURSERA: Neural Networks for Machine
      Learning, 2012; decoupled weight decay: Loshchilov and Hutter, 2019
      (https://arxiv.org/abs/1711.05101); cautious: Liang et al., 2024
      (https://arxiv.org/abs/2411.16085). The arguments are those of `optax.rmsprop`
      in Optax 0.2.8; those after ``*`` are ours.
    """
    if learning_rate is not None:
        accepted = "a number" if callable(learning_rate) else "finite"
        _checks.hyperparameter(
            "learning_rate", learning_rate, accepted, or_schedule=True
        )
    _checks.flag("maximize", maximize)
    rounds_momentum = _store.is_narrow(
        _store.as_format("accumulator_dtype", accumulator_dtype)
    )
    scale_by_rms = rms(
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        bias_correction,
        centered=centered,
        skip_nonfinite=skip_nonfinite,
        nu_dtype=nu_dtype,
        mu_dtype=mu_dtype,
        seed=seed,
        counts=rounds_momentum,
    )
    chain: list[Any] = [scale_by_rms, _chain.scale("learning_rate", learning_rate, -1)]
    buffer = _chain.momentum(momentum, nesterov, accumulator_dtype, seed)
    _checks.flag("learning_rate_in_momentum", learning_rate_in_momentum)
    before_buffer = 2 if learning_rate_in_momentum else 1
    chain.insert(before_buffer, buffer)
    _checks.flag("cautious", cautious)
    if cautious and momentum is None:
        raise ValueError("`cautious` needs `momentum`, which is None.")
    if cautious:
        steps = learning_rate_in_momentum and learning_rate is not None
        inner, after = chain[: before_buffer + 1], chain[before_buffer + 1 :]
        chain = [_chain.cautious(optax.chain(*inner), -1 if steps else 1), *after]
    decayed = _weight_decay.element(
        learning_rate, weight_decay, weight_decay_mode, weight_decay_mask
    )
    needs_params = None if decayed is None else "weight_decay"
    if decayed is not None:
        chain.insert(0 if weight_decay_mode == "coupled" else len(chain), decayed)
    rounded = _rounded(round_params, learning_rate, seed)
    if rounded is not None:
        needs_params = "round_params"
        chain.append(rounded)
    return _chain.in_wide_dtype(
        optax.chain(*chain),
        step_of=_step_of if rounds_momentum else None,
        maximize=bool(maximize),
        needs_params=needs_params,
        follows=nu_dtype is mu_dtype is accumulator_dtype is None,
    )


def _rounded(form: Any, learning_rate: Any, seed: Any) -> Any:
    """Returns the last element of the chain, or None where nothing is rounded."""
    if isinstance(form, str) and form not in _round_params.FORMS:
        raise ValueError(
            "`round_params` must be True, False, 'stochastic' or 'remainder', got "
            f"{form!r}."
        )
    if not isinstance(form, str):
        _checks.flag("round_params", form)
        if not form:
            return None
        form = _round_params.DEFAULT
    if learning_rate is None:
        raise ValueError(
            "`round_params` needs `learning_rate`, which is None: what scales the "
            "updates afterwards would lose the small ones. Put "
            "`rounding.round_params()` last in your chain instead."
        )
    return _round_params.round_params(seed, form=cast(Any, form))


def _step_of(state: Any) -> Any:
    """Returns the number of updates done, from the state of the chain."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, RmsState))
    return next((x.count for x in nodes if isinstance(x, RmsState)), 0)
