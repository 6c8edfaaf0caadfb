"""The table of a task, the sentence that says who won, and what goes into the JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from ..lab import statistics
from ..lab import tables as terminal
from ..lab.contenders import LABELS
from ..lab.statistics import converged, half_width, with_interval
from ..lab.tables import table as empty
from .sweeps import Outcome


def show(outcome: Outcome) -> None:
    """Prints the table and its notes to standard output."""
    terminal.show(table(outcome))
    terminal.notes(*footnotes(outcome))
    print()


def table(outcome: Outcome) -> Table:
    """Returns one row for each optimizer."""
    rows = empty(
        outcome.title, ["optimizer"],
        ["best\nrate", "test loss", "accuracy, %", "µs a\nstep", "state,\nbytes"],
    )  # fmt: skip
    starred = lowest(outcome.test_losses)
    for name, tried in outcome.tried.items():
        rate = f"{tried.learning_rates[tried.best]:g}"
        rows.add_row(
            LABELS[name] + " *" * (name == starred),
            rate + (" †" if tried.at_edge else ""),
            with_interval(tried.test_loss, 4),
            with_interval(100 * tried.test_accuracy, 1)
            if converged(tried.test_loss)
            else "-",
            f"{1e6 * tried.step_seconds:.0f}",
            f"{tried.state_bytes_per_parameter:.2f}",
            style="bold" if name == starred else "",
        )
    return rows


def footnotes(outcome: Outcome) -> list[str]:
    """Returns what explains the numbers and the marks of the table."""
    notes = [f"loss: nats per {outcome.task.unit}"]
    if outcome.seeds > 1:
        notes.append("±: half of the 95 % interval of the mean over seeds")
    notes.append("µs a step: of one run; state: the optimizer's, per parameter")
    if lowest(outcome.test_losses):
        notes.append("* lowest mean test loss")
    edges = [tried for tried in outcome.tried.values() if tried.at_edge]
    if any(len(tried.learning_rates) > 1 for tried in edges):
        notes.append("† at the edge of its grid: a better rate may lie outside")
    elif edges:
        notes.append("† the only rate that was tried")
    return notes


def ranking(test_losses: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names by ascending mean loss over seeds, those that diverged last."""

    def mean(name: str) -> float:
        losses = test_losses[name]
        return float(statistics.mean(losses)) if converged(losses) else np.inf

    return sorted(test_losses, key=mean)


def lowest(test_losses: Mapping[str, np.ndarray]) -> str | None:
    """Returns the name with the lowest mean loss, None without a finite one or rivals.

    Args:
      test_losses: [seeds] by optimizer.
    """
    first, *others = ranking(test_losses)
    return first if others and converged(test_losses[first]) else None


def verdict(test_losses: Mapping[str, np.ndarray]) -> str:
    """Returns a sentence on whether RMSProp won, and by how much.

    Args:
      test_losses: [seeds] by optimizer, with the same seeds for all: differences are
        taken seed by seed.
    """
    ranked = ranking(test_losses)
    others = [name for name in ranked if name != "rmsprop"]
    if len(ranked) == 1:
        alone = f"{LABELS[ranked[0]]} alone took part"
        if not converged(test_losses[ranked[0]]):
            return f"{alone}, and it diverged."
        return f"{alone}: there is nothing to compare it with."
    if not converged(test_losses[ranked[0]]):
        return "All diverged: no optimizer has a finite test loss at every seed."
    if "rmsprop" not in ranked:
        return (
            f"{LABELS[ranked[0]]} has the lowest test loss; RMSProp did not take part."
        )
    ours, theirs = test_losses["rmsprop"], test_losses[others[0]]
    other = LABELS[others[0]]
    if not converged(ours):
        return "RMSProp does not win here: it diverged."
    if not converged(theirs):
        return "RMSProp wins here: all others diverged."
    by, noise = _difference(ours - theirs)
    if ranked[0] == "rmsprop":
        claim = "has the lowest test loss" if noise else "wins here"
        return f"RMSProp {claim}: {other}'s is higher by {by}."
    place = f"place {ranked.index('rmsprop') + 1} of {len(ranked)}"
    return f"RMSProp does not win here ({place}): {other}'s test loss is lower by {by}."


def _difference(values: np.ndarray) -> tuple[str, bool]:
    """Returns the size of differences [seeds] in words, and whether it may be noise."""
    difference, width = abs(values.mean()), half_width(values)
    if len(values) < 2:
        return f"{difference:.4f} (one seed: the noise is unknown)", True
    noise = bool(difference <= width)
    side = "within" if noise else "beyond"
    return f"{difference:.4f} ± {width:.4f}, {side} noise", noise


def results(outcome: Outcome) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    return {
        "title": outcome.title,
        "batch_size": outcome.batch_size,
        "verdict": verdict(outcome.test_losses),
        "optimizers": {
            name: {
                "learning_rates": tried.learning_rates,
                "final_validation_loss_by_rate_and_seed": tried.validation_loss[-1],
                "best_learning_rate": tried.learning_rates[tried.best],
                "best_is_at_edge": tried.at_edge,
                "test_loss_by_seed": tried.test_loss,
                "test_accuracy_by_seed": tried.test_accuracy,
                "curve_steps": tried.evaluated_at,
                "curve_validation_loss_by_step_and_seed": tried.validation_loss[
                    :, tried.best
                ],
                "parameters": tried.parameters,
                "state_bytes_per_parameter": tried.state_bytes_per_parameter,
                "seconds_per_step_and_run": tried.step_seconds,
                "compile_seconds": tried.compile_seconds,
            }
            for name, tried in outcome.tried.items()
        },
    }
