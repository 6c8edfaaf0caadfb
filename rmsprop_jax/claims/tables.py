"""The verdicts as a table, and in words."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ..lab import tables as terminal
from ..lab.tables import table as empty
from .verdict import OUTCOMES, RULE, WORDS, word


def show(found: Mapping[str, Any]) -> None:
    """Prints the verdicts, where each holds, and the rules behind them."""
    terminal.show(table(found))
    terminal.notes(RULE)
    for name, claim in found.items():
        print()
        terminal.findings(f"{name}: {claim['claim']}")
        for statement in claim["statements"]:
            terminal.notes(*lines(statement), style="")
        terminal.notes(*(f"  note: {note}" for note in claim["notes"]))
    print()


def table(found: Mapping[str, Any]) -> Table:
    """Returns one row for each statement."""
    rows = empty(None, ["claim"], [])
    rows.add_column("tested as")
    rows.add_column("verdict", no_wrap=True)
    for outcome in OUTCOMES:
        header = "contra-\ndicted" if outcome == "contradicted" else outcome
        rows.add_column(header, justify="right", no_wrap=True)
    for name, claim in found.items():
        for index, statement in enumerate(claim["statements"]):
            # Results of before this version have other words for the same counts.
            verdict = word(statement["counts"])
            rows.add_row(
                "" if index else name, statement["claim"],
                Text(verdict, style=WORDS[verdict]),
                *(str(statement["counts"][outcome]) for outcome in OUTCOMES),
            )  # fmt: skip
        rows.add_section()
    return rows


def lines(statement: Mapping[str, Any]) -> list[str]:
    """Returns a verdict in words: where it holds, where not, and by which rule."""
    counts = statement["counts"]
    shown = [
        f"  {statement['claim']}: {word(counts)} (met {counts['met']} of "
        f"{sum(counts.values())})"
    ]
    for key, header in (
        ("when", "met"), ("not_when", "contradicted"), ("open_when", "open"),
    ):  # fmt: skip
        if statement[key]:
            shown.append(f"    {header}: {statement[key]}")
    return [*shown, f"    rule: {statement['rule']}"]
