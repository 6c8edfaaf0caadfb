"""Paired differences, their intervals, and what many comparisons at once allow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

LEVEL = 0.05


def compared(losses: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Returns losses [seeds] and, in percent of the base's mean, how they differ.

    Args:
      losses: of one form.
      base: of float32 with the same seeds.
    """
    losses, base = losses.astype(np.float64), base.astype(np.float64)
    found = {"test_loss_mean": losses.mean(), "test_loss_by_seed": losses}
    difference = 100 * (losses - base) / base.mean()
    if not difference.any():
        return found
    mean = difference.mean()
    return found | {
        "difference_percent": mean,
        "interval_percent": list(interval(difference)),
        "p": 2 * student.sf(abs(mean) / _error(difference), len(difference) - 1),
    }


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Returns the confidence interval of the mean of values [seeds], at least two.

    Args:
      values: independent of one another.
      level: how often it may miss the mean.
    """
    width = student.ppf(1 - level / 2, len(values) - 1) * _error(values)
    return float(values.mean() - width), float(values.mean() + width)


def _error(values: np.ndarray) -> float:
    return values.std(ddof=1) / np.sqrt(len(values))


def holm(p: Sequence[float]) -> list[float]:
    """Returns p values corrected for how many they are, by Holm's step-down method."""
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


def finding(name: str, by_decay: Mapping[str, Any]) -> str:
    """Returns a sentence: where a form differs significantly from float32, if it does.

    Args:
      name: of the task.
      by_decay: the cells of `training`, with `p_holm`.
    """
    cells = [
        (decay, form, cell)
        for decay, row in by_decay.items()
        for form, cell in row["by_form"].items()
        if form != "float32"
    ]
    significant = [
        f"{form} at decay {decay} by {cell['difference_percent']:+.2f} % "
        f"(p = {cell['p_holm']:.3f})"
        for decay, form, cell in cells
        if cell["p_holm"] < LEVEL
    ]
    if significant:
        return f"{name}: test loss differs from float32's with {'; '.join(significant)}"
    bounds = [abs(end) for *_, cell in cells for end in cell["interval_percent"]]
    return (
        f"{name}: no significant difference to float32; "
        f"every interval lies within ± {max(bounds):.2f} %"
    )
