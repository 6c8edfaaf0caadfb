"""The task `bf16`: what rounding to 16 bits costs, and what `round_params` does."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from .. import rmsprop
from ..diagnostics import best_rate
from ..lab.master import with_master_weights
from ..lab.models import mlp
from ..lab.program import Contender, cosine
from ..lab.progress import Show
from ..lab.statistics import differences
from ..lab.tasks import Task, digits, learning
from ..lab.training import keys_of, train
from ..storage import sizes
from .sweeps import note

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The third is the best of the default command."""

WIDTHS = (64, 48, 10)
"""Of the layers: images of 8 × 8 pixels to 10 classes."""

POINTS = 5
"""Points of a curve, besides the one before training."""

MASTER = "float32 master weights"


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured; a seed has the same batches and start for all contenders.

    Attributes:
      learning_rates: [rates], ascending.
      steps: updates of a run.
      batch_size: examples of one.
      decay: that of RMSProp.
      parameters: how many the net has.
      validation_loss: by contender [points, rates, seeds]; the first before training.
      test_loss: by contender [seeds], at its best rate.
      test_accuracy: likewise.
      bytes_per_parameter: by contender, of parameters and optimizer.
      seconds: by wall time, of which `compile_seconds` until the first step.
      compile_seconds: likewise.
    """

    learning_rates: np.ndarray
    steps: int
    batch_size: int
    decay: float
    parameters: int
    validation_loss: dict[str, np.ndarray]
    test_loss: dict[str, np.ndarray]
    test_accuracy: dict[str, np.ndarray]
    bytes_per_parameter: dict[str, float]
    seconds: float
    compile_seconds: float

    def best(self, name: str) -> int:
        """Returns the index of the rate with the lowest mean validation loss."""
        return best_rate(self.validation_loss[name][-1])

    def is_at_edge(self, name: str) -> bool:
        """Whether that is the first or the last rate."""
        return self.best(name) in (0, len(self.learning_rates) - 1)

    def differences(self, name: str) -> np.ndarray:
        """Returns test losses less those of master weights [seeds], in percent."""
        return differences(self.test_loss[name], self.test_loss[MASTER])

    @property
    def title(self) -> str:
        """The task, its net and its training in words."""
        seeds = len(self.test_loss[MASTER])
        return (
            "bf16: fully connected net on handwritten digits, passes in bfloat16\n"
            f"{self.parameters} parameters, {self.steps} "
            f"step{'s' * (self.steps > 1)} of batch size {self.batch_size}, "
            f"decay {self.decay:g}, {seeds} seed{'s' * (seeds > 1)}"
        )


def contenders(decay: float, eps: float) -> dict[str, Contender]:
    """Returns RMSProp on bfloat16 parameters in every form, and on float32 ones."""
    ours = partial(rmsprop, decay=decay, eps=eps)
    narrow = partial(Contender, dtype="bfloat16")
    return {
        "optax.rmsprop": narrow(lambda rate, _: optax.rmsprop(rate, decay, eps)),
        "rmsprop_jax.rmsprop": narrow(lambda rate, _: ours(rate)),
        "round_params='stochastic'": narrow(
            lambda rate, _: ours(rate, round_params="stochastic")
        ),
        "round_params='remainder'": narrow(
            lambda rate, _: ours(rate, round_params="remainder")
        ),
        "the same, nu_dtype='uint8'": narrow(
            lambda rate, _: ours(rate, round_params="remainder", nu_dtype="uint8")
        ),
        MASTER: narrow(lambda rate, _: with_master_weights(ours(rate))),
        "float32 throughout": Contender(lambda rate, _: ours(rate)),
    }


def task() -> Task:
    """Returns the digits with a fully connected net."""
    return dataclasses.replace(digits(), net=mlp(*WIDTHS))


def measure(
    options: Mapping[str, Any], steps: int, batch_size: int, show: Show
) -> Found:
    """Trains every contender at every rate and seed, in one program.

    Args:
      options: those of the command.
      steps: updates of a run where they have none.
      batch_size: likewise.
      show: opens the display.
    """
    decay, rates = options["decay"], options["lrs"] or RATES
    steps, batch_size = options["steps"] or steps, options["batch_size"] or batch_size
    problem = learning(
        task(), steps, batch_size, epochs=False, dtype="bfloat16", schedule=cosine
    )
    forms = contenders(decay, options["eps"])
    number = next(n for n in range(POINTS, 0, -1) if steps % n == 0)
    with show("bf16", steps) as on_step:
        found = train(
            problem, forms, [0.0], dict.fromkeys(forms, rates),
            keys_of(range(options["seeds"])), np.arange(number + 1) * (steps // number),
            lambda step, values: on_step(step, note({MASTER: values[MASTER]})),
        )  # fmt: skip
        losses = {name: values[:, 0] for name, values in found.values.items()}
        tested = found.report(
            {name: [best_rate(curve[-1])] for name, curve in losses.items()}
        )
    return Found(
        learning_rates=np.asarray(rates, float), steps=steps, batch_size=batch_size,
        decay=decay, parameters=found.parameters, validation_loss=losses,
        test_loss={name: of["test_loss"][0] for name, of in tested.items()},
        test_accuracy={name: of["test_accuracy"][0] for name, of in tested.items()},
        bytes_per_parameter={
            name: _bytes(form) / found.parameters for name, form in forms.items()
        },
        seconds=found.compile_seconds + found.seconds,
        compile_seconds=found.compile_seconds,
    )  # fmt: skip


def _bytes(form: Contender) -> int:
    """Returns what parameters and optimizer take, but for its scalars."""
    shapes = jax.eval_shape(task().net.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, form.dtype), shapes)
    state = jax.eval_shape(form.make(1e-3, None).init, params)
    arrays = [x for x in jax.tree.leaves((params, state)) if x.ndim]
    return sum(sizes(arrays).values())
