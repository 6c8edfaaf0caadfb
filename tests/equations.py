"""The text of the dialects' docstrings, read off what the dialects do."""

from collections.abc import Mapping
from typing import Any

from rmsprop_jax.dialects._table import (
    Dialect,
    centred,
    native_names,
    own_parameters,
    probed,
)

SHARED = """\
  skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
    weight_decay_mask: as for `rmsprop`, where they apply.

Returns:
  The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

Raises:
  ValueError: for a number out of its range.
  TypeError: for an argument that it does not have, or of the wrong kind.
"""
"""What every docstring has between its own arguments and its own errors."""


def equation(dialect: Dialect) -> str:
    """Returns the equations of a dialect, in its own names."""
    own = own_parameters(dialect)
    names = native_names(own)
    rho, eps = names["decay"], names.get("eps", "0")
    rate, decay = names["learning_rate"], names.get("weight_decay")
    plain, moving = probed(dialect), probed(dialect, momentum=0.5)
    lines, decoupled = [], ""
    if decay:
        mode = probed(dialect, weight_decay=0.5).get("weight_decay_mode", "coupled")
        if mode == "coupled":
            lines.append(f"g ← g + {decay}·θ")
        else:
            decoupled = f" − {rate}·{decay}·θ"
    lines.append(f"v ← {rho}·v + (1 − {rho})·g²")
    lines[-1] += f", from v = {plain.get('initial_scale', 0):g}"
    square = "v"
    if centred(dialect):
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
