"""The test loss with each dtype of nu, paired by seed with that of float32."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .. import rmsprop
from ..diagnostics import best_rate
from ..lab import statistics, tasks
from ..lab.program import Contender
from ..lab.progress import Show, silent
from ..lab.results import Cells
from ..lab.training import keys_of, points, train

DECAYS = (0.9, 0.99, 0.999)
FORMS = ("float32", "bfloat16", "uint16", "uint8")
TUNING_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a task is trained.

    Attributes:
      load: makes the task.
      steps: updates of a run.
      batch_size: examples of each.
      rates: the learning rates to try with float32, ascending.
      seeds: how many pairs: the test loss of the digits is the noisiest by far.
    """

    load: Callable[[], tasks.Task]
    steps: int
    batch_size: int
    rates: tuple[float, ...]
    seeds: int = 10


PLANS = {
    "digits": Plan(tasks.digits, 240, 32, (1e-3, 3e-3, 1e-2, 3e-2), 40),
    "text": Plan(tasks.text, 240, 16, (3e-3, 1e-2, 3e-2, 1e-1)),
    "transformer": Plan(tasks.transformer, 100, 16, (3e-4, 1e-3, 3e-3, 1e-2)),
}


def stretches() -> int:
    """Returns how many times the display is opened."""
    return 2 * len(PLANS)


def measure(
    quick: bool, seeds: int | None, show: Show = silent, cells: Cells | None = None
) -> dict[str, Any]:
    """Returns the settings and, by task and decay, what was measured.

    Args:
      quick: a few steps, two rates and three seeds.
      seeds: how many pairs of runs, if not each task's own number.
      show: what a person sees.
      cells: keeps the tasks that are done.
    """
    cells = cells or Cells(None, "training", False)
    cells.begin({"quick": quick, "seeds": seeds})
    found = {}
    for name, plan in PLANS.items():
        if quick:
            plan = dataclasses.replace(plan, steps=4, rates=plan.rates[1:3], seeds=3)
        if seeds is not None:
            plan = dataclasses.replace(plan, seeds=seeds)
        found[name] = cells.of(name, lambda plan=plan: _task(plan, show))
    pairs = [
        form
        for task in found.values()
        for cell in task["by_decay"].values()
        for name, form in cell["by_form"].items()
        if name != "float32"
    ]
    for form, p in zip(pairs, statistics.holm([c["p"] for c in pairs]), strict=True):
        form["p_holm"] = p
    for name, task in found.items():
        task["finding"] = finding(name, task["by_decay"])
    return {
        "settings": {
            "tuning_seeds": TUNING_SEEDS,
            "comparisons": len(pairs),
        },
        "tasks": found,
    }


def _contender(dtype: str) -> Contender:
    """Returns RMSProp with a dtype of nu, at a decay; rates are in units of one."""
    return Contender(
        lambda rate, setting: rmsprop(
            rate * setting["unit"], decay=setting["decay"], nu_dtype=dtype
        )
    )


def _task(plan: Plan, show: Show) -> dict[str, Any]:
    task = plan.load()
    problem = tasks.learning(task, plan.steps, plan.batch_size, schedule=None)
    at = points(plan.steps, 8)
    with show(f"{task.name}, learning rates", plan.steps) as on_step:
        tried = train(
            problem, {"float32": _contender("float32")},
            [{"decay": decay, "unit": 1.0} for decay in DECAYS],
            {"float32": plan.rates}, keys_of(range(TUNING_SEEDS)), at,
            lambda step, values: on_step(step),
        )  # fmt: skip
    losses = tried.values["float32"][-1]  # [decays, rates, seeds]
    best = [best_rate(by_rate) for by_rate in losses]
    with show(f"{task.name}, nu in {', '.join(FORMS)}", plan.steps) as on_step:
        forms = {form: _contender(form) for form in FORMS}
        found = train(
            problem, forms,
            [
                {"decay": decay, "unit": plan.rates[i]}
                for i, decay in zip(best, DECAYS, strict=True)
            ],
            dict.fromkeys(forms, (1.0,)), keys_of(range(plan.seeds)), at,
            lambda step, values: on_step(step),
        )  # fmt: skip
    test = found.report({form: [0] * len(DECAYS) for form in FORMS})
    return {
        "title": f"{task.name}: {task.title}\n{found.parameters} parameters, "
        f"{plan.steps} steps of batch size {plan.batch_size}, {plan.seeds} seeds",
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "seeds": plan.seeds,
        "parameters": found.parameters,
        "by_decay": {
            str(decay): {
                "learning_rate": plan.rates[best[row]],
                "rates_tried": list(plan.rates),
                "validation_losses": losses[row].mean(axis=1),
                "rate_at_edge": best[row] in (0, len(plan.rates) - 1),
                "by_form": {
                    form: statistics.compared(
                        test[form]["test_loss"][row], test["float32"]["test_loss"][row]
                    )
                    for form in FORMS
                },
            }
            for row, decay in enumerate(DECAYS)
        },
    }


def finding(name: str, by_decay: Mapping[str, Any]) -> str:
    """Returns a sentence: where a form differs significantly from float32, if it does.

    Args:
      name: of the task.
      by_decay: its cells, with `p_holm`.
    """
    cells = [
        (decay, form, cell)
        for decay, row in by_decay.items()
        for form, cell in row["by_form"].items()
        if form != "float32"
    ]
    significant = [
        f"{form} at decay {decay} by {cell['difference_percent']:+.2f} % "
        f"(p = {cell['p_holm']:.3f})"
        for decay, form, cell in cells
        if cell["p_holm"] < statistics.LEVEL
    ]
    if significant:
        return f"{name}: test loss differs from float32's with {'; '.join(significant)}"
    bounds = [abs(end) for *_, cell in cells for end in cell["interval_percent"]]
    return (
        f"{name}: no significant difference to float32; "
        f"every interval lies within ± {max(bounds):.2f} %"
    )
