"""The table, and the sentence that says who won."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from .optimizers import LABELS
from .tasks import Task
from .train import Sweep

NOISE = 2
"""A difference of at most so many standard errors counts as noise."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All the sweeps of one task, by the optimizer's name."""

    task: Task
    sweeps: dict[str, Sweep]
    batch_size: int

    @property
    def title(self) -> str:
        """The task, its model and its training in words."""
        first = next(iter(self.sweeps.values()))
        return (
            f"{self.task.name}: {self.task.title}\n{first.parameters} parameters, "
            f"{first.evaluated_at[-1]} steps of batch size {self.batch_size}, "
            f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        )

    @property
    def seeds(self) -> int:
        """How many runs there are for each optimizer and learning rate."""
        return len(next(iter(self.sweeps.values())).test_loss)

    @property
    def test_losses(self) -> dict[str, np.ndarray]:
        """The test loss [seeds] of every optimizer."""
        return {name: sweep.test_loss for name, sweep in self.sweeps.items()}


def show(outcomes: Sequence[Outcome]) -> None:
    """Prints every table, its footnotes and its verdict to standard output."""
    console = Console(highlight=False)
    for outcome in outcomes:
        console.print(table(outcome))
        for note in footnotes(outcome):
            console.print(note, style="dim", soft_wrap=True)
        console.print(verdict(outcome.test_losses), style="bold", soft_wrap=True)
        console.print()


def table(outcome: Outcome) -> Table:
    """Returns one row for each optimizer."""
    # Narrow enough for 80 columns.
    rows = Table(
        title=outcome.title, title_justify="left", title_style="",
        box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1),
    )  # fmt: skip
    rows.add_column("optimizer", no_wrap=True)
    for header in (
        "best\nrate",
        "test loss",
        "accuracy, %",
        "µs per step\nand run",
        "state bytes\nper param.",
    ):
        rows.add_column(header, justify="right", no_wrap=True)
    winner = ranking(outcome.test_losses)[0]
    for name, sweep in outcome.sweeps.items():
        rate = f"{sweep.learning_rates[sweep.best]:g}"
        rows.add_row(
            LABELS[name] + " *" * (name == winner),
            rate + (" †" if at_edge(sweep) else ""),
            mean_and_error(sweep.test_loss, 4),
            mean_and_error(100 * sweep.test_accuracy, 1),
            f"{1e6 * sweep.step_seconds:.0f}",
            f"{sweep.state_bytes_per_parameter:.2f}",
            style="bold" if name == winner else "",
        )
    return rows


def footnotes(outcome: Outcome) -> list[str]:
    """Returns what explains the numbers and the marks of the table."""
    notes = [f"loss in nats per {outcome.task.unit}"]
    if outcome.seeds > 1:
        notes[0] += "; mean ± standard error over seeds"
    notes.append("* lowest mean test loss")
    edges = [LABELS[name] for name, s in outcome.sweeps.items() if at_edge(s)]
    if edges:
        notes.append("† at the edge of its grid: a better rate may lie outside")
    return notes


def at_edge(sweep: Sweep) -> bool:
    """Returns whether the best learning rate is the first or last of its grid."""
    return sweep.best in (0, len(sweep.learning_rates) - 1)


def mean_and_error(values: np.ndarray, digits: int) -> str:
    """Returns "mean ± standard error" of values [seeds]."""
    diverged = int((~np.isfinite(values)).sum())
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    mean = f"{values.mean():.{digits}f}"
    error = standard_error(values)
    return mean if error is None else f"{mean} ± {error:.{digits}f}"


def standard_error(values: np.ndarray) -> float | None:
    """Returns the standard error of the mean of values [seeds], None for one seed."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def ranking(test_losses: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names by ascending mean loss over seeds, those that diverged last."""
    return sorted(test_losses, key=lambda name: _mean(test_losses[name]))


def verdict(test_losses: Mapping[str, np.ndarray]) -> str:
    """Returns a sentence on whether RMSProp won, and by how much.

    Args:
      test_losses: [seeds] by optimizer, with the same seeds for all: differences are
        taken seed by seed.
    """
    ranked = ranking(test_losses)
    others = [name for name in ranked if name != "rmsprop"]
    if "rmsprop" not in ranked:
        return (
            f"{LABELS[ranked[0]]} has the lowest test loss; RMSProp did not take part."
        )
    if not others:
        return "RMSProp alone took part: there is nothing to compare it with."
    ours, theirs = test_losses["rmsprop"], test_losses[others[0]]
    other = LABELS[others[0]]
    if not np.isfinite(_mean(ours)):
        return "RMSProp does not win here: it diverged."
    if not np.isfinite(_mean(theirs)):
        return "RMSProp wins here: all others diverged."
    by, noise = _difference(
        np.abs(np.mean(ours - theirs)), standard_error(ours - theirs)
    )
    if ranked[0] == "rmsprop":
        claim = "has the lowest test loss" if noise else "wins here"
        return f"RMSProp {claim}: {other}'s is higher by {by}."
    place = f"place {ranked.index('rmsprop') + 1} of {len(ranked)}"
    return f"RMSProp does not win here ({place}): {other}'s test loss is lower by {by}."


def _difference(difference: float, error: float | None) -> tuple[str, bool]:
    """Returns a difference in words, and whether it may be noise."""
    if error is None:
        return f"{difference:.4f} (one seed: the noise is unknown)", True
    noise = bool(difference <= NOISE * error)
    where = f"within noise, {NOISE} standard errors" if noise else "beyond noise"
    return f"{difference:.4f} ± {error:.4f} ({where})", noise


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if np.isfinite(values).all() else np.inf
