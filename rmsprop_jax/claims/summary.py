"""One picture of all claims: how many criteria of each statement are met."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from ..lab import pictures
from .verdict import OUTCOMES, WORDS, word

COLOURS = {
    "met": pictures.GREEN, "open": "#DDDDDD", "contradicted": pictures.VERMILION,
}  # fmt: skip


def figure(found: Mapping[str, Any]) -> Figure:
    """Returns the picture of the claims of a results.json.

    Args:
      found: by name, with "statements".
    """
    rows = [
        (name, statement)
        for name, claim in found.items()
        for statement in claim["statements"]
    ]
    verdicts = [word(statement["counts"]) for _, statement in rows]
    said = [f"{each} {verdicts.count(each)}" for each in WORDS if each in verdicts]
    whole = pictures.figure(
        (11, 1.4 + 0.33 * len(rows)), f"{len(rows)} statements: {', '.join(said)}"
    )
    axes = whole.subplots()
    before = ""
    for place, (name, statement) in enumerate(rows):
        counts, left = statement["counts"], 0.0
        number = sum(counts.values())
        for outcome in OUTCOMES:
            part = counts[outcome] / number
            axes.barh(
                place, part, left=left, height=0.75, color=COLOURS[outcome],
                label="" if place else outcome,
            )  # fmt: skip
            if counts[outcome]:
                axes.text(
                    left + part / 2, place, str(counts[outcome]), fontsize=8,
                    ha="center", va="center",
                    color="black" if outcome == "open" else "white",
                )  # fmt: skip
            left += part
        axes.text(1.02, place, verdicts[place], va="center", fontsize=9, weight="bold")
        if name != before:
            axes.axhline(place - 0.5, color=pictures.GREY, linewidth=0.6)
        before = name
    labels = [f"{name}: {statement['claim']}" for name, statement in rows]
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_xlabel("of the criteria of a statement; numbers count them")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    pictures.legend_below(whole, axes)
    return whole
