"""The optimizers that the demo compares, and the learning rates it tries."""

from collections.abc import Callable

import jax
import optax

from rmsprop_jax import rmsprop

MakeOptimizer = Callable[[jax.Array], optax.GradientTransformation]
"""An optimizer from its learning rate, which may be traced."""

LABELS = {"rmsprop": "RMSProp", "sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam"}

# By task and optimizer; the middle is the best rate of the default command.
_GRIDS = {
    "digits": {
        "rmsprop": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "sgd": (3e-2, 1e-1, 3e-1, 1.0, 3.0),
        "adagrad": (3e-2, 1e-1, 3e-1, 1.0, 3.0),
        "adam": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    },
    "text": {
        "rmsprop": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        "sgd": (3e-1, 1.0, 3.0, 1e1, 3e1),
        "adagrad": (1e-1, 3e-1, 1.0, 3.0, 1e1),
        "adam": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    },
}


def default_learning_rates(task: str, optimizer: str) -> tuple[float, ...]:
    """Returns the grid of learning rates for a task and an optimizer, ascending."""
    return _GRIDS[task][optimizer]


def make_optimizers(
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float | None = None,
    centered: bool = False,
    nu_dtype: str | None = None,
) -> dict[str, MakeOptimizer]:
    """Returns every optimizer by name; the arguments are RMSProp's."""

    def make_rmsprop(
        learning_rate: jax.Array,
    ) -> optax.GradientTransformation:
        return rmsprop(
            learning_rate,
            decay=decay,
            eps=eps,
            momentum=momentum,
            centered=centered,
            nu_dtype=nu_dtype,
        )

    return {
        "rmsprop": make_rmsprop,
        "sgd": optax.sgd,
        "adagrad": optax.adagrad,
        "adam": optax.adam,
    }
