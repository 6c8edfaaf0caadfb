"""The equations and the table of the dialects, read off what they do."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._signature import canonical

Dialect = Callable[..., Any]

_SHARED = """\
  skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
    weight_decay_mask: as for `rmsprop`, where they apply.

Returns:
  The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

Raises:
  ValueError: for a number out of its range.
  TypeError: for an argument that it does not have, or of the wrong kind.
"""


def document(dialects: Iterable[Dialect]) -> None:
    """Fills in "{equation}" and "{shared}" in the docstrings of dialects."""
    for dialect in dialects:
        text = inspect.cleandoc(dialect.__doc__ or "")
        equation = "::\n\n" + _indented(_equation(dialect), 4)
        text = text.replace("{equation}", equation)
        dialect.__doc__ = text.replace("  {shared}", _SHARED.rstrip())


def table(dialects: Iterable[Dialect]) -> str:
    """Returns what each dialect does, as a table in Markdown."""
    heads = "dialect", "v₀", "ε", "decay", "learning rate", "momentum", "centred"
    rows = [(*heads, "weight decay"), ("---",) * (len(heads) + 1)]
    rows += [(f"`{dialect.__name__}`", *_row(dialect)) for dialect in dialects]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _probed(dialect: Dialect, **switched: Any) -> dict[str, Any]:
    """Returns what a dialect makes of its defaults, but for some of our arguments."""
    parameters = _own_parameters(dialect).values()
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
    parameters = _own_parameters(dialect)
    names = _native_names(parameters)

    def default(name: str) -> str:
        value = parameters[names[name]].default if name in names else None
        if value is inspect.Parameter.empty:
            return "required"
        return "–" if value is None else f"{value:g}"

    plain, moving = _probed(dialect), _probed(dialect, momentum=0.5)
    places = [_place(plain)]
    if _place(moving) != places[0]:
        places.append(f"with momentum {_place(moving)}")
    eps = default("eps") if "eps" in names else "0"
    if moving.get("momentum") is None:
        momentum = "none"
    else:
        inside = moving.get("learning_rate_in_momentum", True)
        momentum = "of steps" if inside else "of directions"
        if default("momentum") not in ("–", "0"):
            momentum += f", {default('momentum')}"
    centred = "always" if plain.get("centered") else "on request"
    if not _centred(dialect):
        centred = "no"
    decayed = _probed(dialect, weight_decay=0.5)
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
        centred,
        kind,
    )


def _place(arguments: Mapping[str, Any]) -> str:
    return "in the root" if arguments.get("eps_in_sqrt", True) else "outside"


def _centred(dialect: Dialect) -> bool:
    try:
        return bool(_probed(dialect, centered=True).get("centered"))
    except NotImplementedError:
        return False


def _equation(dialect: Dialect) -> str:
    """Returns the equations of a dialect, in its own names."""
    own = _own_parameters(dialect)
    names = _native_names(own)
    rho, eps = names["decay"], names.get("eps", "0")
    rate, decay = names["learning_rate"], names.get("weight_decay")
    plain, moving = _probed(dialect), _probed(dialect, momentum=0.5)
    lines, decoupled = [], ""
    if decay:
        mode = _probed(dialect, weight_decay=0.5).get("weight_decay_mode", "coupled")
        if mode == "coupled":
            lines.append(f"g ← g + {decay}·θ")
        else:
            decoupled = f" − {rate}·{decay}·θ"
    lines.append(f"v ← {rho}·v + (1 − {rho})·g²")
    lines[-1] += f", from v = {plain.get('initial_scale', 0):g}"
    square = "v"
    if _centred(dialect):
        lines.append(f"m ← {rho}·m + (1 − {rho})·g, from m = 0")
        if plain.get("centered"):
            square = "(v − m²)"
        else:
            lines[-1] += "  (where centered: v − m² for v below)"

    def direction(arguments: Mapping[str, Any]) -> str:
        root = f"√({square.strip('()')} + {eps})"
        return root if arguments.get("eps_in_sqrt", True) else f"(√{square} + {eps})"

    lines.append(f"u = g / {direction(plain)}")
    if direction(moving) != direction(plain):
        lines[-1] += f", with momentum g / {direction(moving)}"
    if moving.get("momentum") is None:
        lines.append(f"θ ← θ − {rate}·u{decoupled}")
    elif moving.get("learning_rate_in_momentum", True):
        lines += [f"b ← momentum·b + {rate}·u", f"θ ← θ − b{decoupled}"]
    else:
        lines += ["b ← momentum·b + u", f"θ ← θ − {rate}·b{decoupled}"]
    return "\n".join(lines)


def _own_parameters(dialect: Dialect) -> dict[str, inspect.Parameter]:
    """Returns the parameters that a dialect has of its framework."""
    parameters = inspect.signature(inspect.unwrap(dialect)).parameters
    return {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}


def _native_names(parameters: Iterable[str]) -> dict[str, str]:
    """Returns what a dialect calls our arguments; the first, where it has two names."""
    names = {}
    for name in parameters:
        names.setdefault(canonical(name), name)
    return names


def _indented(text: str, width: int) -> str:
    return "\n".join(" " * width * bool(line) + line for line in text.splitlines())
