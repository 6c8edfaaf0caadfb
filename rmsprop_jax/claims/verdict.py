"""From numbers to a verdict, by one rule."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..lab.statistics import LEVEL, interval

MARGIN = math.log10(1.1)
"""What is better by less than a tenth is as good, in decades."""

RULE = (
    "A criterion is met where the confidence interval of its number (paired over "
    "seeds, 95 % for all criteria of the claim at once, by Bonferroni, unless its rule "
    "says otherwise) lies in the range that the claim needs; it is contradicted where "
    "the interval is outside, and open where it overlaps. All met: holds. All "
    "contradicted: does not hold. Half or more open: open. Of those decided, three "
    "quarters or more met: mostly holds; a quarter or fewer: mostly not; else: mixed."
)

OUTCOMES = ("met", "open", "contradicted")

# Each verdict: its colour in a terminal.
WORDS = {
    "holds": "green",
    "mostly holds": "green",
    "mixed": "yellow",
    "open": "",
    "mostly not": "red",
    "does not hold": "red",
}


def word(counts: Mapping[str, int]) -> str:
    """Returns the verdict for how many criteria are met, open and contradicted."""
    met, undecided, against = (counts[outcome] for outcome in OUTCOMES)
    number = met + undecided + against
    if met == number:
        return "holds"
    if against == number:
        return "does not hold"
    if 2 * undecided >= number:
        return "open"
    share = met / (met + against)
    return (
        "mostly holds" if share >= 0.75 else "mostly not" if share <= 0.25 else "mixed"
    )


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A number that the claim needs in a range.

    Attributes:
      group: what is compared.
      at: the setting.
      samples: [seeds], in decades (log10 of a ratio), or as the rule says.
      low: the lower end of the range.
      high: its upper end.
    """

    group: str
    at: str
    samples: np.ndarray
    low: float = -math.inf
    high: float = math.inf

    def judged(self, level: float) -> dict[str, Any]:
        """Returns its interval and whether it is met, contradicted or open."""
        first, last = interval(self.samples, level)
        if self.low < first and last < self.high:
            outcome = "met"
        elif last <= self.low or first >= self.high:
            outcome = "contradicted"
        else:
            outcome = "open"
        return {
            "group": self.group,
            "at": self.at,
            "outcome": outcome,
            "mean": float(np.mean(self.samples)),
            "interval": [first, last],
            "needed": [self.low, self.high],
            "seeds": len(self.samples),
        }


@dataclasses.dataclass(frozen=True)
class Statement:
    """A claim that can be judged.

    Attributes:
      claim: in words.
      rule: what its criteria need, in words.
      criteria: at least one.
      joint: whether the intervals hold together, by Bonferroni, or each by itself.
    """

    claim: str
    rule: str
    criteria: Sequence[Criterion]
    joint: bool = True

    def judged(self) -> dict[str, Any]:
        """Returns the verdict, with every criterion behind it."""
        level = LEVEL / len(self.criteria) if self.joint else LEVEL
        every = [c.judged(level) for c in self.criteria]
        having = {o: [c for c in every if c["outcome"] == o] for o in OUTCOMES}
        counts = {outcome: len(criteria) for outcome, criteria in having.items()}
        return {
            "claim": self.claim,
            "rule": self.rule,
            "verdict": word(counts),
            "when": where(having["met"], every),
            "not_when": where(having["contradicted"], every),
            "open_when": where(having["open"], every),
            "counts": counts,
            "criteria": every,
        }


def where(some: Sequence[Any], every: Sequence[Any]) -> str:
    """Returns in words which judged criteria of all are meant, each group once.

    Settings in a row are named by the ends of the row, where it is at an end of all.
    """
    words = []
    for group in dict.fromkeys(criterion["group"] for criterion in some):
        ats = [c["at"] for c in every if c["group"] == group]
        named = [c["at"] for c in some if c["group"] == group]
        if len(named) == len(ats):
            said = f"{named[0]} to {named[-1]}" if len(ats) > 2 else ", ".join(named)
        elif len(named) > 2 and named == ats[-len(named) :]:
            said = f"{named[0]} and after"
        elif len(named) > 2 and named == ats[: len(named)]:
            said = f"up to {named[-1]}"
        else:
            said = ", ".join(named)
        words.append(f"{group}: {said}")
    return "; ".join(words)


def better(group: str, ats: Sequence[str], samples: np.ndarray) -> list[Criterion]:
    """Returns criteria that ratios [settings, seeds] are below 1 by over a tenth."""
    return within(group, ats, samples, high=-MARGIN)


def as_good(group: str, ats: Sequence[str], samples: np.ndarray) -> list[Criterion]:
    """Returns criteria that ratios [settings, seeds] are below 1.1."""
    return within(group, ats, samples, high=MARGIN)


def equal(group: str, ats: Sequence[str], samples: np.ndarray) -> list[Criterion]:
    """Returns criteria that ratios [settings, seeds] are within a tenth of 1."""
    return within(group, ats, samples, low=-MARGIN, high=MARGIN)


def within(
    group: str, ats: Sequence[str], samples: np.ndarray, **needed: float
) -> list[Criterion]:
    """Returns criteria that numbers [settings, seeds] are in a range, `low` to `high`.

    In units of their own: widths, for example, are larger where ``low=0``.
    """
    return [
        Criterion(group, at, row, **needed)
        for at, row in zip(ats, samples, strict=True)
    ]
