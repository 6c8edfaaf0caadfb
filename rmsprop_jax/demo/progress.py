"""What a person sees while the demo trains, on standard error."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from .train import Progress

Observer = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens the display of one sweep, from its label and its number of steps."""


@contextlib.contextmanager
def live(quiet: bool) -> Iterator[Observer]:
    """Yields what shows the progress: bars on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield _silent
    elif not console.is_terminal:
        yield _lines(console)
    else:
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=console) as bars:
            yield _bars(bars)


@contextlib.contextmanager
def _silent(label: str, steps: int) -> Iterator[Progress]:
    yield lambda step, loss: None


def _lines(console: Console) -> Observer:
    @contextlib.contextmanager
    def observe(label: str, steps: int) -> Iterator[Progress]:
        began, note = time.perf_counter(), ""

        def on_progress(step: int, loss: np.ndarray) -> None:
            nonlocal note
            note = _note(loss)

        yield on_progress
        seconds = time.perf_counter() - began
        count = f"{steps} step{'s' * (steps > 1)}"
        console.print(f"{label:<16}  {count}, {seconds:4.1f} s, {note}")

    return observe


def _bars(bars: Bars) -> Observer:
    @contextlib.contextmanager
    def observe(label: str, steps: int) -> Iterator[Progress]:
        # Without a total the bar pulses.
        row = bars.add_task(label, total=None, note="compiling")

        def on_progress(step: int, loss: np.ndarray) -> None:
            bars.update(row, total=steps, completed=step, note=_note(loss))

        yield on_progress

    return observe


def _note(loss: np.ndarray) -> str:
    """Describes the best rate so far of a validation loss [rates, seeds]."""
    mean = np.where(np.isfinite(loss), loss, np.inf).mean(axis=1).min()
    return f"validation loss {mean:.3f}"
