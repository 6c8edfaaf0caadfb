"""The test loss with each dtype of nu, paired by seed with that of float32."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import RmsState, rmsprop
from ..demo import program, tasks
from ..demo.train import best_rate
from . import statistics
from .progress import Show, silent
from .transformer import transformer

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
    "transformer": Plan(transformer, 100, 16, (3e-4, 1e-3, 3e-3, 1e-2)),
}


def measure(quick: bool, seeds: int | None, show: Show = silent) -> dict[str, Any]:
    """Returns the settings and, by task and decay, what was measured.

    Args:
      quick: a few steps, two rates and three seeds.
      seeds: how many pairs of runs, if not each task's own number.
      show: what a person sees.
    """
    found = {}
    for name, plan in PLANS.items():
        if quick:
            plan = dataclasses.replace(plan, steps=4, rates=plan.rates[1:3], seeds=3)
        if seeds is not None:
            plan = dataclasses.replace(plan, seeds=seeds)
        found[name] = _task(plan, show)
    cells = [
        form
        for task in found.values()
        for cell in task["by_decay"].values()
        for name, form in cell["by_form"].items()
        if name != "float32"
    ]
    for form, p in zip(cells, statistics.holm([c["p"] for c in cells]), strict=True):
        form["p_holm"] = p
    for name, task in found.items():
        task["finding"] = statistics.finding(name, task["by_decay"])
    return {
        "settings": {
            "tuning_seeds": TUNING_SEEDS,
            "comparisons": len(cells),
        },
        "tasks": found,
    }


def _task(plan: Plan, show: Show) -> dict[str, Any]:
    task = plan.load()
    grid = [(rate, decay) for decay in DECAYS for rate in plan.rates]
    with show(f"{task.name}, learning rates", plan.steps) as on_step:
        losses, _ = train(
            task, "float32", grid, TUNING_SEEDS, plan, task.validation, on_step
        )
    by_decay = losses.reshape(len(DECAYS), len(plan.rates), TUNING_SEEDS)
    best = [best_rate(losses) for losses in by_decay]
    rows = [(plan.rates[i], decay) for i, decay in zip(best, DECAYS, strict=True)]
    test, parameters = {}, 0
    for form in FORMS:
        with show(f"{task.name}, nu in {form}", plan.steps) as on_step:
            test[form], parameters = train(
                task, form, rows, plan.seeds, plan, task.test, on_step
            )
    return {
        "title": f"{task.name}: {task.title}\n{parameters} parameters, {plan.steps} "
        f"steps of batch size {plan.batch_size}, {plan.seeds} seeds",
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "seeds": plan.seeds,
        "parameters": parameters,
        "by_decay": {
            str(decay): {
                "learning_rate": rows[row][0],
                "rates_tried": list(plan.rates),
                "validation_losses": by_decay[row].mean(axis=1),
                "rate_at_edge": best[row] in (0, len(plan.rates) - 1),
                "by_form": {
                    form: statistics.compared(losses[row], test["float32"][row])
                    for form, losses in test.items()
                },
            }
            for row, decay in enumerate(DECAYS)
        },
    }


def train(
    task: tasks.Task,
    form: str,
    rows: Sequence[tuple[float, float]],
    seeds: int,
    plan: Plan,
    split: tasks.Split,
    on_step: Callable[[int], None],
) -> tuple[np.ndarray, int]:
    """Returns the final loss [rows, seeds] on a split, and the number of parameters.

    Args:
      task: what to learn.
      form: the dtype of nu.
      rows: (learning rate, decay) of each row.
      seeds: initial parameters and batches, the same for every row and form. What is
        random in rounding differs too.
      plan: for steps and batch size.
      split: the examples to evaluate on.
      on_step: told how many steps are done.
    """

    def make(row: jax.Array) -> optax.GradientTransformation:
        return rmsprop(row[0], decay=row[1], nu_dtype=form)

    options = jnp.asarray(rows, jnp.float32)
    graphdef, (parameters, moments) = program.start(task, make, options, seeds)
    moments = _with_rounding_of_its_own(moments, seeds)
    batches = program.batches(
        len(task.train.inputs), plan.batch_size, plan.steps, seeds
    )
    state = parameters, moments
    advance = program.compile_training(
        graphdef, make, options, batches, task.train, state
    )
    done = 0
    for last in np.unique(np.linspace(0, plan.steps, 9).round().astype(int))[1:]:
        state = jax.block_until_ready(advance(state, done, int(last)))
        done = int(last)
        on_step(done)
    losses, _ = program.evaluate(graphdef, state[0], split)
    sizes = (leaf.size for leaf in jax.tree.leaves(state[0]))
    return losses, sum(sizes) // losses.size


def _with_rounding_of_its_own(moments: Any, seeds: int) -> Any:
    """Starts each seed's count of updates elsewhere: the count seeds the rounding.

    Nothing else depends on it, since rate and decay are constant. With the same random
    numbers in all runs, their errors would not be independent.
    """

    def moved(node: Any) -> Any:
        if not isinstance(node, RmsState):
            return node
        return node._replace(count=node.count + 2**16 * jnp.arange(seeds))

    return jax.tree.map(moved, moments, is_leaf=lambda node: isinstance(node, RmsState))
