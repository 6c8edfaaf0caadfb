"""The tables of `rmsprop-jax bench storage`, and the sentences under them."""

from typing import Any

from rich.table import Table

from ..lab import tables as terminal
from ..lab.tables import table
from .tracking import BIAS_TARGET, TARGETS


def show_tracking(found: dict[str, Any]) -> None:
    """Prints one table for each stream."""
    for name, stream in found["streams"].items():
        title = f"{name}: {stream['gradients']}, {stream['steps']} steps"
        terminal.show(_tracking_table(title, stream["by_decay"]))
    terminal.notes(
        "errors of the update u and of nu against float64, in %, over the second half",
        "walk, theory: what the mean error should be, by a random walk and in full",
        "near.: rounded to nearest, not by us",
        "bnb: bitsandbytes' RMSprop8bit; the scales in a block are alike, or mixed",
        "stall: largest |log(nu / exact nu)| after the last step",
        "drift: bias of nu in the last quarter less that in the second, in %",
        f"steps back: until nu is within a factor of {found['settings']['within']} of "
        "its new level after a jump up/down",
    )
    terminal.findings(*misses(found))
    print()


def misses(found: dict[str, Any]) -> list[str]:
    """Returns a sentence for each target that was missed, or one that none was."""
    stream = found["targets"]["stream"]
    lines = []
    for index, (decay, cells) in enumerate(
        found["streams"][stream]["by_decay"].items()
    ):
        for name, targets in TARGETS.items():
            cell = cells[name]
            if not cell["mean_error"] <= targets[index]:
                lines.append(
                    f"missed: {name}, decay {decay}: mean |du/u| is "
                    f"{cell['mean_error']:.3g} %, wanted {targets[index]} %"
                )
            if not abs(cell["bias_of_nu"]) <= BIAS_TARGET:
                bias, error = cell["bias_of_nu"], cell["bias_of_nu_standard_error"]
                lines.append(
                    f"missed: {name}, decay {decay}: bias of nu is {bias:+.2f} ± "
                    f"{error:.2f} %, wanted {BIAS_TARGET} %"
                )
    return lines or [f"every target for the stream “{stream}” is met"]


def _tracking_table(title: str, by_decay: dict[str, Any]) -> Table:
    headers = ["mean\n|du/u|", "p99", "walk", "the-\nory", "bias\nof u", "bias\nof nu"]
    jumps = "steps_to_recover" in by_decay["0.9"]["float32"]
    headers += ["stall", "steps\nback" if jumps else "drift"]
    rows = table(title, ["decay", "nu"], headers)
    for decay, cells in by_decay.items():
        for name, cell in cells.items():
            theory = (cell.get(f"mean_{key}") for key in ("random_walk", "theory"))
            last = _signed(cell["drift_of_nu"])
            if jumps:
                steps = cell["steps_to_recover"].values()
                last = "/".join("-" if n is None else str(n) for n in steps)
            rows.add_row(
                decay, _SHORT.get(name, name), *(_number(cell[key]) for key in _ERRORS),
                *("" if value is None else _number(value) for value in theory),
                _signed(cell["bias_of_u"]), _signed(cell["bias_of_nu"]),
                _number(cell["stall"]), last,
            )  # fmt: skip
        rows.add_section()
    return rows


_SHORT = {
    "bfloat16 nearest": "bf16 near.",
    "uint8 nearest": "uint8 near.",
    "bitsandbytes": "bnb",
    "bitsandbytes mixed": "bnb mixed",
}
_ERRORS = ("mean_error", "p99_error")


def show_training(found: dict[str, Any]) -> None:
    """Prints one table for each task, and what it shows."""
    for task in found["tasks"].values():
        terminal.show(_training_table(task))
        terminal.findings(task["finding"])
    terminal.notes(
        "difference to float32 in %, 95 % interval over paired seeds; p after Holm's "
        f"correction for all {found['settings']['comparisons']} comparisons"
    )
    print()


def _training_table(task: dict[str, Any]) -> Table:
    headers = ["rate", "test loss", "diff., %", "95 % interval", "p"]
    rows = table(task["title"], ["decay", "nu"], headers)
    for decay, cell in task["by_decay"].items():
        rate = f"{cell['learning_rate']:g}" + (" †" if cell["rate_at_edge"] else "")
        for name, form in cell["by_form"].items():
            if name == "float32":
                rows.add_row(decay, name, rate, f"{form['test_loss_mean']:.4f}")
                continue
            low, high = form["interval_percent"]
            rows.add_row(
                decay, name, rate, f"{form['test_loss_mean']:.4f}",
                f"{form['difference_percent']:+.3f}", f"{low:+.3f} to {high:+.3f}",
                f"{form['p_holm']:.3f}",
            )  # fmt: skip
        rows.add_section()
    return rows


def _number(value: float) -> str:
    """Returns two digits, with an exponent where that is shorter."""
    if value and not 1e-2 <= abs(value) < 1e3:
        return _short(f"{value:.0e}")
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def _signed(value: float) -> str:
    if abs(value) >= 1e3:
        return _short(f"{value:+.0e}")
    return f"{value:+.2f}" if abs(value) < 10 else f"{value:+.0f}"


def _short(number: str) -> str:
    return number.replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


SHOW = {"tracking": show_tracking, "training": show_training}
