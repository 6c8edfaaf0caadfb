"""Means over seeds, their 95 % intervals, and what many comparisons at once allow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

LEVEL = 0.05
"""How often an interval may miss the mean, unless a caller says otherwise."""


def half_width(values: np.ndarray, level: float = LEVEL) -> Any:
    """Returns the half of the confidence interval of the mean of values [..., seeds].

    It is 0 for one seed, whose noise is unknown.

    Args:
      values: independent of one another along the last axis.
      level: how often the interval may miss the mean.
    """
    values = np.asarray(values, np.float64)
    seeds = values.shape[-1]
    if seeds < 2:
        return np.zeros(values.shape[:-1])[()]
    with np.errstate(invalid="ignore", over="ignore"):
        return student.ppf(1 - level / 2, seeds - 1) * _standard_error(values)


def _standard_error(values: np.ndarray) -> Any:
    return values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def mean(values: np.ndarray) -> np.ndarray:
    """Returns means over the last axis; of what diverged they are not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(values, np.float64).mean(axis=-1)


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Returns the confidence interval of the mean of values [seeds], at least two."""
    centre, width = mean(values), half_width(values, level)
    return float(centre - width), float(centre + width)


def with_interval(values: np.ndarray, digits: int, sign: str = "") -> str:
    """Returns "mean ± half of the 95 % interval" of values [seeds] in words."""
    diverged = int((~np.isfinite(values)).sum())
    if diverged:
        return f"{diverged} of {len(values)} diverged"
    centre = f"{mean(values):{sign}.{digits}f}"
    return centre if len(values) < 2 else f"{centre} ± {half_width(values):.{digits}f}"


def converged(values: np.ndarray) -> bool:
    """Returns whether all values are finite."""
    return bool(np.isfinite(values).all())


def differences(losses: Any, base: Any) -> np.ndarray:
    """Returns losses less those of the base, seed by seed, in percent of its mean."""
    losses, base = np.asarray(losses, np.float64), np.asarray(base, np.float64)
    return 100 * (losses - base) / base.mean()


def compared(losses: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Returns losses [seeds] and, in percent of the base's mean, how they differ.

    Args:
      losses: of one form.
      base: of float32 with the same seeds.
    """
    losses = losses.astype(np.float64)
    found = {"test_loss_mean": losses.mean(), "test_loss_by_seed": losses}
    difference = differences(losses, base)
    if not difference.any():
        return found
    low, high = interval(difference)
    error = _standard_error(difference)
    return found | {
        "difference_percent": difference.mean(),
        "interval_percent": [low, high],
        "p": 2 * student.sf(abs(difference.mean()) / error, len(difference) - 1),
    }


def holm(p: Sequence[float]) -> list[float]:
    """Returns p values corrected for how many they are, by Holm's step-down method."""
    order = np.argsort(p)
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()
