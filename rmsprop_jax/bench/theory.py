"""What stochastic rounding should cost: the random walk of log nu."""

import math

import numpy as np

MANTISSA = {"bfloat16": 7, "uint16": 8, "uint8": 2}
"""Bits of mantissa that are stored."""


class Theory:
    """The mean |du/u| that rounding without bias should give, by two formulas.

    A step changes nu by d of itself, (1 - rho) (g²/nu - 1). On a grid of relative step
    delta, rounding it up or down at random adds a variance of delta² p (1 - p), where p
    is what d / delta has behind the point: delta |d| for small steps. Later steps keep
    rho nu_old / nu_new of the error; u has half the relative error of nu.

    The short formula, for small steps in a steady state, has a root mean square of
    sqrt(delta E|g²/nu - 1| / 2) / 2.
    """

    def __init__(self, decay: float, every: int = 20) -> None:
        self.decay, self.every = decay, every
        self.surprise: list[float] = []
        self.kept: list[float] = []
        self.noise: dict[str, list[float]] = {name: [] for name in MANTISSA}

    def add(self, nus: np.ndarray) -> None:
        """Takes in a stretch of the exact nu [steps, coordinates]."""
        old, new = nus[: -1 : self.every], nus[1 :: self.every]
        old, new = (side[: min(len(old), len(new))] for side in (old, new))
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.where(old > 0, new / old - 1, 0)
            kept = np.where(new > 0, self.decay * old / new, 0)
        self.surprise.append(float(np.abs(change).mean()) / (1 - self.decay))
        self.kept.append(float((kept**2).mean()))
        for name, noise in self.noise.items():
            delta = _step(name)
            # Of the new value's own step, where the old one was on the grid.
            part = np.abs(change) / (1 + change) / delta % 1
            noise.append(float((delta**2 * part * (1 - part)).mean()))

    def mean_errors(self, name: str) -> dict[str, float]:
        """Returns the mean |du/u| of a form by both formulas; nothing for others."""
        if name not in MANTISSA:
            return {}
        walk = 0.5 * math.sqrt(0.5 * _step(name) * float(np.mean(self.surprise)))
        kept = float(np.mean(self.kept))
        variance = float(np.mean(self.noise[name])) / (1 - kept)
        full = 0.5 * math.sqrt(kept * variance)
        normal = math.sqrt(2 / math.pi)  # the mean of |x| where its rms is 1
        return {"random_walk": normal * walk, "theory": normal * full}


def _step(name: str) -> float:
    """Returns the mean relative step of the grid: of 2^-bits / m, for m in [1, 2)."""
    return 2.0 ** -MANTISSA[name] * 0.5 / math.log(2)
