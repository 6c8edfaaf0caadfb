"""Tables for a terminal, whole however narrow it is, and the notes under them."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def table(
    title: str | None, first: Sequence[str], columns: Iterable[str], *, gap: int = 1
) -> Table:
    """Returns a table without rows.

    Args:
      title: above it, at the left.
      first: headers of the columns of words.
      columns: those of the columns of numbers.
      gap: blanks between two columns, besides the one that each edge has.
    """
    rows = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, gap - 1),
    )  # fmt: skip
    for header in first:
        rows.add_column(header, no_wrap=True)
    for header in columns:
        rows.add_column(header, justify="right", no_wrap=True)
    return rows


def show(rows: Table) -> None:
    """Prints a table; one that is wider than the terminal is not cut."""
    console = _console()
    if all(column.no_wrap for column in rows.columns):
        needed = _console(width=1000).measure(rows).maximum
        console = _console(width=max(console.width, needed))
    console.print(rows)


def notes(*lines: str, style: str = "dim") -> None:
    """Prints a line for each thing that explains the numbers."""
    for line in lines:
        _console().print(line, style=style, soft_wrap=True)


def findings(*lines: str) -> None:
    """Prints what was found, a line for each."""
    notes(*lines, style="bold")


def _console(**options: Any) -> Console:
    return Console(highlight=False, markup=False, **options)
