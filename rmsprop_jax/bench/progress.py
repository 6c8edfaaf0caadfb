"""What a person sees while a benchmark runs, on standard error."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

Show = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens the display of one stretch, from its label and its number of steps."""


@contextlib.contextmanager
def live(quiet: bool) -> Iterator[Show]:
    """Yields what shows the progress: bars on a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield silent
    elif not console.is_terminal:
        yield _lines(console)
    else:
        columns = (
            TextColumn("{task.description:<36}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=console) as bars:
            yield _bars(bars)


@contextlib.contextmanager
def silent(label: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda step: None


def _lines(console: Console) -> Show:
    @contextlib.contextmanager
    def show(label: str, steps: int) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter()
        yield lambda step: None
        seconds = time.perf_counter() - began
        console.print(f"{label:<36}  {steps} steps, {seconds:5.1f} s")

    return show


def _bars(bars: Bars) -> Show:
    @contextlib.contextmanager
    def show(label: str, steps: int) -> Iterator[Callable[[int], None]]:
        row = bars.add_task(label, total=steps)
        yield lambda step: bars.update(row, completed=step)

    return show
