"""Claim 8: bfloat16 parameters with `round_params` train as master weights do."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import rmsprop
from ..diagnostics import best_rate
from ..lab import pictures
from ..lab.master import with_master_weights
from ..lab.program import Contender, Problem, compiled, cosine
from ..lab.results import Cells
from ..lab.statistics import differences, interval
from ..lab.tasks import learning
from ..lab.training import Trained, keys_of, train
from .claim import Claim
from .grid import OnPart, Plan
from .nets import NETS, signals
from .verdict import Statement, within

MARGIN = 1.0
"""Percent of the loss. It was fixed before anything was measured."""

DECAYS = (0.99, 0.9, 0.999)
RATES = (3e-3, 1e-2, 3e-2)
"""Tried with master weights; the best is used for all, so nobody is tuned again."""

FULL, SMALL, BATCH = 3000, 500, 32
"""Updates of a run, and examples of each."""

POINTS = 5
"""Points of a curve, besides the one before training."""


def _narrow(wrap: Any = lambda tx: tx, **options: Any) -> Contender:
    """Returns RMSProp on bfloat16 parameters."""
    return Contender(lambda rate, at: wrap(rmsprop(rate, at, **options)), "bfloat16")


MASTER = "float32 master weights"
FORMS = {
    MASTER: _narrow(with_master_weights),
    "stochastic": _narrow(round_params="stochastic"),
    "remainder": _narrow(round_params="remainder"),
    "remainder, nu in one byte": _narrow(round_params="remainder", nu_dtype="uint8"),
}

MORE, TUNING = 4, 3
"""Times as many seeds as other claims have, for the margin is narrow (two runs of one
net differ by 3.5 % of the loss); and the most that choose a rate, which need not be
exact."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
      cells: by net and decay, such as "MLP, 0.9": "rate"; "test_loss" and
        "test_accuracy" [seeds] by form; "improved_percent" by form, how much lower the
        mean validation loss is at the end than a fifth of the steps before.
      steps: updates of a run.
    """

    cells: dict[str, dict[str, Any]]
    steps: int

    def differences(self, form: str) -> np.ndarray:
        """Returns losses less those of master weights, in percent [cells, seeds]."""
        losses = [cell["test_loss"] for cell in self.cells.values()]
        return np.stack([differences(loss[form], loss[MASTER]) for loss in losses])


def measure(plan: Plan, on_part: OnPart, cells: Cells | None = None) -> Found:
    """Trains four nets, or the first alone where little is run, at every decay."""
    cells = cells or Cells(None, CLAIM.name, False)
    names = list(NETS) if plan.full else list(NETS)[:1]
    steps = POINTS * max(1, round(plan.part * (FULL if plan.full else SMALL) / POINTS))
    decays = plan.some(DECAYS)
    seeds, tuning = MORE * plan.seeds, min(plan.tuning, TUNING)
    cells.begin(
        {"steps": steps, "batch": BATCH, "seeds": seeds, "tuning": tuning,
         "rates": list(RATES), "margin_percent": MARGIN, "forms": list(FORMS)}
    )  # fmt: skip
    keys = keys_of(range(tuning + seeds))
    at = np.arange(POINTS + 1) * (steps // POINTS)
    alone = {MASTER: FORMS[MASTER]}
    problems = {name: _problem(name, steps) for name in names}
    # One program serves all decays.
    tuned = {name: compiled(problem, alone) for name, problem in problems.items()}
    programs = {name: compiled(problem, FORMS) for name, problem in problems.items()}
    found, jobs = {}, [(name, decay) for name in names for decay in decays]

    def cell(name: str, decay: float) -> dict[str, Any]:
        # Those of the reference are tuned, on seeds that are not reported.
        tried = train(
            problems[name], alone, [decay], {MASTER: RATES}, keys[:tuning], at,
            program=tuned[name],
        )  # fmt: skip
        rate = RATES[best_rate(tried.values[MASTER][-1, 0])]
        got = train(
            problems[name], FORMS, [decay], dict.fromkeys(FORMS, (rate,)),
            keys[tuning:], at, program=programs[name],
        )  # fmt: skip
        return {"rate": rate, **_of(got)}

    for done, (name, decay) in enumerate(jobs):
        found[f"{name}, {decay:g}"] = cells.of(
            f"{name}, {decay:g}", lambda name=name, decay=decay: cell(name, decay)
        )
        on_part((done + 1) / len(jobs))
    return Found(found, steps)


def _problem(name: str, steps: int) -> Problem:
    task = dataclasses.replace(signals(), net=NETS[name])
    return learning(task, steps, BATCH, epochs=False, dtype="bfloat16", schedule=cosine)


def _of(got: Trained) -> dict[str, Any]:
    """Returns the results of a cell, in the types of JSON."""
    report = got.report(dict.fromkeys(FORMS, (0,)))
    falls = {}
    for form, values in got.values.items():
        before, after = values[-2:].mean(axis=(1, 2, 3))
        falls[form] = float(100 * (1 - after / before))
    return {
        **{
            key: {form: report[form][key][0].tolist() for form in FORMS}
            for key in ("test_loss", "test_accuracy")
        },
        "improved_percent": falls,
    }


RULE = (
    f"test loss less that of float32 master weights, paired over seeds, at the rate "
    f"that is best for master weights: the 95 % interval lies within ± {MARGIN:g} % of "
    "the loss (each by itself: that all hold needs no correction)"
)


def judge(found: Found) -> list[Statement]:
    """Returns a statement for each form."""
    statements = []
    for form in FORMS:
        if form != MASTER:
            criteria = []
            for at, row in zip(found.cells, found.differences(form), strict=True):
                net, decay = at.rsplit(", ", 1)
                criteria += within(
                    f"{net}, decay", [decay], row[None], low=-MARGIN, high=MARGIN
                )
            words = f"bfloat16, {form}: as good as float32 master weights"
            statements.append(Statement(words, RULE, criteria, joint=False))
    return statements


def draw(figure: Figure, found: Found) -> None:
    """Draws every interval beside the margin."""
    forms = [form for form in FORMS if form != MASTER]
    every = figure.subplots(1, len(forms), sharey=True, squeeze=False)[0]
    for axes, form in zip(every, forms, strict=True):
        axes.axvspan(-MARGIN, MARGIN, color=pictures.GREEN, alpha=0.15, linewidth=0)
        axes.axvline(0, color=pictures.GREY, linewidth=0.8)
        rows = dict(zip(found.cells, found.differences(form), strict=True))
        pictures.intervals(
            axes,
            rows,
            lambda low, high: (
                pictures.BLUE if -MARGIN < low < high < MARGIN else pictures.VERMILION
            ),
        )
        axes.set_title(form, fontsize=10)
        axes.set_xlabel("test loss beside master weights, %")
    every[0].set_ylabel("net, decay")
    figure.supxlabel(
        f"95 % intervals; green: the margin of ± {MARGIN:g} %; blue: within it; "
        "orange: not, or not known yet",
        fontsize=9,
    )


def summary(found: Found) -> dict[str, Any]:
    """Returns what goes into the JSON."""
    means = {}
    for form in FORMS:
        if form != MASTER:
            of_seeds = found.differences(form).mean(axis=0)
            low, high = interval(of_seeds)
            means[form] = {"mean": of_seeds.mean(), "low": low, "high": high}
    notes = [
        f"{form}: {at['mean']:+.2f} % ({at['low']:+.2f} to {at['high']:+.2f}) on the "
        "mean of all nets and decays, which is no part of the rule"
        for form, at in means.items()
    ]
    gains = [
        f"{at}: the validation loss still fell by {max(gain):.1f} % in the last fifth"
        for at, cell in found.cells.items()
        if max(gain := list(cell["improved_percent"].values())) > MARGIN
    ]
    return {
        "notes": notes + gains,
        "margin_percent": MARGIN,
        "steps": found.steps,
        "batch_size": BATCH,
        "cells": found.cells,
        "mean_difference_percent": means,
        "difference_percent": {
            form: dict(zip(found.cells, found.differences(form), strict=True))
            for form in FORMS
            if form != MASTER
        },
    }


CLAIM = Claim(
    "bf16", "bfloat16 parameters with round_params: as good as float32 master weights",
    measure, judge, draw, summary, size=(12, 5.6), resumable=True,
)  # fmt: skip
