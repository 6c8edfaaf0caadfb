"""The verdicts as a table."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .verdict import RULE

_COLOURS = {"holds": "green", "holds only when": "yellow", "does not hold": "red"}


def show(found: Mapping[str, Any]) -> None:
    """Prints the verdicts, where each holds, and the rules behind them."""
    console = Console(highlight=False, markup=False)
    console.print(table(found))
    console.print(RULE, style="dim", soft_wrap=True)
    for name, claim in found.items():
        console.print(f"\n{name}: {claim['claim']}", style="bold", soft_wrap=True)
        for statement in claim["statements"]:
            for line in lines(statement):
                console.print(line, soft_wrap=True)
        for note in claim["notes"]:
            console.print(f"  note: {note}", style="dim", soft_wrap=True)
    console.print()


def table(found: Mapping[str, Any]) -> Table:
    """Returns one row for each statement."""
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    rows.add_column("claim", no_wrap=True)
    rows.add_column("tested as")
    rows.add_column("verdict", no_wrap=True)
    rows.add_column("met", justify="right", no_wrap=True)
    rows.add_column("open", justify="right", no_wrap=True)
    rows.add_column("contra-\ndicted", justify="right", no_wrap=True)
    for name, claim in found.items():
        for index, statement in enumerate(claim["statements"]):
            verdict, counts = statement["verdict"], statement["counts"]
            rows.add_row(
                "" if index else name, statement["claim"],
                Text(verdict, style=_COLOURS[verdict]),
                *(str(counts[key]) for key in ("met", "open", "contradicted")),
            )  # fmt: skip
        rows.add_section()
    return rows


def lines(statement: Mapping[str, Any]) -> list[str]:
    """Returns a verdict in words: where it holds, where not, and by which rule."""
    shown = [f"  {statement['claim']}: {statement['verdict']} {statement['when']}"]
    if statement["not_when"]:
        shown.append(f"    contradicted: {statement['not_when']}")
    if statement["open_when"]:
        shown.append(f"    open: {statement['open_when']}")
    return [*(line.rstrip() for line in shown), f"    rule: {statement['rule']}"]
