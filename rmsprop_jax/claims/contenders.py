"""The optimizers that are compared, and the grids of learning rates."""

from typing import Any

import numpy as np
import optax

from .. import rmsprop
from .program import Contender

SGD = ("sgd", "sgd momentum")
OURS, ADAGRAD, ADAM = "rmsprop", "adagrad", "adam"

CONTENDERS: dict[str, Contender] = {
    OURS: lambda rate, setting: rmsprop(rate, decay=0.9),
    "sgd": lambda rate, setting: optax.sgd(rate),
    "sgd momentum": lambda rate, setting: optax.sgd(rate, momentum=0.9),
    ADAGRAD: lambda rate, setting: optax.adagrad(rate),
    ADAM: lambda rate, setting: optax.adam(rate),
}


def clipped(make: Contender) -> Contender:
    """Returns an optimizer whose gradients have at most the norm setting["clip"]."""

    def with_clipping(rate: Any, setting: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(setting["clip"]), make(rate, setting)
        )

    return with_clipping


def grids(length: int, *lowest: float, decades: float = 0.5) -> dict[str, np.ndarray]:
    """Returns a logarithmic grid of rates for each optimizer.

    Args:
      length: of each grid.
      lowest: its first rate for each optimizer, in the order of `CONTENDERS`.
      decades: from one rate to the next.
    """
    steps = 10 ** (decades * np.arange(length))
    return {name: low * steps for name, low in zip(CONTENDERS, lowest, strict=True)}
