"""The table of `rmsprop-jax bench plan`."""

from typing import Any

from rich.console import Console

from .speed_tables import _table

PARTS = ("parameters", "gradients", "state")


def show(found: dict[str, Any]) -> None:
    """Prints a table for each model, and what the compiler refused."""
    console = Console(highlight=False)
    settings = found["settings"]
    rooms = {name: room / 2**30 for name, room in settings["capacity"].items()}
    for name, model in found["models"].items():
        title = f"{name}: {model['parameters']:,} parameters, {model['source']}"
        headers = ["chips", "para-\nmeters", "gradi-\nents", "state", "more", "wire"]
        headers += [f"{name}\n{room:.1f}" for name, room in rooms.items()]
        table = _table(title, *headers)
        rows = [row for row in found["rows"] if row["model"] == name]
        for layout in dict.fromkeys(row["layout"] for row in rows):
            some = [row for row in rows if row["layout"] == layout]
            most = max(row["chips"] for row in some)
            table.add_section()
            table.add_row(layout, style="bold")
            for row in some:
                if row["chips"] == most or _fits(row):
                    table.add_row(row["optimizer"], *_texts(row))
        console.print(table)
        for row in rows:
            for chip, verdict in row["fits"].items():
                if "message" in verdict:
                    where = (
                        f"{row['layout']}, {row['optimizer']}, {row['chips']} × {chip}"
                    )
                    console.print(f"{where}: {verdict['message']}", soft_wrap=True)
    for note in (
        f"GiB a chip, no activations; parameters and gradients: {settings['dtype']}",
        "more: what the update needs besides, and padding",
        "wire: what a chip sends in a step for gradients and parameters",
        "~: by arithmetic; all else is what was compiled",
        "yes, no: the compiler for that chip says so; ~no: the sum is more than it has",
        "~yes: a smaller chip holds it",
        "replicated is the same on more chips; fewer chips that none fits are left out",
    ):
        console.print(note, style="dim", soft_wrap=True)


def _fits(row: dict[str, Any]) -> bool:
    return any(verdict["fits"] for verdict in row["fits"].values())


def _texts(row: dict[str, Any]) -> list[str]:
    compiled, expected = row["compiled"], row["arithmetic"]
    if compiled:
        parts = [_gib(compiled[name]) for name in PARTS]
        held = sum(compiled[name] for name in PARTS)
        more = compiled["with_padding"] + compiled["temporary"] - held
        parts.append(_gib(more))
    else:
        parts = [f"~{_gib(expected[name])}" for name in PARTS] + [""]
    marks = {"arithmetic": "~", "compiler": ""}
    verdicts = [
        marks.get(verdict["by"], "~") + ("yes" if verdict["fits"] else "no")
        for verdict in row["fits"].values()
    ]
    return [str(row["chips"]), *parts, f"~{_gib(expected['wire'])}", *verdicts]


def _gib(size: float) -> str:
    gib = size / 2**30
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.1f}" if gib >= 1 else f"{gib:.2f}"
