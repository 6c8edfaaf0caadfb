"""Which optimizers are compared with which, and the grids of learning rates."""

from typing import Any

import numpy as np
import optax

from ..lab.contenders import CONTENDERS as CONTENDERS
from ..lab.program import Contender

SGD = ("sgd", "sgd momentum")
OURS, ADAGRAD, ADAM = "rmsprop", "adagrad", "adam"


def clipped(inner: Contender) -> Contender:
    """Returns an optimizer whose gradients have at most the norm setting["clip"]."""

    def with_clipping(rate: Any, setting: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(setting["clip"]), inner.make(rate, setting)
        )

    return Contender(with_clipping)


def grids(length: int, *lowest: float, decades: float = 0.5) -> dict[str, np.ndarray]:
    """Returns a logarithmic grid of rates for each optimizer.

    Args:
      length: of each grid.
      lowest: its first rate for each optimizer, in the order of `CONTENDERS`.
      decades: from one rate to the next.
    """
    steps = 10 ** (decades * np.arange(length))
    return {name: low * steps for name, low in zip(CONTENDERS, lowest, strict=True)}
