"""Time of steps, taken in turns: what disturbs the machine disturbs all alike."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

SHORTEST = {"cpu": 2e-3}
"""Seconds of a sample at least, by platform: shorter steps are taken several times."""

SHORTEST_ELSEWHERE = 20e-3
"""To start steps on an accelerator, and to wait for them, takes tens of microseconds.
"""

PAUSE = 1e-3
"""Seconds before a sample, in which another framework's threads stop spinning."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A step that can be taken again and again.

    Attributes:
      advance: starts a step, and may return before it is done.
      wait: returns when all steps are done.
      state_bytes: of the optimizer's state.
      compile_seconds: to trace and compile, or of the first step; 0 where neither is
        done.
    """

    advance: Callable[[], Any]
    wait: Callable[[], Any]
    state_bytes: int
    compile_seconds: float


def measure(
    running: Mapping[str, Running],
    budget: float,
    rounds: tuple[int, int] = (3, 31),
    on_part: Callable[[float], Any] = lambda part: None,
) -> dict[str, np.ndarray]:
    """Returns the seconds of a step of each row in each round: A B C, A B C, ...

    Args:
      running: by the name of the row.
      budget: seconds for all rounds together.
      rounds: at least and at most; as many as the budget allows.
      on_part: told which part of the rounds is done.
    """
    calls = {}
    shortest = SHORTEST.get(jax.default_backend(), SHORTEST_ELSEWHERE)
    for name, row in running.items():
        first = _sample(row, 1)  # slower, but of a long step it says enough
        once = first if first > 50 * shortest else _sample(row, 1)
        calls[name] = int(np.clip(np.ceil(shortest / once), 1, 1000))
    samples: dict[str, list[float]] = {name: [] for name in running}
    began, done, count = time.perf_counter(), 0, rounds[1]
    while done < count:
        for name, row in running.items():
            samples[name].append(_sample(row, calls[name]))
        done += 1
        a_round = (time.perf_counter() - began) / done
        count = int(np.clip(budget / a_round, *rounds))
        on_part(min(1.0, done / count))
    return {name: np.asarray(seconds) for name, seconds in samples.items()}


def _sample(row: Running, calls: int) -> float:
    row.wait()
    time.sleep(PAUSE)
    began = time.perf_counter()
    for _ in range(calls):
        row.advance()
    row.wait()
    return (time.perf_counter() - began) / calls


def groups(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Returns the names in groups of which each is within a limit, if a name can be.

    Args:
      sizes: bytes by name, in the order to keep.
      limit: bytes that a group may have; a name that alone has more gets no group.
    """
    found: list[list[str]] = []
    free = 0
    for name, size in sizes.items():
        if size > limit:
            continue
        if not found or size > free:
            found.append([])
            free = limit
        found[-1].append(name)
        free -= size
    return found


def summary(samples: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Returns median and quartiles of seconds, in milliseconds."""
    low, median, high = 1e3 * np.percentile(samples, (25, 50, 75))
    return {"milliseconds": median, "low": low, "high": high}


def ratio(samples: np.ndarray, base: np.ndarray) -> float:
    """Returns the median of the ratios in each round: the two share its noise."""
    return float(np.median(samples / base))
