"""The hub: a record of an optimizer's state that no framework's conventions are in.

Every framework needs one reader and one writer of records, and this file the reader and
the writer of states of Optax and of ours. A record keeps E[g²], as frameworks do; ours
keeps the variance where centred, and both directions are taken in float64.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _leaves, _store, dialects
from .._rmsprop import rmsprop
from .._state import RmsState

# Two of these four have no public name. (And an import starts no device.)
_OPTAX_STATES: Any = tuple(
    type(jax.eval_shape(scale(bias_correction=corrected).init, {}))
    for scale in (optax.scale_by_rms, optax.scale_by_stddev)
    for corrected in (False, True)
)
STATES = (RmsState, *_OPTAX_STATES)
_WIDE = _store.Format()
# What has accumulators of parameters, and what else RMSProp's chain keeps.
ACCUMULATING: Any = (*STATES, optax.TraceState)
KINDS: Any = (*ACCUMULATING, optax.ScaleByScheduleState)


class Slots(NamedTuple):
    """The accumulators of one parameter.

    Attributes:
      nu: the average of |g|², without bias where the dialect corrects it; where
        centred, in float64, since the variance is what is left of it without the mean.
        None for a parameter of the optimizer that has no state yet: frozen, unused or
        never stepped.
      mu: the average of g where centred, otherwise None.
      momentum: the buffer, in the direction that is taken off; None if there is none.
    """

    nu: Any
    mu: Any = None
    momentum: Any = None


class Group(NamedTuple):
    """Parameters that share hyperparameters.

    Attributes:
      hyperparameters: what the file has, for the dialect, in its names.
      names: the parameters, in the optimizer's order.
      joined: by the names of those that are sums of parameters of the source, how many
        each element is the sum of: it moves so many times as far.
      waiting: those that have had no gradient, and stay as they are until they have.
      loaded: how many updates were done when it was loaded, and the sum of all nu then:
        a state without a count that has the same sum is still that of this step.
    """

    hyperparameters: dict[str, Any]
    names: tuple[str, ...]
    joined: Mapping[str, np.ndarray] = {}
    waiting: tuple[str, ...] = ()
    loaded: tuple[int | None, float | None] = (None, None)


class Record(NamedTuple):
    """The state of an optimizer, whoever it belongs to.

    Attributes:
      dialect: which of `rmsprop_jax.dialects` continues it, or "rmsprop".
      step: how many updates were done, None where the source does not say.
      groups: the parameter groups, in order; one for most frameworks.
      slots: the accumulators by the name of the parameter, in its framework's layout.
      missing: hyperparameters that such a file does not hold.
      weights: all arrays of the model by name, where the file has them: those that the
        optimizer trains and others, such as the statistics of BatchNorm. Tied ones are
        one and the same array.
      is_ours: whether names, layouts and averages are already those of our state.
      layers: the classes of the layers by the names of their arrays, such as
        "Conv2DTranspose" for "up/kernel", where the file shows them.
      left_out: what the source has besides and is not taken over, in words.
      assumed: what the source does not say and is taken for granted, in words; with
        `strict` these are errors.
      parts: leaves that are not all of one array of the source.
    """

    dialect: str
    step: int | None
    groups: tuple[Group, ...]
    slots: dict[str, Slots]
    missing: tuple[str, ...] = ()
    weights: dict[str, np.ndarray] | None = None
    is_ours: bool = False
    layers: Mapping[str, str] = {}
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def names_of(params: Any) -> dict[str, Any]:
    """Returns the leaves of a parameter tree by path, "Dense_0/kernel".

    Raises:
      ValueError: if two leaves have one path, as of {"a/b": x, "a": {"b": y}}.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = [(path_name(path), leaf) for path, leaf in leaves]
    if len(dict(named)) < len(named):
        names = [name for name, _ in named]
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise ValueError(f"Two leaves of the tree have one path: {twice}.")
    return dict(named)


def path_name(path: Any) -> str:
    """Returns a path as text; the `value` of an NNX variable is not part of it."""
    return "/".join(_leaves.name_of(path))


def arguments_of(dialect: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `rmsprop` that a dialect's arguments stand for."""
    function: Callable[..., Any] = maker(dialect)
    if dialect == "rmsprop":
        bound = inspect.signature(function).bind_partial(**hyperparameters)
        return dict(bound.arguments)
    return inspect.unwrap(function)(**hyperparameters)


def maker(dialect: str) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Returns the function that makes the optimizer of a dialect.

    Raises:
      ValueError: if there is no such dialect.
    """
    known = {"rmsprop": rmsprop, **dialects.DIALECTS}
    if dialect not in known:
        raise ValueError(
            f"`dialect` must be one of {', '.join(known)}, got {dialect!r}."
        )
    return known[dialect]


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the step (dtypes are callable too)."""
    return (
        callable(value) and not isinstance(value, type) and not hasattr(value, "dtype")
    )


def present(value: Any, record: Record, name: str) -> Any:
    """Returns a hyperparameter, of a schedule its value at the record's step.

    Raises:
      ValueError: if it is a schedule and the record does not know its step.
    """
    if not is_schedule(value):
        return value
    if record.step is None:
        raise ValueError(
            f"`{name}` is a schedule, and the source does not say how many updates "
            "were done: pass `step`."
        )
    return float(np.asarray(value(record.step)))


def check_count(record: Record, arguments: Mapping[str, Any]) -> None:
    """Checks that a rule that goes by the number of updates gets it.

    Raises:
      ValueError: if the record does not know it.
    """
    counted = [name for name, value in arguments.items() if is_schedule(value)]
    counted += ["bias_correction"] if arguments.get("bias_correction") else []
    if counted and record.step is None:
        raise ValueError(
            f"`{counted[0]}` goes by the number of updates, and the state does not "
            "count them: give `step`."
        )


def fill(state: Any, record: Record) -> Any:
    """Returns an optimizer's state with the accumulators and counts of a record.

    The record has the names and layouts of the parameter tree. The state may be of
    Optax or of ours, inside any chain, `partition` or `masked`; its structure, dtypes
    and shardings stay.
    """
    group_of = {name: group for group in record.groups for name in group.names}

    def filled(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=_like(record.step or 0, node.count))
        if not isinstance(node, ACCUMULATING):
            return node
        form = _form_of(node)

        def slot(of: Callable[[Slots, Group], Any]) -> Callable[[Any, Any], Any]:
            def value(path: Any, leaf: Any) -> Any:
                name = path_name(path)
                group = group_of[name]
                if record.slots[name].nu is None:
                    return leaf
                found = of(record.slots[name], group)
                if found is None:
                    found = np.zeros(leaf.shape)
                return _like(found, leaf, form)

            return value

        def replaced(tree: Any, of: Callable[[Slots, Group], Any]) -> Any:
            return jax.tree_util.tree_map_with_path(slot(of), tree)

        if isinstance(node, optax.TraceState):
            return optax.TraceState(
                replaced(
                    node.trace,
                    lambda s, group: _signed(s.momentum, record.dialect, group),
                )
            )
        changes = {"nu": replaced(node.nu, _nu_of(node, record))}
        mu = getattr(node, "mu", None)
        if mu is not None:
            changes["mu"] = replaced(
                mu, lambda s, group: _biased(node, s.mu, record, group)
            )
        if "count" in node._fields:
            changes["count"] = _like(record.step or 0, node.count)
        return node._replace(**changes)

    return jax.tree.map(filled, state, is_leaf=is_kind)


def is_kind(node: Any) -> bool:
    """Whether a node is a state of RMSProp, its momentum or a schedule."""
    return isinstance(node, KINDS)


def drain(state: Any, dialect: str, groups: tuple[Group, ...]) -> Record:
    """Returns the record of a state of Optax or of ours: the inverse of `fill`.

    Raises:
      ValueError: if a parameter of the groups has no accumulator in the state.
    """
    nodes = [x for x in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(x)]
    counts = [int(node.count) for node in nodes if "count" in node._fields]
    step = max(counts, default=None)
    found: dict[str, Slots] = {}
    group_of = {name: group for group in groups for name in group.names}
    record = Record(dialect, step, groups, found, is_ours=True)
    for node in nodes:
        if isinstance(node, optax.TraceState | optax.ScaleByScheduleState):
            continue
        means = {} if getattr(node, "mu", None) is None else names_of(node.mu)
        for name, nu in names_of(node.nu).items():
            if name not in group_of:
                continue
            group, mean = group_of[name], means.get(name)
            square = _value(nu, _form_of(node, group))
            square = _biased(node, square, record, group, back=True)
            mu = None if mean is None else _value(mean)
            mu = _biased(node, mu, record, group, back=True)
            if mu is not None and isinstance(node, RmsState):
                square = square + np.square(np.abs(mu))
            dtype = _leaves.arithmetic_dtype(nu)
            if mu is None:
                found[name] = Slots(np.real(square).astype(dtype))
            else:
                found[name] = Slots(np.real(square), mu.astype(_leaves.like(mu, dtype)))
    for node in nodes:
        if isinstance(node, optax.TraceState):
            for name, trace in names_of(node.trace).items():
                if name in found:
                    buffer = _value(trace).astype(
                        _leaves.like(trace, _leaves.arithmetic_dtype(trace))
                    )
                    buffer = _signed(buffer, dialect, group_of[name])
                    found[name] = found[name]._replace(momentum=buffer)
    missing = [name for name in group_of if name not in found]
    if missing:
        raise ValueError(
            f"`state` has no accumulators of "
            f"{', '.join(name or 'the parameter' for name in missing)}: is it of other "
            "parameters?"
        )
    return record


def total_of(record: Record) -> float:
    """Returns the sum of all nu, which a step changes."""
    return sum(float(np.sum(slots.nu)) for slots in record.slots.values())


def is_new(record: Record) -> bool:
    """Whether all accumulators are what an optimizer starts with."""
    starts = {
        name: arguments_of(record.dialect, group.hyperparameters)
        for group in record.groups
        for name in group.names
    }
    return all(
        np.all(slots.nu == starts[name].get("initial_scale", 0.0))
        for name, slots in record.slots.items()
    )


def _nu_of(node: Any, record: Record) -> Callable[[Slots, Group], np.ndarray]:
    """Returns how a kind of state keeps what a record has as E[g²]."""

    def nu(slots: Slots, group: Group) -> np.ndarray:
        square = np.asarray(slots.nu, np.float64)
        if isinstance(node, RmsState) and node.mu is not None:
            mean = 0.0 if slots.mu is None else np.abs(slots.mu).astype(np.float64)
            return np.maximum(square - np.square(mean), 0)
        return _biased(node, square, record, group)

    return nu


def _biased(
    node: Any, value: Any, record: Record, group: Group, back: bool = False
) -> Any:
    """Returns an average as a state of Optax with bias correction keeps it."""
    if value is None or "WithCount" not in type(node).__name__:
        return value
    arguments = arguments_of(record.dialect, group.hyperparameters)
    decay = arguments.get("decay", 0.9)
    if callable(decay):  # the dialect's own, for an initial value other than zero
        decay = group.hyperparameters.get("decay", 0.9)
    factor = debiasing(decay, record.step)
    return value / factor if back else value * factor


def debiasing(decay: Any, step: int | None) -> float:
    """Returns what Optax divides an average by to take the initial zero out of it."""
    return 1 - float(decay) ** step if step else 1.0  # nothing is in it at step 0


def _signed(buffer: Any, dialect: str, group: Group) -> Any:
    """Negates a buffer that gathers steps: they are taken off where we add them."""
    if buffer is None:
        return None
    arguments = arguments_of(dialect, group.hyperparameters)
    steps = arguments.get("learning_rate_in_momentum", True)
    return -buffer if steps and arguments.get("learning_rate") is not None else buffer


def _form_of(node: Any, group: Group | None = None) -> _store.Format:
    """Returns the form of a state's nu; where it does not say, as in 0.1, a group's."""
    lowest = getattr(node, "lowest", None)
    if lowest is not None:
        return _store.Format(lowest=lowest)
    dtype = None if group is None else group.hyperparameters.get("nu_dtype")
    return _store.as_format("nu_dtype", dtype, unsigned=True)


def _value(stored: Any, form: _store.Format = _WIDE) -> np.ndarray:
    """Returns the value of an accumulator in double precision."""
    wide = _store.read(stored, _leaves.arithmetic_dtype(stored), form.lowest)
    return np.asarray(wide, np.complex128 if np.iscomplexobj(wide) else np.float64)


def _like(value: Any, leaf: Any, form: _store.Format = _WIDE) -> Any:
    """Returns a value in the form of a leaf that it replaces, where that is."""
    if leaf.dtype.itemsize <= 2:
        value = _store.nearest(value, leaf, form)
    return placed(value, leaf)


def placed(value: Any, leaf: Any) -> Any:
    """Returns a value with the dtype and the sharding of a leaf that it replaces."""
    if not (isinstance(value, jax.Array) and value.dtype == leaf.dtype):
        # In NumPy, which has float64 always.
        value = jnp.asarray(np.asarray(value).astype(leaf.dtype))
    is_placed = getattr(leaf, "committed", False)
    return jax.device_put(value, leaf.sharding) if is_placed else value
