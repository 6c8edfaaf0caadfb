"""Trains all optimizers at all settings, rates and seeds, and moves their grids on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..lab.program import Contender, Problem, compiled
from ..lab.training import keys_of, points, train
from .sweep import Runs, Sweep, edges

POINTS = 10
"""Points of a curve."""

EXTENSIONS = 2
"""How often a grid of rates is moved on where its edge is best."""

OnPart = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
      seeds: how many are reported.
      tuning: how many others choose the learning rates.
      part: of the steps of an experiment.
      quick: whether lists of settings are cut to two, to see that it runs.
      full: whether experiments of several sizes have their largest.
    """

    seeds: int = 10
    tuning: int = 3
    part: float = 1.0
    quick: bool = False
    full: bool = False

    def steps(self, steps: int) -> int:
        """Returns how many of an experiment's steps are done, whole stretches."""
        return POINTS * max(1, round(self.part * steps / POINTS))

    def some(self, values: Sequence[Any]) -> list[Any]:
        """Returns all values, or the first and the last where it is quick."""
        return [values[0], values[-1]] if self.quick else list(values)


def sweep(
    problem: Problem,
    contenders: Mapping[str, Contender],
    settings: Mapping[str, Any],
    rates: Mapping[str, Any],
    plan: Plan,
    on_part: OnPart = lambda part: None,
    extensions: int = EXTENSIONS,
) -> Sweep:
    """Returns what every optimizer reached at every setting, rate and seed.

    Args:
      problem: what to minimise.
      contenders: the optimizers by name.
      settings: by name, trees of numbers of one structure.
      rates: by optimizer, ascending, of one length for all. Where the first or the last
        is best, the grid is moved on, and all is run again.
      plan: for the seeds; the first `tuning` ones choose the rates.
      on_part: told which part is done, from 0 to 1; it starts again with each grid.
      extensions: how often a grid is moved on at most.
    """
    keys = keys_of(range(plan.tuning + plan.seeds))
    program = compiled(problem, contenders)
    grids = {name: np.asarray(rates[name], float) for name in contenders}
    found: dict[str, Runs] = {}
    for extension in range(extensions + 1):
        trained = train(
            problem, contenders, list(settings.values()), grids, keys,
            points(problem.steps, POINTS),
            lambda step, values: on_part(step / problem.steps), program=program,
        )  # fmt: skip
        for name, grid in grids.items():
            runs = Runs(grid, trained.values[name][-POINTS:])
            found[name] = found[name].joined(runs) if name in found else runs
        result = Sweep(
            tuple(settings), found, problem.steps, plan.tuning, problem.online,
            problem.bounds, problem.limit,
        )  # fmt: skip
        sides = {name: edges(result, name) for name in found}
        if extension == extensions or not np.any([*sides.values()]):
            return result
        grids = {name: _moved(found[name].rates, sides[name], rates) for name in found}
    raise AssertionError("the last pass returns")


def _moved(tried: np.ndarray, side: Any, rates: Mapping[str, Any]) -> np.ndarray:
    """Returns the next grid, of the same length: below or above what was tried."""
    length = len(next(iter(rates.values())))
    below, above = side
    ratio = tried[1] / tried[0] if len(tried) > 1 else 10.0
    if above.any():
        return tried[-1] * ratio ** np.arange(1, length + 1)
    if below.any():
        return tried[0] * ratio ** np.arange(-length, 0.0)
    return tried[:length]


def stretches(on_part: OnPart, number: int) -> list[OnPart]:
    """Returns what is told the parts of each of a number of equal stretches."""
    return [
        lambda part, done=done: on_part((done + part) / number)
        for done in range(number)
    ]
