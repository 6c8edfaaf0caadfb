"""The table, and the sentence that says who won."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from .optimizers import LABELS
from .tasks import Task
from .train import Sweep

CONFIDENCE = 0.95
"""Of the interval around a difference; if zero lies in it, the difference is noise."""


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
        steps = int(first.evaluated_at[-1])
        return (
            f"{self.task.name}: {self.task.title}\n{first.parameters} parameters, "
            f"{steps} step{'s' * (steps > 1)} of batch size {self.batch_size}, "
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
    starred = lowest(outcome.test_losses)
    for name, sweep in outcome.sweeps.items():
        rate = f"{sweep.learning_rates[sweep.best]:g}"
        rows.add_row(
            LABELS[name] + " *" * (name == starred),
            rate + (" †" if at_edge(sweep) else ""),
            mean_and_error(sweep.test_loss, 4),
            mean_and_error(100 * sweep.test_accuracy, 1)
            if _converged(sweep.test_loss)
            else "-",
            f"{1e6 * sweep.step_seconds:.0f}",
            f"{sweep.state_bytes_per_parameter:.2f}",
            style="bold" if name == starred else "",
        )
    return rows


def footnotes(outcome: Outcome) -> list[str]:
    """Returns what explains the numbers and the marks of the table."""
    notes = [f"loss in nats per {outcome.task.unit}"]
    if outcome.seeds > 1:
        notes[0] += "; mean ± standard error over seeds"
    if lowest(outcome.test_losses):
        notes.append("* lowest mean test loss")
    edges = [sweep for sweep in outcome.sweeps.values() if at_edge(sweep)]
    if any(len(sweep.learning_rates) > 1 for sweep in edges):
        notes.append("† at the edge of its grid: a better rate may lie outside")
    elif edges:
        notes.append("† the only rate that was tried")
    return notes


def at_edge(sweep: Sweep) -> bool:
    """Returns whether the best learning rate is the first or last of its grid."""
    return at_edge_of(sweep.best, sweep.learning_rates)


def at_edge_of(best: int, rates: np.ndarray) -> bool:
    """Returns whether an index is that of the first or the last rate."""
    return best in (0, len(rates) - 1)


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


def lowest(test_losses: Mapping[str, np.ndarray]) -> str | None:
    """Returns the name with the lowest mean loss, None without a finite one or rivals.

    Args:
      test_losses: [seeds] by optimizer.
    """
    first, *others = ranking(test_losses)
    return first if others and _converged(test_losses[first]) else None


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
        if not _converged(test_losses[ranked[0]]):
            return f"{alone}, and it diverged."
        return f"{alone}: there is nothing to compare it with."
    if not _converged(test_losses[ranked[0]]):
        return "All diverged: no optimizer has a finite test loss at every seed."
    if "rmsprop" not in ranked:
        return (
            f"{LABELS[ranked[0]]} has the lowest test loss; RMSProp did not take part."
        )
    ours, theirs = test_losses["rmsprop"], test_losses[others[0]]
    other = LABELS[others[0]]
    if not _converged(ours):
        return "RMSProp does not win here: it diverged."
    if not _converged(theirs):
        return "RMSProp wins here: all others diverged."
    by, noise = _difference(ours - theirs)
    if ranked[0] == "rmsprop":
        claim = "has the lowest test loss" if noise else "wins here"
        return f"RMSProp {claim}: {other}'s is higher by {by}."
    place = f"place {ranked.index('rmsprop') + 1} of {len(ranked)}"
    return f"RMSProp does not win here ({place}): {other}'s test loss is lower by {by}."


def _difference(values: np.ndarray) -> tuple[str, bool]:
    """Returns the size of differences [seeds] in words, and whether it may be noise."""
    difference, error = abs(values.mean()), standard_error(values)
    if error is None:
        return f"{difference:.4f} (one seed: the noise is unknown)", True
    width = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    noise = bool(difference <= width)
    where = f"{100 * CONFIDENCE:.0f} % interval over seeds"
    side = "within" if noise else "beyond"
    return f"{difference:.4f} ± {width:.4f} ({where}: {side} noise)", noise


def _converged(losses: np.ndarray) -> bool:
    return bool(np.isfinite(losses).all())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if _converged(values) else np.inf
