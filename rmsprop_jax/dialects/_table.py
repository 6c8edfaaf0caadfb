"""The table of the dialects, read off what they do."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._signature import canonical

Dialect = Callable[..., Any]


def table_of(dialects: Iterable[Dialect]) -> str:
    """Returns what each dialect does, as a table in Markdown."""
    heads = "dialect", "v₀", "ε", "decay", "learning rate", "momentum", "centred"
    rows = [(*heads, "weight decay"), ("---",) * (len(heads) + 1)]
    rows += [(f"`{dialect.__name__}`", *_row(dialect)) for dialect in dialects]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def probed(dialect: Dialect, **switched: Any) -> dict[str, Any]:
    """Returns what a dialect makes of its defaults, but for some of our arguments."""
    parameters = own_parameters(dialect).values()
    values = {"learning_rate": 0.5, **switched}
    given = {
        p.name: values[canonical(p.name)]
        for p in parameters
        if canonical(p.name) in switched or p.default is p.empty
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return inspect.unwrap(dialect)(**given)


def _row(dialect: Dialect) -> tuple[str, ...]:
    parameters = own_parameters(dialect)
    names = native_names(parameters)

    def default(name: str) -> str:
        value = parameters[names[name]].default if name in names else None
        if value is inspect.Parameter.empty:
            return "required"
        return "–" if value is None else f"{value:g}"

    plain, moving = probed(dialect), probed(dialect, momentum=0.5)
    places = [place(plain)]
    if place(moving) != places[0]:
        places.append(f"with momentum {place(moving)}")
    eps = default("eps") if "eps" in names else "0"
    if moving.get("momentum") is None:
        momentum = "none"
    else:
        inside = moving.get("learning_rate_in_momentum", True)
        momentum = "of steps" if inside else "of directions"
        if default("momentum") not in ("–", "0"):
            momentum += f", {default('momentum')}"
    centring = "always" if plain.get("centered") else "on request"
    if not centred(dialect):
        centring = "no"
    decayed = probed(dialect, weight_decay=0.5)
    kind = decayed.get("weight_decay_mode", "coupled")
    if decayed.get("weight_decay") is None:
        kind = "none"
    elif "weight_decay_mode" in names:
        kind += ", decoupled on request"
    start = f"{plain.get('initial_scale', 0):g}"
    return (
        start,
        f"{eps}, {', '.join(places)}",
        default("decay"),
        default("learning_rate"),
        momentum,
        centring,
        kind,
    )


def place(arguments: Mapping[str, Any]) -> str:
    """Returns where ε stands, in words."""
    return "in the root" if arguments.get("eps_in_sqrt", True) else "outside"


def centred(dialect: Dialect) -> bool:
    """Whether a dialect can subtract the squared mean."""
    try:
        return bool(probed(dialect, centered=True).get("centered"))
    except NotImplementedError:
        return False


def own_parameters(dialect: Dialect) -> dict[str, inspect.Parameter]:
    """Returns the parameters that a dialect has of its framework."""
    parameters = inspect.signature(inspect.unwrap(dialect)).parameters
    return {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}


def native_names(parameters: Iterable[str]) -> dict[str, str]:
    """Returns what a dialect calls our arguments; the first, where it has two names."""
    names = {}
    for name in parameters:
        names.setdefault(canonical(name), name)
    return names
