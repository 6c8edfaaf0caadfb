"""The optimizers of the demo, and the learning rates that it tries."""

from collections.abc import Mapping
from typing import Any

from ..lab.contenders import CONTENDERS, LABELS, rmsprop_with
from ..lab.program import Contender

NAMES = tuple(name for name in LABELS if name != "sgd momentum")

# By task and optimizer; the middle is the best rate of the default command.
GRIDS = {
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

_OPTIONS = ("decay", "eps", "momentum", "centered", "nu_dtype")


def contenders(options: Mapping[str, Any]) -> dict[str, Contender]:
    """Returns every optimizer by name; the options are RMSProp's."""
    ours = rmsprop_with(**{name: options[name] for name in _OPTIONS if name in options})
    return {name: CONTENDERS[name] for name in NAMES} | {"rmsprop": ours}
