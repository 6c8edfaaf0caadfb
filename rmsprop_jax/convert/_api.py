"""What a user calls: `load`, `save`, `export`."""

import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks
from . import _files, _ours, _torch
from ._continued import made
from ._moving import Weights, from_tree, to_tree
from ._names import Rule
from ._origins import Place
from ._record import (
    Group,
    Record,
    Slots,
    arguments_of,
    check_count,
    debiasing,
    drain,
    fill,
    is_new,
    maker,
    names_of,
    present,
    total_of,
)
from ._resume import MOST_STEPS, counted, transposed_in, tree_of
from ._sources import check_suffix, content_of, default_rule, module_of, read


class Restored(NamedTuple):
    """What `load` returns.

    Attributes:
      state: the state of `optimizer`, to go on with.
      optimizer: the dialect with the hyperparameters; an `optax.partition` of them
        where the file has several groups.
      hyperparameters: the dialect's arguments, of the file and of the call; a tuple of
        them for several groups.
      params: the parameters, if the file has all of them, otherwise None.
      dialect: the name of the dialect.
      step: how many updates were done; None if the source does not say.
      groups: the parameter groups, for `save`.
      places: what went where: each leaf's path, and its place in the file.
      left_out: what the source has besides, in words: other entries of the file, arrays
        of the model that no leaf takes, and what `leave_out` names.
      assumed: what the source does not say and is taken for granted, in words.
    """

    state: Any
    optimizer: optax.GradientTransformationExtraArgs
    hyperparameters: Any
    params: Any
    dialect: str
    step: int | None
    groups: tuple[Group, ...]
    places: list[tuple[str, Place]]
    left_out: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def load(
    source: Any,
    params: Any,
    *,
    weights: Weights | Rule | Mapping[str, str] | None = None,
    framework: str | None = None,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    leave_out: Collection[str] = (),
    step: int | None = None,
    strict: bool = False,
    **hyperparameters: Any,
) -> Restored:
    """Reads an optimizer's state, of any framework, for a tree of parameters.

    Nothing is returned unless all of it fits: one error lists what is missing, extra or
    mis-shaped, by name.

    Args:
      source: a path: .pt, .pth (torch, timm, Stable-Baselines3, bitsandbytes; needs
        torch, and executes no pickled code), .safetensors (those, or ours), .keras or
        .weights.h5, the prefix of a TF1 checkpoint, .msgpack, .npz or a folder of Orbax
        (Optax); or the content of one, such as torch's `optimizer.state_dict()`, or an
        Optax state.
      params: the parameters, or their `jax.ShapeDtypeStruct`s: any tree, a Flax NNX
        model or a Linen `TrainState`.
      weights: the function with which you move the weights: it takes the source's
        arrays, a dictionary by name, and returns the tree. It may transpose, reshape,
        split, join, stack and flip, in NumPy or JAX and in any dtype; it is sent the
        numbers of elements to learn where each one goes, and the accumulators follow.
        Each element that the optimizer trains has to go into one leaf, once; the sum
        of two moves twice as far, as both together do in the source. Or a rule,
        `torch_to_flax` or `same`, or a dictionary from paths to names; by default the
        rule of the dialect.
      framework: the name of the dialect; by default as the source shows.
      rule: what `weights` was called in version 0.1.
      names: what the source numbers and does not name, in its order.
      leave_out: names of parameters, or of modules, of the source that have no leaf.
      step: how many updates were done, where the source does not say or not rightly;
        schedules start from there.
      strict: whether what would be assumed is an error.
      **hyperparameters: the dialect's arguments that replace the source's, such as a
        learning-rate schedule, or that it does not hold; a tuple is one for each group.
        A state of Optax shows neither `nesterov` nor `eps_in_sqrt`: give them.

    Returns:
      A `Restored`: ``state`` goes on under ``optimizer``, which is the dialect with
      ``hyperparameters``. `resume` fills a Flax NNX model's optimizer or a Linen
      `TrainState` with it.

    Raises:
      ValueError: if the source is not such a state, does not fit the parameters, or
        lacks hyperparameters that the call does not give; if `weights` does more than
        move elements, which it names; if what `strict` forbids would be assumed.
      ImportError: if reading it needs a package that is not installed.

    Example:
      >>> import numpy as np
      >>> from rmsprop_jax import convert
      >>> state_dict = {
      ...     "state": {0: {"step": 7, "square_avg": np.full((2, 3), 0.5)}},
      ...     "param_groups": [
      ...         {"lr": 0.1, "alpha": 0.9, "foreach": None, "params": [0]}
      ...     ],
      ... }
      >>> params = {"fc": {"kernel": np.zeros((3, 2), np.float32)}}
      >>> restored = convert.load(state_dict, params, names=["fc.weight"])
      >>> restored.dialect, restored.hyperparameters["alpha"], restored.step
      ('torch', 0.9, 7)
      >>> restored.state[0].nu["fc"]["kernel"].shape
      (3, 2)
      >>> def to_jax(arrays):
      ...     return {"fc": {"kernel": arrays["fc.weight"].T}}
      >>> again = convert.load(state_dict, params, weights=to_jax, names=["fc.weight"])
      >>> print(again.places[0][1])
      fc.weight, transposed
    """
    if step is not None:
        step = _checks.integer("step", step, 0, MOST_STEPS)
    known, params = transposed_in(params), tree_of(params)
    record = read(source, framework, names, hyperparameters)
    record = record if step is None else record._replace(step=step)
    function = chosen(weights, rule, record, known)
    record, places = to_tree(record, params, function, leave_out)
    record = completed(record, hyperparameters)
    check_assumed(record, strict)
    optimizer = made(checked(record), params)
    found = record.weights or {}
    tree = jax.tree_util.tree_structure(params)
    leaves = names_of(params)
    whole = [found.get(name) for name in leaves]
    settings = tuple(group.hyperparameters for group in record.groups)
    state = fill(optimizer.init(params), record)
    loaded = (record.step, total_of(drain(state, record.dialect, record.groups)))
    return Restored(
        state=state,
        optimizer=optimizer,
        hyperparameters=settings[0] if len(settings) == 1 else settings,
        params=None
        if any(x is None for x in whole)
        else _as_params(tree, whole, leaves),
        dialect=record.dialect,
        step=record.step,
        groups=tuple(group._replace(loaded=loaded) for group in record.groups),
        places=places,
        left_out=record.left_out,
        assumed=record.assumed,
    )


def export(
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any] | Sequence[Group],
    *,
    weights: Weights | Rule | Mapping[str, str] | None = None,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    like: Any = None,
    leave_out: Collection[str] = (),
    step: int | None = None,
) -> Any:
    """Returns an optimizer's state as its framework keeps it, in memory.

    Args:
      state: the state, inside any chain.
      params: the parameters; they go along where the framework keeps them together. Of
        `jax.ShapeDtypeStruct`s only the optimizer's state is written.
      dialect: the name of the dialect that the state is of.
      hyperparameters: the arguments that the run had, or `Restored.groups`. Where a
        schedule stands, its value at the state's step is written.
      weights: as for `load`: its inverse writes back. A function needs `like`.
      rule: as for `load`.
      names: the framework's names of all parameters, in the optimizer's order. By
        default those of `like`, or the paths of the tree.
      like: a file, or its content, to take the order and all else from.
      leave_out: names of parameters of `like` that stay as they are there.
      step: how many updates were done. By default as many as the state counts, or a
        `TrainState` given as `params`. A plain RMSProp counts none: then it is the step
        of `Restored.groups` or of `like`, and a warning says so if it has gone on.

    Returns:
      torch's state dictionary (of arrays), Keras's optimizer variables in order (under
      "variables"), TF1's tensors by name, or Optax's own state.

    Raises:
      ValueError: if the state, the parameters and the names do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import convert, dialects
      >>> params = {"fc": {"kernel": jnp.ones((3, 2))}}
      >>> state = dialects.torch(lr=0.1).init(params)
      >>> names = ["fc.weight"]
      >>> there = convert.export(state, params, "torch", {"lr": 0.1}, names=names)
      >>> there["state"][0]["square_avg"].shape
      (2, 3)
    """
    step, known = counted(params, step), transposed_in(params)
    params = tree_of(params)
    record = drained(state, params, dialect, hyperparameters, step)
    if dialect == "optax":
        return _as_optax(record, params)
    content = content_of(like, dialect)
    if content is None and dialect in _torch.DIALECTS:
        record = record._replace(weights=None)  # torch keeps them elsewhere
    return _written(record, params, (weights, rule, known), names, content, leave_out)[
        1
    ]


def save(
    target: str | os.PathLike[str],
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any] | Sequence[Group],
    *,
    weights: Weights | Rule | Mapping[str, str] | None = None,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    like: Any = None,
    leave_out: Collection[str] = (),
    step: int | None = None,
) -> None:
    """Writes an optimizer's state as a file of its framework, or as ours.

    The file is written under a temporary name and moved: it is complete or as it was.
    Only RMSProp's own accumulators and counts are kept: of `optax.MultiSteps`, save
    after a whole step, or the gradients that it has gathered are lost.

    Args:
      target: the path. A .safetensors is a file of ours, except for torch's dialects
        with `like` or `names`; .msgpack is Optax's; else it is a file of the dialect's.
      state: the state, inside any chain.
      params: as for `export`.
      dialect: the name of the dialect that the state is of.
      hyperparameters: as for `export`.
      weights: as for `export`.
      rule: as for `load`.
      names: as for `export`.
      like: as for `export`; a Keras file needs it. What the copy has of it that is
        older than the state, a scheduler or statistics of BatchNorm, a warning names.
      leave_out: as for `export`.
      step: as for `export`.

    Raises:
      ValueError: if the state, the parameters and the names do not fit.
      ImportError: if writing it needs a package that is not installed.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import convert, dialects
      >>> params = {"w": jnp.ones(3)}
      >>> state = dialects.keras().init(params)
      >>> path = os.path.join(tempfile.mkdtemp(), "state.safetensors")
      >>> convert.save(path, state, params, "keras", {"learning_rate": 0.001})
      >>> convert.load(path, params).dialect
      'keras'
    """
    _checks.instance("target", target, str | os.PathLike, "the path of a file")
    path, step = Path(target), counted(params, step)
    known, params = transposed_in(params), tree_of(params)
    record = drained(state, params, dialect, hyperparameters, step)
    torch_like = dialect in _torch.DIALECTS and (like is not None or names is not None)
    if path.suffix == ".safetensors" and not torch_like:
        _ours.save(path, record)
        if record.step is None and record.groups[0].loaded[0] is not None:
            warnings.warn(
                "The state counts no updates and has gone on since it was loaded: give "
                "`step`, which the file does not say otherwise.",
                stacklevel=2,
            )
        return
    module = None if dialect == "optax" else module_of(dialect)
    check_suffix(path, dialect)
    if module is None:
        import flax.serialization  # here, because it takes a second

        with _files.replacing(path) as temporary:
            native = _as_optax(record, params)
            temporary.write_bytes(flax.serialization.to_bytes(native))
    else:
        content = content_of(like, dialect)
        rules = (weights, rule, known)
        module, new = _written(record, params, rules, names, content, leave_out)
        module.save(path, new)


def chosen(
    weights: Any, rule: Any, record: Record, transposed: Collection[str] | None = None
) -> Weights | Rule:
    """Returns the function or the rule that a user means.

    Raises:
      TypeError, ValueError: if it is none, or there are two.
    """
    if weights is not None and rule is not None:
        raise ValueError("`rule` is another name of `weights`: give one of them.")
    given = rule if weights is None else weights
    default = default_rule(record)
    if isinstance(given, Mapping):
        given = default.by_path(given)
    if given is not None and not callable(given) and not isinstance(given, Rule):
        raise TypeError(
            "`weights` must be a function from the source's arrays by name to the "
            "tree, a rule, or a dictionary from paths to names, got "
            f"{type(given).__name__}."
        )
    given = default if given is None else given
    return given.knowing(transposed) if isinstance(given, Rule) else given


def check_assumed(record: Record, strict: bool) -> None:
    """Raises if anything was assumed, where that is not allowed."""
    if strict and record.assumed:
        raise ValueError(
            "`strict` allows no assumptions, and the source does not say:\n  "
            + "\n  ".join(record.assumed)
        )


def older(record: Record, old: Record, step: int | None) -> str:
    """Says what a copy of a file has that is older than the state that it got.

    Args:
      record: what goes into the copy.
      old: what the file has.
      step: the step of the state, None where nobody says it.
    """
    beside = [name for name in old.weights or {} if name not in record.slots]
    stale = [*old.left_out, *(beside if record.weights else old.weights or {})]
    if step is None:
        stale += [f"the step, {record.step}: give `step`"] if record.step else []
        has_moved = old.step is None or any(
            not np.allclose(slots.nu, old.slots[name].nu, 1e-5, 0)
            for name, slots in record.slots.items()
            if slots.nu is not None and old.slots[name].nu is not None
        )
    else:
        has_moved = step != old.step
    if not stale or not has_moved:
        return ""
    what = "a state that has gone on" if step is None else f"the state of step {step}"
    return f"The copy has {what}, and as before: {', '.join(stale)}."


def completed(record: Record, given: Mapping[str, Any]) -> Record:
    """Returns a record with the call's hyperparameters, and its averages unbiased.

    Raises:
      ValueError: if hyperparameters are lacking, or a schedule does not know its step.
    """
    for name, value in given.items():
        if isinstance(value, tuple) and len(value) != len(record.groups):
            raise ValueError(
                f"`{name}` has {len(value)} values, for {len(record.groups)} parameter "
                "groups."
            )
    groups = tuple(
        group._replace(
            hyperparameters={
                **group.hyperparameters,
                **{k: v[i] if isinstance(v, tuple) else v for k, v in given.items()},
            }
        )
        for i, group in enumerate(record.groups)
    )
    lacking = [name for name in record.missing if name not in groups[0].hyperparameters]
    if lacking:
        names = ", ".join(f"`{name}`" for name in lacking)
        raise ValueError(
            f"The file does not hold {names} of dialects.{record.dialect}: give them "
            "as keywords."
        )
    for group in groups:
        for name, value in group.hyperparameters.items():
            present(value, record, name)
    slots = record.slots
    corrected = groups[0].hyperparameters.get("bias_correction", False)
    if record.dialect == "optax" and corrected and not record.is_ours:
        factor = debiasing(groups[0].hyperparameters["decay"], record.step)
        slots = {
            name: s._replace(
                nu=None if s.nu is None else np.asarray(s.nu, np.float64) / factor,
                mu=None if s.mu is None else np.asarray(s.mu, np.float64) / factor,
            )
            for name, s in slots.items()
        }
    return record._replace(groups=groups, slots=slots)


def checked(record: Record) -> Record:
    """Returns a record whose hyperparameters are valid and fit its accumulators.

    Raises:
      TypeError, ValueError: if they are or do not.
    """
    for group in record.groups:
        maker(record.dialect)(**group.hyperparameters)
        arguments = arguments_of(record.dialect, group.hyperparameters)
        centered = bool(arguments.get("centered", False))
        slots = [record.slots[name] for name in group.names]
        means = [slot.mu is not None for slot in slots if slot.nu is not None]
        if means and centered != any(means):
            raise ValueError(
                f"`centered` is {centered} in the hyperparameters, and the state has "
                f"{'a' if any(means) else 'no'} mean gradient."
            )
    return record


def with_step(record: Record, old: Record) -> Record:
    """Returns a record that says how many updates were done, or is as silent as `old`.

    Raises:
      ValueError: if nothing says it, and the framework's files do.
    """
    known = (record.step, old.step, record.groups[0].loaded[0])
    step = next((step for step in known if step is not None), None)
    if step is None and record.dialect != "tf1":
        raise ValueError(
            f"The state does not count its updates, and files of {record.dialect} say "
            "how many there were: give `step`."
        )
    return record._replace(step=step)


def drained(
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Any,
    step: int | None = None,
) -> Record:
    """Returns the record of a state, with the parameters if they have values.

    Its step is the one given, or the state's, or that of its groups if the state is
    still as it was loaded.

    Raises:
      TypeError, ValueError: if the state, the parameters and the hyperparameters do
        not fit.
    """
    groups = hyperparameters
    if isinstance(hyperparameters, Mapping):
        groups = (Group(dict(hyperparameters), tuple(names_of(params))),)
    elif not (
        isinstance(groups, Sequence) and all(isinstance(g, Group) for g in groups)
    ):
        raise TypeError(
            "`hyperparameters` must be a dictionary, or for several parameter groups "
            f"`Restored.groups`, which say whose they are, got {hyperparameters!r}."
        )
    for group in groups:
        maker(dialect)(**group.hyperparameters)  # says wrong names before their use
    record = checked(drain(state, dialect, tuple(groups)))
    if step is None and record.step is None:
        known, total = groups[0].loaded
        step = known if total == total_of(record) else 0 if is_new(record) else None
    record = record if step is None else record._replace(step=step)
    for group in record.groups:
        arguments = arguments_of(dialect, group.hyperparameters)
        moves = arguments.get("momentum") is not None
        buffers = [record.slots[name].momentum is not None for name in group.names]
        if buffers and moves != any(buffers):
            raise ValueError(
                f"`hyperparameters` has {'a' if moves else 'no'} `momentum`, and "
                f"`state` {'one' if any(buffers) else 'none'}: give those of the run."
            )
    leaves = names_of(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values()):
        return record
    weights = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return record._replace(weights=weights)


def _written(
    record: Record,
    params: Any,
    rules: tuple[Any, Any, Any],
    names: Iterable[str] | None,
    content: Any,
    leave_out: Collection[str],
) -> tuple[Any, Any]:
    """Returns the module of a framework, and a record in its form, over a content."""
    module = module_of(record.dialect, content)
    old = _old(record, params, names, content)
    weights, rule, transposed = rules
    function = chosen(weights, rule, old, transposed)
    whole = with_step(record, old)
    named, _ = from_tree(whole, params, function, old, leave_out)
    new, stale = module.to_dict(named, content), older(named, old, record.step)
    if stale:
        warnings.warn(stale, stacklevel=3)
    return module, new


def _old(
    record: Record, params: Any, names: Iterable[str] | None, content: Any
) -> Record:
    """Returns the record that a tree's is written over, or one of names alone."""
    names = None if names is None else list(names)
    if content is not None:
        given = record.groups[0].hyperparameters
        return read(content, record.dialect, names, given)
    if names is None:
        names = list(names_of(params))
        if record.dialect in _torch.DIALECTS:
            raise ValueError(
                "torch numbers the parameters in the optimizer's order: pass `names` "
                "in that order, or `like`, a file of the same run."
            )
    return Record(record.dialect, None, (), {name: Slots(None) for name in names})


def _as_optax(record: Record, params: Any) -> Any:
    (group,) = record.groups
    check_count(record, group.hyperparameters)
    return fill(optax.rmsprop(**group.hyperparameters).init(params), record)


def _as_params(tree: Any, values: list[Any], leaves: Mapping[str, Any]) -> Any:
    arrays = [
        jnp.asarray(np.asarray(value).astype(leaf.dtype))
        for value, leaf in zip(values, leaves.values(), strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, arrays)
