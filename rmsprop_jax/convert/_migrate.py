"""From one transformation to another of the same run."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._optax import follows_the_rate
from ._record import STATES, Group, drain, fill, names_of

_COUNT = ".count"
_KINDS: Any = (*STATES, optax.TraceState, optax.ScaleByScheduleState)


def migrate(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    step: int | None = None,
    decay: float | None = None,
    nu_dtype: Any = None,
    old_nu_dtype: Any = None,
) -> Any:
    """Returns the state of one transformation of RMSProp as the state of another.

    They may differ in `nu_dtype`, `mu_dtype` and `accumulator_dtype`, in momentum,
    centring, schedules, bias correction and weight decay, and one or both may be of
    Optax, `optax.rmsprop`, `optax.scale_by_rms` or `optax.scale_by_stddev`, inside any
    chain. `nu` keeps its values, rounded to nearest where it becomes narrower; every
    schedule goes on from the number of updates done; a momentum or a mean that the
    state does not have starts at zero, one that `tx` does not have is left out. States
    of other elements of the chain stay what they are. `translate` does the same
    between dialects, with their hyperparameters.

    Args:
      state: the state, as the transformation that made it has it.
      tx: the transformation that goes on; its rule and its learning rate act from now.
      params: the parameters; the state comes with the shardings of `tx.init(params)`.
      step: how many updates were done, where the state does not say: one of Optax
        without bias correction and schedules.
      decay: the decay, where a state of Optax has bias correction.
      nu_dtype: the `storage.uint8` with a range of its own that `tx` has, if so.
      old_nu_dtype: that of `state`, if it had one.

    Returns:
      A state for `tx.update`. Of Flax NNX take ``nnx.as_pure(optimizer.opt_state)`` and
      ``nnx.as_pure(nnx.state(model, nnx.Param))``, and give it to a new optimizer with
      ``nnx.update(optimizer.opt_state, nnx.state(...))``.

    Raises:
      ValueError: if `state` is not RMSProp's, is of other parameters, has momentum of
        another kind, or lacks what `tx` needs; the error names it.

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
    fresh = tx.init(params)
    names = _checked_names(state, fresh)
    _check_momentum(state, fresh)
    corrected = any("WithCount" in type(x).__name__ for x in _of(STATES, state, fresh))
    if corrected and decay is None:
        raise ValueError(
            "A state of Optax with bias correction holds averages that are not yet "
            "corrected: pass `decay`, the run's."
        )
    settings = {} if decay is None else {"decay": decay}
    old = Group({**settings, "nu_dtype": old_nu_dtype}, names)
    record = drain(state, "rmsprop", (old,))
    done = record.step if step is None else step
    if done is None and any(path.endswith(_COUNT) for path, _ in _leaves(fresh)):
        raise ValueError(
            "The state does not say how many updates were done, and `tx` counts them: "
            "pass `step`."
        )
    new = Group({**settings, "nu_dtype": nu_dtype}, names)
    record = record._replace(step=done, groups=(new,))
    return _with_others(fill(fresh, record), state, done)


def _checked_names(state: Any, fresh: Any) -> tuple[str, ...]:
    """Returns the names of the parameters, which have to be the same."""
    shapes = [
        {
            name: nu.shape
            for node in _of(STATES, tree)
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
    kinds = []
    for tree in (state, fresh):
        paths = dict(_nodes(tree))
        average = next(p for p, node in paths.items() if isinstance(node, STATES))
        kinds.append(
            {
                follows_the_rate(path, average)
                for path, node in paths.items()
                if isinstance(node, optax.TraceState)
            }
        )
    if all(kinds) and kinds[0] != kinds[1]:
        raise ValueError(
            "One momentum gathers steps, which the learning rate has scaled, and the "
            "other directions: call `rmsprop_jax.convert.translate`, which takes the "
            "learning rates."
        )


def _with_others(new: Any, state: Any, step: int | None) -> Any:
    """Returns a state with the leaves of the other elements of the chain."""
    old = _others(state)
    taken: dict[str, int] = {}

    def kept(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, _KINDS):
            return leaf
        name = _name(path)
        index = taken[name] = taken.get(name, -1) + 1
        found = old.get(name, [])[index : index + 1]
        if found and _alike(found[0], leaf):
            return found[0]
        if name.endswith(_COUNT) and not found:
            return jnp.asarray(step, leaf.dtype)
        raise ValueError(
            f"`tx` has {name} in its state, and the state does not: `migrate` knows "
            "RMSProp, momentum and counts, not how that would start."
        )

    whole = jax.tree_util.tree_map_with_path(kept, new, is_leaf=_is_kind)
    left = [
        name
        for name, leaves in old.items()
        if len(leaves) > taken.get(name, -1) + 1 and not name.endswith(_COUNT)
    ]
    if left:
        raise ValueError(
            f"The state has {', '.join(left)}, which would be lost: `tx` has no place "
            "for that."
        )
    return whole


def _others(state: Any) -> Mapping[str, list[Any]]:
    """Returns the leaves that are not RMSProp's, by name, in order."""
    found: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_kind):
        if not _is_kind(leaf):
            found.setdefault(_name(path), []).append(leaf)
    return found


def _leaves(state: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path), leaf


def _nodes(state: Any) -> Iterator[tuple[str, Any]]:
    """Yields the states of RMSProp and its momentum, with paths like "0.inner.2"."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_kind):
        if _is_kind(node):
            yield jax.tree_util.keystr(path, simple=True, separator="."), node


def _of(kinds: Any, *states: Any) -> list[Any]:
    return [x for state in states for _, x in _nodes(state) if isinstance(x, kinds)]


def _name(path: Any) -> str:
    """Returns a path without places in tuples, which a longer chain moves."""
    sequence = jax.tree_util.SequenceKey
    return jax.tree_util.keystr(tuple(x for x in path if not isinstance(x, sequence)))


def _is_kind(node: Any) -> bool:
    return isinstance(node, _KINDS)


def _alike(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and one.dtype == other.dtype
