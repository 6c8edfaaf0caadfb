"""The table and the picture of the task `bf16`."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from .bf16 import MASTER, Found
from .report import CONFIDENCE, mean_and_error

# Colours of Okabe and Ito, with a marker and a dash each.
STYLES = {
    "optax.rmsprop": ("#444444", "s", ":"),
    "rmsprop_jax.rmsprop": ("#E69F00", "^", "-."),
    "round_params='stochastic'": ("#56B4E9", "v", "--"),
    "round_params='remainder'": ("#D55E00", "o", "-"),
    "the same, nu_dtype='uint8'": ("#CC79A7", "P", (0, (4, 1, 1, 1))),
    MASTER: ("#0072B2", "D", "--"),
    "float32 throughout": ("#009E73", "x", ":"),
}


def interval(found: Found, name: str) -> tuple[float, float] | None:
    """Returns mean and half width of the difference from master weights, in percent.

    None where it is not known: for master weights, one seed, and what diverged.
    """
    values = found.differences(name)
    if name == MASTER or len(values) < 2 or not np.isfinite(values).all():
        return None
    width = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return values.mean(), width * values.std(ddof=1) / np.sqrt(len(values))


def show(found: Found) -> None:
    """Prints the table, its footnotes and the verdict to standard output."""
    console = Console(highlight=False)
    rows = Table(
        title=found.title, title_justify="left", title_style="",
        box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1),
    )  # fmt: skip
    rows.add_column("in bfloat16, but the last", no_wrap=True)
    for header in (
        "best\nrate",
        "test loss",
        "beside master\nweights, %",
        "bytes per\nparam.",
    ):
        rows.add_column(header, justify="right", no_wrap=True)
    for name in found.test_loss:
        rate = f"{found.learning_rates[found.best(name)]:g}"
        known = interval(found, name)
        rows.add_row(
            name,
            rate + (" †" if found.is_at_edge(name) else ""),
            mean_and_error(found.test_loss[name], 4),
            "-" if known is None else f"{known[0]:+.1f} ± {known[1]:.1f}",
            f"{found.bytes_per_parameter[name]:.0f}",
        )
    console.print(rows)
    console.print(
        "loss in nats per image, mean ± standard error over seeds; differences with "
        "their 95 % interval; bytes of parameters and optimizer",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    if any(map(found.is_at_edge, found.test_loss)):
        console.print("† at the edge of the grid", style="dim")
    console.print(verdict(found), style="bold", soft_wrap=True)
    console.print()


def verdict(found: Found) -> str:
    """Returns a sentence on what differs from master weights beyond noise."""
    names = [name for name in found.test_loss if name != MASTER]
    known = {name: interval(found, name) for name in names}
    if None in known.values():
        return "With one seed, or runs that diverged, the noise is unknown."
    groups: dict[str, list[str]] = {"higher": [], "lower": [], "within noise": []}
    for name, (mean, width) in ((n, k) for n, k in known.items() if k is not None):
        side = "higher" if mean > 0 else "lower"
        groups["within noise" if abs(mean) <= width else side].append(name)
    words = [
        f"{side}: {', '.join(members)}" for side, members in groups.items() if members
    ]
    return f"Test loss beside that of {MASTER}: {'; '.join(words)}."


def results(found: Found) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    return {
        "title": found.title,
        "batch_size": found.batch_size,
        "steps": found.steps,
        "verdict": verdict(found),
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


def png(found: Found) -> bytes:
    """Returns the picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure(found)).print_png(buffer)
    return buffer.getvalue()


def figure(found: Found) -> Figure:
    """Returns the figure: losses by rate on the left, differences on the right."""
    whole = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    whole.suptitle(found.title, fontsize=12)
    rates, differences = whole.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_rates(rates, found)
    _draw_differences(differences, found)
    return whole


def _draw_rates(axes: Axes, found: Found) -> None:
    for name, losses in found.validation_loss.items():
        colour, marker, dash = STYLES[name]
        axes.plot(
            found.learning_rates, losses[-1].mean(axis=-1), color=colour,
            marker=marker, linestyle=dash, label=name, markersize=6, linewidth=1.8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("after the last step, mean over seeds", fontsize=10, pad=9)
    axes.set_xlabel("learning rate at the start, which falls to 0")
    axes.set_ylabel("validation loss, nats per image")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)


def _draw_differences(axes: Axes, found: Found) -> None:
    names = list(found.test_loss)
    axes.axvline(0, color=STYLES[MASTER][0], linewidth=1)
    for place, name in enumerate(names):
        known = interval(found, name) or (found.differences(name).mean(), 0.0)
        axes.errorbar(
            known[0], place, xerr=known[1], fmt=STYLES[name][1],
            color=STYLES[name][0], capsize=3, markersize=6,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title("test loss at the best rates, 95 % intervals", fontsize=10, pad=9)
    axes.set_xlabel(f"beside {MASTER}, %")
    axes.grid(alpha=0.25, axis="x")
