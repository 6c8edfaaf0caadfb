"""From numbers to a verdict, by one rule."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..bench.statistics import LEVEL, interval

MARGIN = math.log10(1.1)
"""What is better by less than a tenth is as good, in decades."""

RULE = (
    "A criterion is met where the confidence interval of its number (paired over "
    "seeds, 95 % for all criteria of the claim at once, by Bonferroni, unless its rule "
    "says otherwise) lies in the range that the claim needs; it is contradicted where "
    "the interval is outside, and open where it overlaps. All met: holds. None: does "
    "not hold. Otherwise: holds only when."
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
        met = [c for c in every if c["outcome"] == "met"]
        counts = {
            outcome: sum(c["outcome"] == outcome for c in every)
            for outcome in ("met", "open", "contradicted")
        }
        if len(met) == len(every):
            verdict = "holds"
        elif met:
            verdict = "holds only when"
        else:
            verdict = "does not hold"
        return {
            "claim": self.claim,
            "rule": self.rule,
            "verdict": verdict,
            "when": grouped(met) if verdict == "holds only when" else "",
            "not_when": grouped(c for c in every if c["outcome"] == "contradicted"),
            "open_when": grouped(c for c in every if c["outcome"] == "open"),
            "counts": counts,
            "criteria": every,
        }


def grouped(criteria: Iterable[dict[str, Any]]) -> str:
    """Returns judged criteria in words, each group once."""
    groups: dict[str, list[str]] = {}
    for criterion in criteria:
        groups.setdefault(criterion["group"], []).append(criterion["at"])
    return "; ".join(f"{group}: {', '.join(ats)}" for group, ats in groups.items())


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
