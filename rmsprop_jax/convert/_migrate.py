"""From one transformation to another of the same run."""

from typing import Any

import jax
import numpy as np
import optax
from jax.core import Tracer

from .. import _checks, _store
from . import _adam, _restored
from ._elements import has_counts, nodes, steps_done, with_others
from ._memory import in_default_memory, in_memory_of
from ._optax import follows_the_rate
from ._record import STATES, Group, drain, fill, names_of
from ._resume import MOST_STEPS


def migrate(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    step: int | None = None,
    decay: float | None = None,
    b1: float | None = None,
    learning_rate: float | None = None,
    nu_dtype: Any = None,
    old_nu_dtype: Any = None,
    old_tx: optax.GradientTransformation | None = None,
) -> Any:
    """Returns the state of one transformation of RMSProp as the state of another.

    They may differ in `nu_dtype`, `mu_dtype` and `accumulator_dtype`, in momentum,
    centring, schedules, bias correction and weight decay, and one or both may be of
    Optax, `optax.rmsprop`, `optax.scale_by_rms` or `optax.scale_by_stddev`, inside any
    chain; also `optax.adam` and `optax.adamw`, whose `nu` is the same average, but not
    `adamax` and `yogi`, which use the class of Adam's state for something else. `nu`
    keeps its values, rounded to nearest where it becomes narrower; every schedule goes
    on from the number of updates done; a momentum or a mean that the state does not
    have starts at zero, one that `tx` does not have is left out. `watch`,
    `optax.inject_hyperparams`, `optax.apply_if_finite`, `optax.MultiSteps` and
    `round_params` may come and go. States of other elements of the chain stay what they
    are. `translate` does the same between dialects, with their hyperparameters.

    Args:
      state: the state, as the transformation that made it has it, or as Flax and Orbax
        restore it without a target, in dictionaries and lists.
      tx: the transformation that goes on; its rule and its learning rate act from now.
      params: the parameters; the state comes with the shardings of `tx.init(params)`,
        in host memory where `state` was there.
      step: how many updates were done, where the state does not say: one of Optax
        without bias correction and schedules. At most 2^31 - 1.
      decay: the decay, where a state of Optax has bias correction; b2 of Adam.
      b1: of Adam, where its mean shall become the momentum, or is made of it.
      learning_rate: the number that scales the steps which that momentum gathers.
      nu_dtype: the `storage.uint8` with a range of its own that `tx` has, if so.
      old_nu_dtype: that of `state`, if it had one.
      old_tx: the transformation that made `state`, where dictionaries do not tell: a
        count, a mu and a nu may be Adam's.

    Returns:
      A state for `tx.update`. Of Flax NNX take ``nnx.as_pure(optimizer.opt_state)`` and
      ``nnx.as_pure(nnx.state(model, nnx.Param))``, and give it to a new optimizer with
      ``nnx.update(optimizer.opt_state, nnx.state(...))``.

    Raises:
      TypeError: if `tx` is no transformation, or a number none.
      ValueError: if `state` is not RMSProp's, is of other parameters, has momentum of
        another kind, or lacks what `tx` needs; the error names it.

    Warns:
      UserWarning: if Adam's mean is left out, or starts at zero; if the remainders of
        `round_params` are left out.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import convert, rmsprop
      >>> params = {"w": jnp.ones(3)}
      >>> old = optax.rmsprop(0.1)
      >>> _, state = old.update(params, old.init(params))
      >>> tx = rmsprop(optax.cosine_decay_schedule(0.1, 9), momentum=0.9)
      >>> state = convert.migrate(state, tx, params, step=1)
      >>> print(state[0].nu["w"], state[1].count, state[2].trace["w"])
      [0.1 0.1 0.1] 1 [0. 0. 0.]
    """
    for leaf in jax.tree.leaves((state, params)):
        if isinstance(leaf, Tracer):
            raise TypeError(
                "`state` or `params` are traced: call `migrate` outside of `jax.jit`, "
                "once, before the run goes on."
            )
    step = None if step is None else _checks.integer("step", step, 0, MOST_STEPS)
    for name, value in {"decay": decay, "b1": b1}.items():
        if value is not None:
            _checks.number(name, value, "in [0, 1)")
    if learning_rate is not None:
        _checks.number("learning_rate", learning_rate, "finite and greater than 0")
    fresh = _initial("tx", tx, params)
    if old_tx is not None:
        state = _restored.like(state, _initial("old_tx", old_tx, params))
    given = _restored.in_classes(state)
    state = in_default_memory(given)
    done = steps_done(state) if step is None else step
    target, rate = fresh, None
    is_adams, is_for_adam = _adam.has_adam(state), _adam.has_adam(fresh)
    if is_adams and is_for_adam:  # beside RMSProp, say, it stays what it is
        is_adams = is_for_adam = False
    if is_adams:
        rate = _rate_of(fresh, b1, learning_rate)
        state = _adam.as_rms(state, _needed(decay), b1, rate)
    if is_for_adam:
        rate = _rate_of(state, b1, learning_rate)
        target = _adam.standing_in(fresh, b1, rate is not None)
    for name, dtype, what, tree in (
        ("old_nu_dtype", old_nu_dtype, "state", given),
        ("nu_dtype", nu_dtype, "tx", fresh),
    ):
        form = _store.as_format(name, dtype, unsigned=True)
        nus = [x.nu for _, x in nodes(tree) if getattr(x, "nu", None) is not None]
        _store.same(name, form, what, nus)
    names = _checked_names(state, target)
    _check_momentum(state, target)
    if any("WithCount" in type(x).__name__ for _, x in (*nodes(state), *nodes(target))):
        _needed(decay)
    whole = with_others(target, state, done)
    _check_gathered(tx, whole)
    if done is None and (has_counts(target) or target is not fresh):
        raise ValueError(
            "The state does not say how many updates were done, and `tx` counts them: "
            "pass `step`."
        )
    settings = {} if decay is None else {"decay": decay}
    old, new = (
        Group({**settings, "nu_dtype": dtype}, names)
        for dtype in (old_nu_dtype, nu_dtype)
    )
    record = drain(state, "rmsprop", (old,))
    record = record._replace(step=done, groups=(new,))
    found = fill(whole, record)
    if target is not fresh:
        found = _adam.back(found, fresh, done or 0, _needed(decay), b1, rate)
    return in_memory_of(given, found)


def _initial(name: str, tx: Any, params: Any) -> Any:
    """Returns the initial state of a transformation, checked."""
    _checks.transformation(name, tx)
    return tx.init(params)


def _check_gathered(tx: Any, state: Any) -> None:
    """Checks that MultiSteps, where it is outermost, has not yet gathered too much."""
    every = getattr(tx, "_every_k_schedule", None)  # Optax 0.2.8 has no public name
    if every is None or not isinstance(state, optax.MultiStepsState):
        return
    gathered, most = (
        np.asarray(x).item() for x in (state.mini_step, every(state.gradient_step))
    )
    if gathered and gathered >= most:
        raise ValueError(
            f"The state has {gathered} gathered gradients, and `tx` gathers {most}: "
            "migrate when mini_step is 0."
        )


def _needed(decay: float | None) -> float:
    """Returns the decay of averages that are not yet corrected."""
    if decay is None:
        raise ValueError(
            "A state of Optax with bias correction, or of Adam, holds averages that "
            "are not yet corrected: pass `decay`, the run's, which is Adam's b2."
        )
    return decay


def _rate_of(other: Any, b1: float | None, learning_rate: float | None) -> float | None:
    """Returns the learning rate of a momentum that is made of Adam's mean, or back.

    Args:
      other: the state that is not Adam's.
      b1: Adam's, None if there is to be no momentum.
      learning_rate: the number that was given.
    """
    if b1 is None:
        return None
    kinds = _momenta(other)
    if not kinds:
        raise ValueError(
            "`b1` turns Adam's mean into a momentum, or back, and the RMSProp has "
            "none: leave `b1` out."
        )
    if kinds == {False}:
        return None
    if learning_rate is None:
        raise ValueError(
            "The momentum gathers steps, which the learning rate has scaled: pass "
            "`learning_rate` beside `b1`."
        )
    return float(learning_rate)


def _checked_names(state: Any, fresh: Any) -> tuple[str, ...]:
    """Returns the names of the parameters, which have to be the same."""
    shapes = [
        {
            name: nu.shape
            for _, node in nodes(tree)
            if isinstance(node, STATES)
            for name, nu in names_of(node.nu).items()
        }
        for tree in (state, fresh)
    ]
    for which, found in zip(("`state`", "`tx`"), shapes, strict=True):
        if not found:
            raise ValueError(
                f"{which} has no average of squared gradients: it is not RMSProp."
            )
    old, new = shapes
    if old != new:
        differing = "; ".join(
            f"{name} has {old.get(name, 'nothing')} in the state, "
            f"{new.get(name, 'nothing')} in `params`"
            for name in dict.fromkeys((*new, *old))
            if old.get(name) != new.get(name)
        )
        raise ValueError(f"The state is of other parameters: {differing}.")
    return tuple(old)


def _check_momentum(state: Any, fresh: Any) -> None:
    """Checks that both momenta hold steps, or both directions."""
    kinds = [_momenta(tree) for tree in (state, fresh)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise ValueError(
            "One momentum gathers steps, which the learning rate has scaled, and the "
            "other directions: call `rmsprop_jax.convert.translate`, which takes the "
            "learning rates."
        )


def _momenta(state: Any) -> set[bool]:
    """Returns whether the momenta of a state gather steps."""
    paths = dict(nodes(state))
    average = next(p for p, node in paths.items() if isinstance(node, STATES))
    return {
        follows_the_rate(path, average)
        for path, node in paths.items()
        if isinstance(node, optax.TraceState)
    }
