"""The rows of one shape: which are measured, in groups that fit into memory."""

import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from . import rows, timing, tracing
from .shapes import Shapes
from .timing import Running

MEMORY = 12 * 2**30
"""Bytes to use at most, if the device has twice as many."""

ARRAYS = 4
"""As large as the parameters, that a row needs at most: parameters, state, updates."""

ALWAYS = (rows.BASE, "ours")
"""What every shape has, however long it takes."""


class Budget:
    """What a cell may take, predicted from the shape before; no limit by default."""

    def __init__(
        self,
        step: float = math.inf,
        compilation: float = math.inf,
        shape: float = math.inf,
    ) -> None:
        """Makes a budget of seconds: of a step, to compile it, and of a whole shape."""
        self.step, self.compilation, self.shape = step, compilation, shape
        # By name: seconds of a step for each element, and to compile over the base's.
        self.by_element: dict[str, float] = {}
        self.over_base: dict[str, float] = {}

    def note(self, name: str, size: int, step: float, compilation: float) -> None:
        """Remembers the seconds of a row's step, and to compile it over the base's."""
        self.by_element[name] = step / size
        self.over_base[name] = compilation

    def excess(self, name: str, size: int, base_compilation: float) -> str | None:
        """Returns why a row would take too long, if so."""
        if name in ALWAYS:
            return None
        step = self.by_element.get(name, 0.0) * size
        if step > self.step:
            return f"a step would take about {step:.0f} s"
        compilation = self.over_base.get(name, 0.0) * base_compilation
        if compilation > self.compilation:
            return f"compiling would take about {compilation:.0f} s"
        return None


def measure(
    shapes: Shapes,
    names: Sequence[str],
    seconds: float,
    budget: Budget,
    on_part: Callable[[float], Any],
    rounds: int = 3,
) -> dict[str, Any]:
    """Returns what was measured of each row on one shape.

    Args:
      shapes: of the leaves.
      names: of the rows, `rows.BASE` among them.
      seconds: for all rounds together.
      budget: what a cell may take.
      on_part: told which part is done.
      rounds: how often each is traced.
    """
    deadline = time.perf_counter() + budget.shape
    size = sum(math.prod(shape) for shape in shapes)
    free = _memory() - (1 + 3 + ARRAYS) * 4 * size  # gradients, x + 1, the base
    if free < 0:
        return {"parameters": size, "leaves": len(shapes), "skipped": "too large"}
    others = [name for name in names if name != rows.BASE]
    in_groups = timing.groups(dict.fromkeys(others, ARRAYS * 4 * size), free) or [[]]
    fitting = {name for group in in_groups for name in group}
    skipped = {
        name: "does not fit into memory" for name in others if name not in fitting
    }
    grads = rows.gradients(shapes)
    found: dict[str, Any] = {}
    in_place = 0.0
    for index, group in enumerate(in_groups):

        def on_part_of_group(part: float, index: int = index) -> None:
            on_part((index + part) / len(in_groups))

        running = _start(group, grads, budget, deadline, skipped, on_part_of_group)
        samples = timing.measure(
            running, seconds / len(in_groups),
            on_part=lambda part, tell=on_part_of_group: tell(0.5 + part / 2),
        )  # fmt: skip
        in_place = _rate(24 * size, samples.pop(rows.IN_PLACE))
        for name in samples:
            if name not in found:
                found[name] = _cell(name, running[name], samples, in_place, grads)
        base = running[rows.BASE].compile_seconds
        for name in samples:
            step = found[name]["milliseconds"] / 1e3
            budget.note(name, size, step, running[name].compile_seconds / base)
        del running
        gc.collect()
    makes = {name: rows.ROWS[name].make for name in found}
    makes = {name: make for name, make in makes.items() if make is not None}
    traced = tracing.measure(shapes, makes, rounds)
    for name, of_row in traced.items():
        found[name]["trace_seconds"] = float(np.median(of_row))
        twin = rows.ROWS[name].twin
        if twin in traced:
            found[name]["trace_ratio_to_twin"] = timing.ratio(of_row, traced[twin])
    return {
        "parameters": size,
        "leaves": len(shapes),
        "in_place_gb_per_s": in_place,
        "rows": {name: found[name] for name in names if name in found},
        "skipped": skipped,
    }


def _start(
    names: Sequence[str],
    grads: list[jax.Array],
    budget: Budget,
    deadline: float,
    skipped: dict[str, str],
    on_part: Callable[[float], Any],
) -> dict[str, Running]:
    """Returns x + 1, the base and the rows that start.

    Adds to `skipped` why another does not.
    """
    base = rows.ROWS[rows.BASE].start(grads)
    running = {rows.IN_PLACE: rows.in_place(grads), rows.BASE: base}
    size = sum(g.size for g in grads)
    for index, name in enumerate(names):
        reason = budget.excess(name, size, base.compile_seconds)
        if name not in ALWAYS and time.perf_counter() > deadline:
            reason = "no time was left"
        if reason:
            skipped[name] = reason
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other frameworks
                running[name] = rows.ROWS[name].start(grads)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            skipped[name] = f"{type(error).__name__}: {lines[0]}"
        on_part((index + 1) / len(names) / 2)
    return running


def _cell(
    name: str,
    running: Running,
    samples: dict[str, np.ndarray],
    in_place: float,
    grads: list[jax.Array],
) -> dict[str, Any]:
    seconds, twin = samples[name], rows.ROWS[name].twin
    moved = rows.bytes_that_must_move(grads, running.state_bytes)
    size = sum(g.size for g in grads)
    return {
        **timing.summary(seconds),
        "rounds": len(seconds),
        "bytes_per_parameter": moved / size,
        "gb_per_s": _rate(moved, seconds),
        "percent_of_in_place": 100 * _rate(moved, seconds) / in_place,
        "state_bytes_per_parameter": running.state_bytes / size,
        "ratio": timing.ratio(seconds, samples[rows.BASE]),
        **(
            {"twin": twin, "ratio_to_twin": timing.ratio(seconds, samples[twin])}
            if twin in samples
            else {}
        ),
        "compile_seconds": running.compile_seconds,
    }


def _rate(moved: int, seconds: np.ndarray) -> float:
    return moved / float(np.median(seconds)) / 1e9


def _memory() -> int:
    """Returns how many bytes to use, at most half of the device's."""
    stats = jax.devices()[0].memory_stats() or {}
    has = stats.get("bytes_limit")
    if has is None:
        try:
            has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            has = 8 * 2**30
    return min(MEMORY, has // 2)
