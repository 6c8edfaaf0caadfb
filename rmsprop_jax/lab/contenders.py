"""The optimizers that are compared, by the names that options and results have."""

from typing import Any

import optax

from .. import rmsprop
from .program import Contender

LABELS = {
    "rmsprop": "RMSProp",
    "sgd": "SGD",
    "sgd momentum": "SGD, momentum 0.9",
    "adagrad": "Adagrad",
    "adam": "Adam",
}


def rmsprop_with(**options: Any) -> Contender:
    """Returns RMSProp with options of its own."""
    return Contender(lambda rate, setting: rmsprop(rate, **options))


CONTENDERS: dict[str, Contender] = {
    "rmsprop": rmsprop_with(decay=0.9),
    "sgd": Contender(lambda rate, setting: optax.sgd(rate)),
    "sgd momentum": Contender(lambda rate, setting: optax.sgd(rate, momentum=0.9)),
    "adagrad": Contender(lambda rate, setting: optax.adagrad(rate)),
    "adam": Contender(lambda rate, setting: optax.adam(rate)),
}
