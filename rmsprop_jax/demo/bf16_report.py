"""The table, the findings and the picture of the task `bf16`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..lab import pictures, statistics
from ..lab import tables as terminal
from ..lab.tables import table
from .bf16 import MASTER, Found

STYLES: dict[str, tuple[str, str, Any]] = {
    "optax.rmsprop": (pictures.GREY, "s", ":"),
    "rmsprop_jax.rmsprop": (pictures.ORANGE, "^", "-."),
    "round_params='stochastic'": (pictures.SKY, "v", "--"),
    "round_params='remainder'": (pictures.VERMILION, "o", "-"),
    "the same, nu_dtype='uint8'": (pictures.PURPLE, "P", (0, (4, 1, 1, 1))),
    MASTER: (pictures.BLUE, "D", "--"),
    "float32 throughout": (pictures.GREEN, "x", ":"),
}

# Narrow enough for a table of 60 columns.
SHORT = {
    "rmsprop_jax.rmsprop": "ours",
    "round_params='stochastic'": "ours, 'stochastic'",
    "round_params='remainder'": "ours, 'remainder'",
    "the same, nu_dtype='uint8'": "the same, nu in uint8",
}


def interval(found: Found, name: str) -> tuple[float, float] | None:
    """Returns mean and half width of the difference from master weights, in percent.

    None where it is not known: for master weights, one seed, and what diverged.
    """
    values = found.differences(name)
    if name == MASTER or len(values) < 2 or not statistics.converged(values):
        return None
    return float(values.mean()), float(statistics.half_width(values))


def show(found: Found) -> None:
    """Prints the table and its notes to standard output."""
    rows = table(
        found.title, ["in bfloat16, but the last"],
        ["best\nrate", "test\nloss", "beside\nmasters, %", "bytes\neach"],
    )  # fmt: skip
    for name, losses in found.test_loss.items():
        rate = f"{found.learning_rates[found.best(name)]:g}"
        known = interval(found, name)
        rows.add_row(
            SHORT.get(name, name),
            rate + (" †" if found.is_at_edge(name) else ""),
            f"{losses.mean():.4f}" if statistics.converged(losses) else "diverged",
            "-" if known is None else f"{known[0]:+.1f} ± {known[1]:.1f}",
            f"{found.bytes_per_parameter[name]:.0f}",
        )
    terminal.show(rows)
    terminal.notes(
        "loss: nats per image, mean over seeds",
        "beside masters: test loss less that of float32 master weights, seed by seed",
        "'stochastic', 'remainder': the option round_params",
        "bytes each: of parameter and optimizer's state",
    )
    if any(map(found.is_at_edge, found.test_loss)):
        terminal.notes("† at the edge of the grid")
    print()


def verdicts(found: Found) -> list[str]:
    """Returns a sentence on each form: whether it differs beyond noise."""
    lines = []
    for name, losses in found.test_loss.items():
        if name == MASTER:
            continue
        known = interval(found, name)
        if known is None:
            reason = "one seed" if len(losses) < 2 else "a run diverged"
            lines.append(f"{SHORT.get(name, name)}: unknown, {reason}")
            continue
        mean, width = known
        side = "higher" if mean > 0 else "lower"
        words = "within noise" if abs(mean) <= width else f"{side} loss"
        lines.append(f"{SHORT.get(name, name)}: {words} ({mean:+.1f} ± {width:.1f} %)")
    return lines


def results(found: Found) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    return {
        "title": found.title,
        "batch_size": found.batch_size,
        "steps": found.steps,
        "verdict": f"beside {MASTER}: {'; '.join(verdicts(found))}",
        "seconds": found.seconds,
        "contenders": {
            name: {
                "learning_rates": found.learning_rates,
                "final_validation_loss_by_rate_and_seed": losses[-1],
                "best_learning_rate": found.learning_rates[found.best(name)],
                "best_is_at_edge": found.is_at_edge(name),
                "test_loss_by_seed": found.test_loss[name],
                "test_accuracy_by_seed": found.test_accuracy[name],
                "percent_beside_master_weights": interval(found, name),
                "bytes_per_parameter": found.bytes_per_parameter[name],
            }
            for name, losses in found.validation_loss.items()
        },
    }


def figure(found: Found) -> Figure:
    """Returns the figure: losses by rate on the left, differences on the right."""
    whole = pictures.figure((11, 4.6), found.title)
    rates, differences = whole.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_rates(rates, found)
    _draw_differences(differences, found)
    return whole


def _draw_rates(axes: Axes, found: Found) -> None:
    for name, losses in found.validation_loss.items():
        colour, marker, dash = STYLES[name]
        axes.plot(
            found.learning_rates, statistics.mean(losses[-1]), color=colour,
            marker=marker, linestyle=dash, label=name, markersize=6, linewidth=1.8,
        )  # fmt: skip
    axes.set_xscale("log")
    pictures.plain_logarithms(axes)
    axes.set_title("after the last step, mean over seeds", fontsize=10, pad=9)
    axes.set_xlabel("learning rate at the start, which falls to 0")
    axes.set_ylabel("validation loss, nats per image")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)


def _draw_differences(axes: Axes, found: Found) -> None:
    names = list(found.test_loss)
    axes.axvline(0, color=STYLES[MASTER][0], linewidth=1)
    for place, name in enumerate(names):
        mean, width = interval(found, name) or (found.differences(name).mean(), 0.0)
        if np.isfinite(mean):
            colour, marker, _ = STYLES[name]
            ends = mean - width, mean + width
            pictures.interval_at(axes, place, ends, colour, marker)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title("test loss at the best rates, 95 % intervals", fontsize=10, pad=9)
    axes.set_xlabel(f"beside {MASTER}, %")
    axes.grid(alpha=0.25, axis="x")
