"""What a user calls: `load`, `save`, `export`, `translate`."""

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import _files, _keras, _optax, _ours, _tf1, _torch
from ._names import Place, Rule, as_rule, from_tree, same, to_tree, torch_to_flax
from ._record import Group, Record, arguments_of, drain, fill, maker, names_of

# Which module reads and writes the files of which dialect.
_MODULES = {**dict.fromkeys(_torch.DIALECTS, _torch), "keras": _keras, "tf1": _tf1}
_SUFFIXES = {
    ".pt": "torch", ".pth": "torch", ".bin": "torch", ".tar": "torch",
    ".keras": "keras", ".h5": "keras", ".index": "tf1",
    ".msgpack": "optax", ".npz": "optax",
}  # fmt: skip


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
      step: how many updates were done.
      groups: the parameter groups, for `save`.
      places: what went where: each leaf's path, and its place in the file.
    """

    state: Any
    optimizer: optax.GradientTransformationExtraArgs
    hyperparameters: Any
    params: Any
    dialect: str
    step: int
    groups: tuple[Group, ...]
    places: list[tuple[str, Place]]


def load(
    source: Any,
    params: Any,
    *,
    framework: str | None = None,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    **hyperparameters: Any,
) -> Restored:
    """Reads an optimizer's state, of any framework, for a tree of parameters.

    Nothing is returned unless all of it fits: one error lists what is missing, extra or
    mis-shaped, by name.

    Args:
      source: a path: .pt, .pth (torch, timm, Stable-Baselines3, bitsandbytes; needs
        torch, and executes no pickled code), .safetensors (those, or ours), .keras or
        .weights.h5, the prefix of a TF1 checkpoint, .msgpack or .npz (Optax); or the
        content of one, such as torch's `optimizer.state_dict()`, or an Optax state.
      params: the parameters, or their `jax.ShapeDtypeStruct`s: any tree.
      framework: the name of the dialect; by default as the source shows.
      rule: which entry belongs to which leaf: `torch_to_flax` or `same`, perhaps with
        arguments, or a dictionary from paths to names.
      names: what the source numbers and does not name, in its order.
      **hyperparameters: the dialect's arguments that replace the source's, such as a
        learning-rate schedule, or that it does not hold; a tuple is one for each group.

    Returns:
      A `Restored`: ``state`` goes on under ``optimizer``, which is the dialect with
      ``hyperparameters``. In Flax NNX, after ``optimizer = nnx.Optimizer(model,
      restored.optimizer, wrt=nnx.Param)``: ``nnx.update(optimizer.opt_state,
      nnx.state(restored.state))``, and ``params`` is ``nnx.as_pure(nnx.state(model,
      nnx.Param))``. In Linen: ``train_state.replace(opt_state=restored.state)``.

    Raises:
      ValueError: if the source is not such a state, does not fit the parameters, or
        lacks hyperparameters that the call does not give.
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
    """
    record = read(source, framework, names)
    default = same() if record.is_ours else default_rule(record.dialect)
    chosen = as_rule(rule, default)
    record, places = to_tree(record, params, chosen)
    record = completed(record, hyperparameters)
    optimizer = _optimizer(record, params)
    found = record.weights or {}
    tree = jax.tree_util.tree_structure(params)
    leaves = names_of(params)
    whole = [found.get(name) for name in leaves]
    settings = tuple(group.hyperparameters for group in record.groups)
    return Restored(
        state=fill(optimizer.init(params), record),
        optimizer=optimizer,
        hyperparameters=settings[0] if len(settings) == 1 else settings,
        params=None
        if any(x is None for x in whole)
        else _as_params(tree, whole, leaves),
        dialect=record.dialect,
        step=record.step,
        groups=record.groups,
        places=places,
    )


def export(
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any] | Sequence[Group],
    *,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    like: Any = None,
) -> Any:
    """Returns an optimizer's state as its framework keeps it, in memory.

    Args:
      state: the state, inside any chain.
      params: the parameters; they go along where the framework keeps them together. Of
        `jax.ShapeDtypeStruct`s only the optimizer's state is written.
      dialect: the name of the dialect that the state is of.
      hyperparameters: the dialect's arguments, or `Restored.groups`. Where a schedule
        stands, its value at the state's step is written.
      rule: as for `load`.
      names: the framework's names of all parameters, in the optimizer's order. By
        default those of `like`, or the paths of the tree.
      like: a file, or its content, to take the order and all else from.

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
    record = _drained(state, params, dialect, hyperparameters)
    if dialect == "optax":
        return _as_optax(record, params)
    module, content = module_of(dialect), content_of(like, dialect)
    return module.to_dict(_named(record, params, rule, names, content), content)


def save(
    target: str | os.PathLike[str],
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any] | Sequence[Group],
    *,
    rule: Rule | Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    like: Any = None,
) -> None:
    """Writes an optimizer's state as a file of its framework, or as ours.

    The file is written under a temporary name and moved: it is complete or as it was.

    Args:
      target: the path. A .safetensors is a file of ours, except for torch's dialects
        with `like` or `names`; .msgpack is Optax's; else it is what the dialect says.
      state: the state, inside any chain.
      params: as for `export`.
      dialect: the name of the dialect that the state is of.
      hyperparameters: as for `export`.
      rule: as for `load`.
      names: as for `export`.
      like: as for `export`; a Keras file needs it.

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
    path = Path(target)
    record = _drained(state, params, dialect, hyperparameters)
    torch_like = dialect in _torch.DIALECTS and (like is not None or names is not None)
    if path.suffix == ".safetensors" and not torch_like:
        _ours.save(path, record)
    elif dialect == "optax":
        import flax.serialization  # here, because it takes a second

        with _files.replacing(path) as temporary:
            native = _as_optax(record, params)
            temporary.write_bytes(flax.serialization.to_bytes(native))
    else:
        module, content = module_of(dialect), content_of(like, dialect)
        named = _named(record, params, rule, names, content)
        module.save(path, module.to_dict(named, content))


def translate(
    state: Any,
    params: Any,
    dialect: str,
    hyperparameters: Mapping[str, Any],
    to: str,
    to_hyperparameters: Mapping[str, Any],
) -> Any:
    """Returns the state of one dialect as that of another.

    A momentum of directions becomes one of steps by the learning rate, and back. Where
    the rules differ in more than that (the place of eps, say), the next steps do, and a
    warning says in what.

    Args:
      state: the state, inside any chain.
      params: the parameters, or their shapes.
      dialect: the name of the dialect that the state is of.
      hyperparameters: its arguments.
      to: the name of the dialect that goes on.
      to_hyperparameters: its arguments.

    Returns:
      The state of the other dialect.

    Raises:
      ValueError: if the state does not fit the parameters, or a dialect is not known.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import convert, dialects
      >>> params = jnp.ones(3)
      >>> state = dialects.torch(lr=0.1, alpha=0.9).init(params)
      >>> old, new = {"lr": 0.1, "alpha": 0.9}, {"learning_rate": 0.1, "alpha": 0.9}
      >>> mlx_state = convert.translate(state, params, "torch", old, "mlx", new)
    """
    record = _drained(state, params, dialect, hyperparameters)
    ours = arguments_of(dialect, hyperparameters)
    theirs = arguments_of(to, to_hyperparameters)
    both: tuple[dict[str, Any], ...] = (ours, theirs)
    rates = [
        _at(arguments.get("learning_rate"), record.step)
        if arguments.get("learning_rate_in_momentum", True)
        else 1.0
        for arguments in both
    ]
    factor = rates[1] / rates[0] if rates[0] else 0.0
    slots = {
        name: s._replace(
            momentum=None
            if s.momentum is None
            else np.asarray(s.momentum * factor, s.momentum.dtype)
        )
        for name, s in record.slots.items()
    }
    parameters = inspect.signature(maker("rmsprop")).parameters.values()
    defaults = {p.name: p.default for p in parameters} | {"before": None}
    old, new = (_plain({**defaults, **arguments}) for arguments in both)
    differing = [
        f"`{name}` was {old[name]!r}, is {new[name]!r}"
        for name in old
        if old[name] != new[name]
    ]
    if differing:
        warnings.warn(
            f"{to} goes on with another rule than {dialect}: {'; '.join(differing)}.",
            stacklevel=2,
        )
    group = Group(dict(to_hyperparameters), tuple(slots))
    other = Record(to, record.step, (group,), slots)
    return fill(maker(to)(**to_hyperparameters).init(params), other)


def read(source: Any, framework: str | None, names: Iterable[str] | None) -> Record:
    """Returns the record of a source, in its own names and layouts."""
    if framework is not None and framework not in {*_MODULES, "optax", "ours"}:
        raise ValueError(
            f"`framework` must be one of {', '.join(_MODULES)}, optax, ours, got "
            f"{framework!r}."
        )
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        kind = framework or _kind_of(path)
        if kind == "ours":
            return _ours.read(path)
    elif isinstance(source, Mapping):
        keys = [str(key) for key in source]
        kind = framework or "optax"
        if {"param_groups", "optimizer"} & set(keys):
            kind = framework if framework in _torch.DIALECTS else "torch"
        elif "variables" in keys:
            kind = "keras"
        elif any("/RMSProp" in key for key in keys):
            kind = "tf1"
    else:
        kind, source = "optax", _nested(source)
    if kind == "torch" and framework is None:
        return _torch.read(source, None, names)
    module = _MODULES.get(kind, _optax)
    return module.read(source, kind, names)


def _nested(source: Any) -> dict[str, Any]:
    """Returns an Optax state as nested dictionaries."""
    import flax.serialization  # here, because it takes a second

    nested: Any = flax.serialization.to_state_dict(source)
    if not isinstance(nested, Mapping):
        raise TypeError(
            "`source` must be a path, the content of a file or a state of Optax, got "
            f"{type(source).__name__}."
        )
    return dict(nested)


def _kind_of(path: Path) -> str:
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(
            f"{path.name} is a pickle, which would execute what is in it: load it "
            "where it comes from, and save flax.serialization.to_bytes(state) as "
            ".msgpack."
        )
    if path.suffix == ".safetensors":
        return "ours" if _ours.is_ours(path) else "torch"
    if path.with_name(f"{path.name}.index").exists():
        return "tf1"
    if path.suffix not in _SUFFIXES:
        known = ", ".join([".safetensors", *_SUFFIXES])
        raise ValueError(
            f"{path.name} is none of {known} nor the prefix of a TF1 checkpoint: say "
            "what it is with `framework`."
        )
    return _SUFFIXES[path.suffix]


def completed(record: Record, given: Mapping[str, Any]) -> Record:
    """Returns a record with the call's hyperparameters, and its averages unbiased."""
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
    slots = record.slots
    corrected = groups[0].hyperparameters.get("bias_correction", False)
    if record.dialect == "optax" and corrected and not record.is_ours:
        factor = 1 - float(groups[0].hyperparameters["decay"]) ** record.step
        slots = {
            name: s._replace(
                nu=np.asarray(s.nu, np.float64) / factor,
                mu=None if s.mu is None else np.asarray(s.mu, np.float64) / factor,
            )
            for name, s in slots.items()
        }
    return record._replace(groups=groups, slots=slots)


def _optimizer(record: Record, params: Any) -> optax.GradientTransformationExtraArgs:
    make = maker(record.dialect)
    if len(record.groups) == 1:
        return make(**record.groups[0].hyperparameters)
    label_of = {n: str(i) for i, g in enumerate(record.groups) for n in g.names}
    labels = jax.tree.unflatten(
        jax.tree.structure(params), [label_of[name] for name in names_of(params)]
    )
    parts: dict[Any, Any] = {
        str(i): make(**g.hyperparameters) for i, g in enumerate(record.groups)
    }
    return optax.partition(parts, labels)


def _drained(state: Any, params: Any, dialect: str, hyperparameters: Any) -> Record:
    groups = hyperparameters
    if isinstance(hyperparameters, Mapping):
        groups = (Group(dict(hyperparameters), tuple(names_of(params))),)
    record = drain(state, dialect, tuple(groups))
    leaves = names_of(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values()):
        return record
    weights = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return record._replace(weights=weights)


def _named(
    record: Record, params: Any, rule: Any, names: Iterable[str] | None, content: Any
) -> Record:
    """Returns a record of a tree with the names of the framework."""
    if names is None and content is not None:
        old = _MODULES[record.dialect].read(content, record.dialect)
        names = [name for group in old.groups for name in group.names]
    elif names is None:
        names = list(names_of(params))
        if record.dialect in _torch.DIALECTS:
            raise ValueError(
                "torch numbers the parameters in the optimizer's order: pass `names` "
                "in that order, or `like`, a file of the same run."
            )
    chosen = as_rule(rule, default_rule(record.dialect))
    return from_tree(record, params, chosen, list(names))


def content_of(like: Any, dialect: str) -> Any:
    """Returns the content of a file of a dialect, or what is one already."""
    is_path = isinstance(like, str | os.PathLike)
    return module_of(dialect).load(like) if is_path else like


def module_of(dialect: str) -> Any:
    """Returns the module that reads and writes the files of a dialect.

    Raises:
      ValueError: if it has no format of its own.
    """
    if dialect not in _MODULES:
        raise ValueError(
            f"There is no file format of {dialect!r}: save it as .safetensors."
        )
    return _MODULES[dialect]


def default_rule(dialect: str, rename: Mapping[str, str] | None = None) -> Rule:
    """Returns the rule for the files of a dialect."""
    return torch_to_flax(rename) if dialect in _torch.DIALECTS else same(rename)


def _as_optax(record: Record, params: Any) -> Any:
    (group,) = record.groups
    return fill(optax.rmsprop(**group.hyperparameters).init(params), record)


def _as_params(tree: Any, values: list[Any], leaves: Mapping[str, Any]) -> Any:
    arrays = [
        jnp.asarray(np.asarray(value).astype(leaf.dtype))
        for value, leaf in zip(values, leaves.values(), strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, arrays)


def _at(rate: Any, step: int) -> float:
    value: Any = rate(step) if callable(rate) else rate
    return float(value)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `rmsprop` that make a difference from now on."""
    for name in ("learning_rate_in_momentum", "initial_scale"):
        del arguments[name]
    if not arguments["weight_decay"]:
        arguments |= {"weight_decay": None, "weight_decay_mode": None}
    for name, value in arguments.items():
        if callable(value) and name == "decay":
            value = value(0)
            arguments[name] = getattr(value, "keep", value)
    return arguments
