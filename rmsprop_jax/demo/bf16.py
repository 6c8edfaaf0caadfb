"""The task `bf16`: what rounding to 16 bits costs, and what `round_params` does."""

import argparse
import dataclasses
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import rmsprop
from ..diagnostics import best_rate
from ..storage import sizes
from .master import with_master_weights
from .narrow import POINTS, Form, Net, training
from .progress import Observer
from .report import at_edge_of
from .tasks import digits

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The third is the best of the default command."""

WIDTHS = (64, 48, 10)
"""Of the layers: images of 8 × 8 pixels to 10 classes."""

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
        return at_edge_of(self.best(name), self.learning_rates)

    def differences(self, name: str) -> np.ndarray:
        """Returns test losses less those of master weights [seeds], in percent."""
        base = self.test_loss[MASTER]
        return 100 * (self.test_loss[name] - base) / base.mean()

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


def contenders(decay: float, eps: float) -> dict[str, Form]:
    """Returns RMSProp on bfloat16 parameters in every form, and on float32 ones."""
    ours = partial(rmsprop, decay=decay, eps=eps)
    return {
        "optax.rmsprop": Form(lambda rate, _: optax.rmsprop(rate, decay, eps)),
        "rmsprop_jax.rmsprop": Form(lambda rate, _: ours(rate)),
        "round_params='stochastic'": Form(
            lambda rate, _: ours(rate, round_params="stochastic")
        ),
        "round_params='remainder'": Form(
            lambda rate, _: ours(rate, round_params="remainder")
        ),
        "the same, nu_dtype='uint8'": Form(
            lambda rate, _: ours(rate, round_params="remainder", nu_dtype="uint8")
        ),
        MASTER: Form(lambda rate, _: with_master_weights(ours(rate))),
        "float32 throughout": Form(lambda rate, _: ours(rate), "float32"),
    }


def net() -> Net:
    """Returns a fully connected net."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(WIDTHS) - 1)
        pairs = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
        return [
            {"w": jnp.sqrt(2 / m) * jax.random.normal(k, (m, n)), "b": jnp.zeros(n)}
            for k, m, n in pairs
        ]

    def apply(layers: Any, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for layer in layers[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ layers[-1]["w"] + layers[-1]["b"]

    return Net(init, apply)


def measure(
    options: argparse.Namespace, steps: int, batch_size: int, observer: Observer
) -> Found:
    """Trains every contender at every rate and seed, in one program.

    Args:
      options: those of the command.
      steps: updates of a run where they have none.
      batch_size: likewise.
      observer: opens the display.
    """
    began = time.perf_counter()
    decay, seeds, rates = options.decay, options.seeds, options.lrs or RATES
    task, forms = digits(), contenders(decay, options.eps)
    steps, batch_size = options.steps or steps, options.batch_size or batch_size
    points = next(n for n in range(POINTS, 0, -1) if steps % n == 0)
    splits = {name: getattr(task, name) for name in ("train", "validation", "test")}
    run = training(net(), forms, splits, steps, batch_size, points)
    keys = jax.vmap(jax.random.key)(jnp.tile(jnp.arange(seeds), len(rates)))
    arguments = (jnp.repeat(jnp.asarray(rates), seeds), keys, jnp.float32(decay))
    with observer("bf16", steps) as on_progress:
        program = run.lower(*arguments).compile()
        compiled = time.perf_counter()
        found = jax.tree.map(np.asarray, program(*arguments))
        losses = {
            name: found["validation_loss"][:, i].reshape(-1, len(rates), seeds)
            for i, name in enumerate(forms)
        }
        on_progress(steps, losses[MASTER][-1])
    at_best = {
        name: {
            key: found[key][i].reshape(len(rates), seeds)[best_rate(losses[name][-1])]
            for key in ("test_loss", "test_accuracy")
        }
        for i, name in enumerate(forms)
    }
    shapes = jax.eval_shape(net().init, keys[0])
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return Found(
        learning_rates=np.asarray(rates, float), steps=steps, batch_size=batch_size,
        decay=decay, parameters=count, validation_loss=losses,
        test_loss={name: at["test_loss"] for name, at in at_best.items()},
        test_accuracy={name: at["test_accuracy"] for name, at in at_best.items()},
        bytes_per_parameter={
            name: _bytes(form, shapes) / count for name, form in forms.items()
        },
        seconds=time.perf_counter() - began, compile_seconds=compiled - began,
    )  # fmt: skip


def _bytes(form: Form, shapes: Any) -> int:
    """Returns what parameters and optimizer take, but for its scalars."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, form.dtype), shapes)
    state = jax.eval_shape(form.make(1e-3, None).init, params)
    arrays = [x for x in jax.tree.leaves((params, state)) if x.ndim]
    return sum(sizes(arrays).values())
