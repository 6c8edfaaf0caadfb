"""A record from the names and layouts of a source to those of a tree, and back."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ._names import Rule
from ._origins import Numbers, Origin, Place, element, learned, uses
from ._record import Group, Record, Slots, names_of

Weights = Callable[[Mapping[str, Any]], Any]
_CLOSE = 1e-3  # of the largest value: what rounding makes of two equal averages


def to_tree(
    record: Record,
    params: Any,
    weights: Weights | Rule,
    leave_out: Collection[str] = (),
) -> tuple[Record, list[tuple[str, Place]]]:
    """Returns a record in the names and layouts of a parameter tree, and the places.

    Raises:
      ValueError: that lists every leaf and every entry that does not fit.
    """
    leaves, left = names_of(params), _left_out(record, leave_out)
    trained = [name for name in record.slots if name not in left]
    numbers = _numbers(record, params, weights)
    origins, problems = _origins(weights, numbers, params, record)
    problems += uses(origins, numbers, trained)
    moved = {field: _moved(record, field, numbers, origins) for field in Slots._fields}
    problems += [problem for _, found in moved.values() for problem in found]
    groups, others = _groups(record, numbers, origins)
    if problems + others:
        absent = [x for x in record.left_out if x.partition(",")[0] in leaves]
        raise ValueError(_misfit([*problems, *others, *absent]))
    slots = {
        path: Slots(*(moved[field][0][path] for field in Slots._fields))
        for path in leaves
    }
    values, _ = _moved(record, "weights", numbers, origins)
    used = {n for origin in origins.values() for n in numbers.names(origin)}
    starts = {numbers.parts[name].start for name in used}
    beside = [
        name
        for name in record.weights or {}
        if name not in left and numbers.parts[name].start not in starts
    ]
    new = record._replace(
        groups=groups,
        slots=slots,
        weights={path: value for path, value in values.items() if value is not None},
        left_out=(*record.left_out, *sorted(left), *beside),
        assumed=(*record.assumed, *_assumed(weights), *_waiting(slots)),
        parts=tuple(p for p, o in origins.items() if not _is_whole(o, numbers)),
        layers={},
    )
    return new, [(path, numbers.place(origins[path])) for path in leaves]


def _groups(
    record: Record, numbers: Numbers, origins: Mapping[str, Origin]
) -> tuple[tuple[Group, ...], list[str]]:
    """Returns the groups with the names of the leaves, and the problems."""
    group_of = {n: i for i, group in enumerate(record.groups) for n in group.names}
    before = {n: t for group in record.groups for n, t in group.joined.items()}
    terms = numbers.joined({n: t - 1 for n, t in before.items()}, np.float32) + 1
    resting = {name for group in record.groups for name in group.waiting}
    resting |= {name for name, slots in record.slots.items() if slots.nu is None}
    resting = set() if resting >= record.slots.keys() else resting
    names: list[list[str]] = [[] for _ in record.groups]
    joined: list[dict[str, Any]] = [{} for _ in record.groups]
    waiting: list[list[str]] = [[] for _ in record.groups]
    problems = []
    for path, origin in origins.items():
        used = numbers.names(origin)
        found = {group_of[name]: name for name in used if name in group_of}
        if len(found) > 1:
            problems.append(f"{path} is of two groups: {' and '.join(found.values())}")
        i = min(found, default=0)
        names[i].append(path)
        total = terms[origin.first] * origin.terms
        if (total != 1).any():
            joined[i][path] = total
        if used and all(name in resting or name not in group_of for name in used):
            waiting[i].append(path)
    columns = zip(record.groups, names, joined, waiting, strict=True)
    return tuple(
        Group(group.hyperparameters, tuple(n), j, tuple(w))
        for group, n, j, w in columns
    ), problems


def from_tree(
    record: Record,
    params: Any,
    weights: Weights | Rule,
    old: Record,
    leave_out: Collection[str] = (),
) -> tuple[Record, list[tuple[str, Place]]]:
    """Returns a tree's record in the names and layouts of a source, and the places.

    Args:
      record: one with the names of `params`.
      params: the parameter tree.
      weights: the function that such a source is read with.
      old: the record of a source of the same run, or of names alone, in the optimizer's
        order.
      leave_out: parameters of the source that stay as they are there.

    Raises:
      ValueError: that lists every leaf and every entry that does not fit.
    """
    numbers = _numbers(old, params, weights)
    origins, problems = _origins(weights, numbers, params, old)
    left = _left_out(old, leave_out)
    problems += uses(origins, numbers, [name for name in old.slots if name not in left])
    before = old.weights or {}
    sums = [path for path, origin in origins.items() if origin.second is not None]
    summed = {name for path in sums for name in numbers.names(origins[path])}
    if record.weights and not summed <= before.keys():
        problems.append(
            f"{', '.join(sums)} is a sum, whose parts only a file shows: pass it as "
            "`like`, or `jax.ShapeDtypeStruct`s to write the optimizer's state alone"
        )
    if problems:
        raise ValueError(_misfit(problems, back=True))
    paths: dict[str, list[str]] = {}
    for path, origin in origins.items():
        for name in numbers.names(origin):
            paths.setdefault(name, []).append(path)

    def written(
        values: Mapping[str, Any], start: Mapping[str, Any], is_sum: bool
    ) -> Any:
        dtypes = {p: np.asarray(v).dtype for p, v in values.items()}
        every = [*dtypes.values(), *(np.asarray(v).dtype for v in start.values())]
        flat = numbers.joined(start, np.result_type(np.float32, *every))
        for path, value in values.items():
            origin = origins[path]
            if origin.second is None:
                flat[origin.first] = value
                continue
            pair = origin.second >= 0
            one, two = origin.first[pair], origin.second[pair]
            half = (np.asarray(value)[pair] - (flat[one] + flat[two])) / 2
            for number in (one, two):  # both have moved as far
                flat[number] = flat[number] + half if is_sum else value[pair]
            flat[origin.first[~pair]] = np.asarray(value)[~pair]
        return {
            name: flat[numbers.parts[name]]
            .reshape(numbers.arrays[name].shape)
            .astype(np.result_type(*(dtypes[p] for p in found)))
            for name, found in paths.items()
            if all(p in values for p in found)
        }

    fields = {}
    for field in Slots._fields:
        start = _field(old, field)
        fields[field] = start | written(_field(record, field), start, False)
    slots = {
        name: _narrowed(Slots(*(fields[field].get(name) for field in Slots._fields)))
        for name in old.slots
    }
    group_of = {p: i for i, group in enumerate(record.groups) for p in group.names}
    group_of |= {n: group_of[found[0]] for n, found in paths.items()}
    olds = {n: i for i, group in enumerate(old.groups) for n in group.names}
    number_of = {name: group_of.get(name, olds.get(name, 0)) for name in slots}
    new = record._replace(
        groups=tuple(
            Group(
                group.hyperparameters,
                tuple(name for name in slots if number_of[name] == i),
                waiting=tuple(n for n in paths if set(paths[n]) <= set(group.waiting)),
            )
            for i, group in enumerate(record.groups)
        ),
        slots=slots,
        weights=written(record.weights, before, True) if record.weights else None,
        is_ours=False,
    )
    return new, [(path, numbers.place(origin)) for path, origin in origins.items()]


def _origins(
    weights: Weights | Rule, numbers: Numbers, params: Any, record: Record
) -> tuple[dict[str, Origin], list[str]]:
    leaves = names_of(params)
    if isinstance(weights, Rule):

        def ruled(arrays: Mapping[str, Any]) -> Any:
            return weights.tree(arrays, params, record)

        return learned(ruled, numbers, leaves, exact=True)
    return learned(weights, numbers, leaves)


def _numbers(record: Record, params: Any, weights: Weights | Rule) -> Numbers:
    """Returns the elements of a model, the optimizer's first.

    Raises:
      ValueError: if a shape is not known, where a rule does not show it.
    """
    shapes = weights.shapes(params, record.slots) if isinstance(weights, Rule) else {}
    known = record.weights or {}
    arrays: dict[str, Any] = {}
    for name, slots in record.slots.items():
        found = known.get(name, slots.nu)
        if found is None and not isinstance(weights, Rule):
            raise ValueError(
                f"The parameter {name} has no state yet, and the source has no model "
                'to take its shape from: pass {"optimizer": …, "model": …}.'
            )
        unknown = shapes.get(name, np.zeros((), np.float32))
        arrays[name] = unknown if found is None else found
    return Numbers({**arrays, **known})


def _field(record: Record, field: str) -> dict[str, Any]:
    found = {name: getattr(slots, field) for name, slots in record.slots.items()}
    return {name: value for name, value in found.items() if value is not None}


def _moved(
    record: Record, field: str, numbers: Numbers, origins: Mapping[str, Origin]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the leaves' values, None where the source has none, and problems."""
    are_weights = field == "weights"
    found = record.weights or {} if are_weights else _field(record, field)
    values = {name: np.asarray(value) for name, value in found.items()}
    if not values:
        return dict.fromkeys(origins), []
    dtypes = [value.dtype for value in values.values()]
    flat = numbers.joined(values, np.result_type(*dtypes))
    there = numbers.joined({n: np.ones(v.shape) for n, v in values.items()}, bool)
    moved: dict[str, Any] = dict.fromkeys(origins)
    problems = []
    for path, origin in origins.items():
        has = there[origin.numbers]
        names = numbers.names(origin)
        if has.size and not has.any():
            continue
        if not has.all() and are_weights:
            continue
        if not has.all():
            lacking = [name for name in names if name not in values]
            problems.append(
                f"{path} joins what has {field} and what has none: {', '.join(lacking)}"
            )
            continue
        leaf = origin.read(flat)
        if origin.second is not None and not are_weights:
            one, two = flat[origin.first], leaf - flat[origin.first]
            pair = origin.second >= 0
            apart, most = np.abs(one - two)[pair].max(), np.abs(one).max()
            if apart > _CLOSE * most:
                at = element(path, int(np.argmax(pair)), pair.shape)
                problems.append(
                    f"{at} is the sum of two parameters, {' + '.join(names)}, whose "
                    f"{field} differs by {apart / most:.1e} of the largest: they did "
                    "not get the same gradients, and the sum has no state of its own"
                )
            leaf = leaf / origin.terms
        kinds = [values[name].dtype for name in names if name in values] or dtypes
        dtype = np.result_type(*kinds)
        moved[path] = (leaf if dtype.kind == "c" else np.real(leaf)).astype(dtype)
    return moved, problems


def _left_out(record: Record, leave_out: Collection[str]) -> set[str]:
    """Returns the parameters that are left out: of a name, or of a module's.

    Raises:
      ValueError: if there are none of a name.
    """
    left: set[str] = set()
    for start in leave_out:
        found = {
            name
            for name in {*record.slots, *(record.weights or {})}
            if name == start or name.startswith((f"{start}.", f"{start}/"))
        }
        if not found:
            raise ValueError(
                f"`leave_out` names {start}, and the source has no such parameter; it "
                f"has {', '.join(record.slots)}."
            )
        left |= found
    return left


def _assumed(weights: Weights | Rule) -> tuple[str, ...]:
    return tuple(weights.assumed) if isinstance(weights, Rule) else ()


def _waiting(slots: Mapping[str, Slots]) -> tuple[str, ...]:
    """Says which parameters wait for a gradient, where others have state."""
    waiting = [path for path, slot in slots.items() if slot.nu is None]
    if not waiting or len(waiting) == len(slots):
        return ()
    return (
        f"{', '.join(waiting)}: without state in the source (frozen, unused or never "
        "stepped), so left as it is, without decay, until its gradient is not zero",
    )


def _is_whole(origin: Origin, numbers: Numbers) -> bool:
    names = numbers.names(origin)
    sizes = [int(np.prod(numbers.arrays[name].shape)) for name in names]
    return origin.second is None and len(names) == 1 and sizes == [origin.first.size]


def _narrowed(slots: Slots) -> Slots:
    """Returns centred slots as frameworks keep them: E[g²] is no wider than E[g]."""
    if slots.mu is None or slots.nu is None:
        return slots
    return slots._replace(nu=np.asarray(slots.nu).astype(slots.mu.real.dtype))


def _misfit(problems: list[str], back: bool = False) -> str:
    listed = "\n  ".join(problems)
    if back:
        return f"The parameters do not fit the checkpoint:\n  {listed}"
    return (
        f"The checkpoint does not fit the parameters:\n  {listed}\n"
        "Give the tree that has all of it; `weights`, your function from the source's "
        "arrays to the tree, which has to move each element once; or in `leave_out` "
        "what is left out on purpose."
    )
