"""What a sweep measured, and the learning rates that it chooses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..diagnostics import best_rate

FLAT = 0.02
"""An edge of the grid that beats its neighbour by less, in decades, is no edge."""

WORKS = 2.0
"""A learning rate works where the measure is within this factor of the best."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of one optimizer.

    Attributes:
      rates: [rates], ascending.
      values: [points, settings, rates, seeds], the measure along the run.
    """

    rates: np.ndarray
    values: np.ndarray

    def joined(self, other: "Runs") -> "Runs":
        """Returns both, each rate once."""
        rates, order = np.unique(
            np.concatenate([self.rates, other.rates]), return_index=True
        )
        values = np.concatenate([self.values, other.values], axis=2)
        return Runs(rates, values[:, :, order])


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All runs of an experiment.

    Attributes:
      settings: their names.
      runs: by optimizer.
      steps: updates of a run.
      tuning: how many seeds, the first, choose the rates; the others are reported.
      online: whether a run's score is its mean along the run, or its last value.
      bounds: what values are limited to.
      limit: a run with a value above it has diverged.
    """

    settings: tuple[str, ...]
    runs: Mapping[str, Runs]
    steps: int
    tuning: int
    online: bool
    bounds: tuple[float, float]
    limit: float = np.inf

    def part(self, group: str) -> "Sweep":
        """Returns the settings whose names begin with a group's, without it."""
        start = f"{group}: "
        keep = [i for i, name in enumerate(self.settings) if name.startswith(start)]
        runs = {
            name: Runs(runs.rates, runs.values[:, keep])
            for name, runs in self.runs.items()
        }
        names = tuple(self.settings[i].removeprefix(start) for i in keep)
        return dataclasses.replace(self, settings=names, runs=runs)

    def scores(self, name: str) -> np.ndarray:
        """Returns log10 of the measure [settings, rates, seeds] of an optimizer."""
        values = self.runs[name].values
        with np.errstate(invalid="ignore", over="ignore"):
            score = values.mean(axis=0) if self.online else values[-1]
            stayed = (values <= self.limit).all(axis=0)
        return self._log(np.where(stayed, score, np.nan))

    def best(self, name: str) -> np.ndarray:
        """Returns [settings] indices of the rates that the tuning seeds choose.

        Of several that reach the same bound, as all that solve a problem, the middle.
        """
        tuning = self.scores(name)[:, :, : self.tuning]
        chosen = []
        for scores in tuning:
            means = scores.mean(axis=1)
            equal = np.flatnonzero(means == means[best_rate(scores)])
            chosen.append(equal[len(equal) // 2])
        return np.array(chosen)

    def tuned(self, name: str) -> np.ndarray:
        """Returns log10 of the measure [settings, reported seeds] at these rates."""
        chosen = self.best(name)[:, None, None]
        scores = self.scores(name)[:, :, self.tuning :]
        return np.take_along_axis(scores, chosen, axis=1)[:, 0]

    def curve(self, name: str) -> np.ndarray:
        """Returns log10 of the measure [points, settings, reported seeds] likewise."""
        values = self.runs[name].values[..., self.tuning :]
        chosen = self.best(name)[None, :, None, None]
        return self._log(np.take_along_axis(values, chosen, axis=2)[:, :, 0])

    def leader(self, names: tuple[str, ...]) -> list[str]:
        """Returns, for each setting, the optimizer that the tuning seeds prefer."""
        tuning = (self.scores(name)[:, :, : self.tuning] for name in names)
        lowest = np.stack([scores.mean(axis=2).min(axis=1) for scores in tuning])
        return [names[i] for i in lowest.argmin(axis=0)]

    def against(self, name: str, others: tuple[str, ...]) -> np.ndarray:
        """Returns log10 of our measure / that of the best of others [settings, seeds].

        Paired by seed; which other is best at a setting the tuning seeds say.
        """
        return self.tuned(name) - self._leading(self.tuned, others)

    def wider(self, name: str, others: tuple[str, ...]) -> np.ndarray:
        """Returns our decades of rates that work less theirs [settings, seeds]."""
        return self.width(name) - self._leading(self.width, others)

    def _leading(
        self, of: Callable[[str], np.ndarray], others: tuple[str, ...]
    ) -> np.ndarray:
        """Returns numbers [settings, seeds] of whichever other is best at each."""
        numbers = {other: of(other) for other in others}
        return np.stack([numbers[o][i] for i, o in enumerate(self.leader(others))])

    def width(self, name: str) -> np.ndarray:
        """Returns the decades of rates that work [settings, reported seeds].

        Those where the measure is at most `WORKS` times that at the chosen rate.
        """
        rates = np.log10(self.runs[name].rates)
        spacing = (rates[-1] - rates[0]) / max(1, len(rates) - 1)
        scores = self.scores(name)[:, :, self.tuning :]
        works = scores <= self.tuned(name)[:, None] + np.log10(WORKS)
        return spacing * works.sum(axis=1)

    def summary(self) -> dict[str, Any]:
        """Returns what goes into the JSON."""
        return {name: self._summary(name) for name in self.runs}

    def _summary(self, name: str) -> dict[str, Any]:
        rates = self.runs[name].rates
        best, at_edge = self.best(name), np.any(edges(self, name), axis=0)
        tuned, width = self.tuned(name), self.width(name)
        scores, curve = self.scores(name), self.curve(name)
        return {
            "learning_rates": rates,
            "by_setting": {
                setting: {
                    "best_learning_rate": rates[best[i]],
                    "best_is_at_edge": bool(at_edge[i]),
                    "log10_by_seed": tuned[i],
                    "decades_of_rates_that_work": width[i].mean(),
                    "log10_mean_by_rate": scores[i].mean(axis=1),
                    "log10_mean_by_point": curve[:, i].mean(axis=1),
                }
                for i, setting in enumerate(self.settings)
            },
        }

    def notes(self) -> list[str]:
        """Returns a sentence for each best rate at an edge of its grid."""
        return [
            f"{name}, {self.settings[i]}: the best rate {self.runs[name].rates[best]:g}"
            " is at the edge of its grid"
            for name in self.runs
            for i, best in enumerate(self.best(name))
            if np.any(edges(self, name), axis=0)[i]
        ]

    def _log(self, values: np.ndarray) -> np.ndarray:
        low, high = self.bounds
        return np.log10(np.clip(np.nan_to_num(values, nan=high), low, high))


def edges(sweep: Sweep, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns [settings] whether a rate below, or above, the grid may be better."""
    scores = sweep.scores(name)[:, :, : sweep.tuning].mean(axis=2)
    best = sweep.best(name)
    if scores.shape[1] == 1:
        return best < 0, best < 0
    below = (best == 0) & (scores[:, 0] < scores[:, 1] - FLAT)
    last = scores.shape[1] - 1
    above = (best == last) & (scores[:, -1] < scores[:, -2] - FLAT)
    return below, above
