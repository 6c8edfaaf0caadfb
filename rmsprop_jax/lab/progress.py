"""What a person sees while a command runs, on standard error: one bar for the whole."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class OnStep(Protocol):
    """Told how many steps of a stretch are done, and what there is to say of them."""

    def __call__(self, step: int, note: str = "") -> None: ...


Show = Callable[[str, int], AbstractContextManager[OnStep]]
"""Opens the display of one stretch, from its label and its number of steps."""


@contextlib.contextmanager
def live(
    quiet: bool, total: float, weigh: Callable[[str], float] = lambda label: 1.0
) -> Iterator[Show]:
    """Yields what shows the progress: a bar on a terminal, lines elsewhere.

    Args:
      quiet: whether to show nothing.
      total: how many stretches there are, or the sum of what they weigh.
      weigh: from a stretch's label to how long it takes beside the others.
    """
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield silent
    elif not console.is_terminal:
        yield _lines(console)
    else:
        columns = (
            BarColumn(16),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, speed_estimate_period=600) as bars:
            yield _bar(bars, weigh, total)


@contextlib.contextmanager
def silent(label: str, steps: int) -> Iterator[OnStep]:
    """Shows nothing."""
    yield lambda step, note="": None


def _lines(console: Console) -> Show:
    @contextlib.contextmanager
    def show(label: str, steps: int) -> Iterator[OnStep]:
        began, said = time.perf_counter(), ""

        def on_step(step: int, note: str = "") -> None:
            nonlocal said
            said = note

        yield on_step
        seconds = time.perf_counter() - began
        count = f"{steps} step{'s' * (steps > 1)}"
        ending = f", {said}" if said else ""
        console.print(f"{label:<16}  {count}, {seconds:4.1f} s{ending}", soft_wrap=True)

    return show


def _bar(bars: Progress, weigh: Callable[[str], float], total: float) -> Show:
    whole, done = bars.add_task("", total=total), 0.0

    @contextlib.contextmanager
    def show(label: str, steps: int) -> Iterator[OnStep]:
        nonlocal done
        weight = weigh(label)
        bars.update(whole, completed=done, description=f"{label}: compiling")

        def on_step(step: int, note: str = "") -> None:
            part = done + weight * min(1.0, step / steps)
            said = f"{label}, {note}" if note else label
            bars.update(whole, completed=part, description=said)

        yield on_step
        done += weight
        bars.update(whole, completed=done)

    return show
