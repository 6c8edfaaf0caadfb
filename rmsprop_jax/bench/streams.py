"""Streams of gradients to follow: noise whose scale, tails or zeros are known."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

JUMP = 100.0
"""How much larger the gradients are in every other period of a stream with jumps."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """Independent gradients, coordinate by coordinate.

    Attributes:
      title: what they are, in words.
      decades: the logarithms of the smallest and the largest scale. All lie in the
        default range of one byte, 2.4e-7 to 950, with room for what is around them.
      draw: [steps, coordinates] of scale one, from a generator and that shape.
      steps: how many.
      period: after how many steps the scale jumps, up and down by turns; 0 for never.
    """

    title: str
    decades: tuple[float, float]
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    steps: int = 8000
    period: int = 0

    def scales(self, coordinates: int) -> np.ndarray:
        """Returns the scale of each coordinate, ascending."""
        return np.logspace(*self.decades, coordinates)

    def factor(self, step: np.ndarray) -> np.ndarray:
        """Returns how much larger the gradients of some steps are than at first."""
        if not self.period:
            return np.ones(len(step))
        return np.where(step // self.period % 2, JUMP, 1.0)

    def chunks(self, coordinates: int, length: int) -> Iterator[np.ndarray]:
        """Yields the gradients in float32, [length, coordinates] at a time."""
        random = np.random.default_rng(0)
        scales = self.scales(coordinates)
        for first in range(0, self.steps, length):
            factor = self.factor(np.arange(first, first + length))[:, None]
            noise = self.draw(random, (length, coordinates))
            yield (noise * factor * scales).astype(np.float32)


def _normal(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return random.standard_normal(shape)


def _student(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return random.standard_t(3, shape)


def _sparse(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.where(random.random(shape) < 0.1, random.standard_normal(shape), 0.0)


STREAMS = {
    "stationary": Stream(
        "normal, scales 3e-6 to 3e2", (-5.5, 2.5), _normal, steps=20_000
    ),
    "heavy tails": Stream(
        "Student's t with 3 degrees of freedom, scales 1e-6 to 1e2", (-6, 2), _student
    ),
    "sparse": Stream("normal, 90 % exact zeros, scales 1e-5 to 1e3", (-5, 3), _sparse),
    "jumps": Stream(
        "normal, scales 3e-6 to 3, 100 times larger in every other 2,000 steps",
        (-5.5, 0.5),
        _normal,
        period=2000,
    ),
}


def quick(stream: Stream) -> Stream:
    """Returns a short version, to see that it runs."""
    return dataclasses.replace(stream, steps=400, period=100 if stream.period else 0)
