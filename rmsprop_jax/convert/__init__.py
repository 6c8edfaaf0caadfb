"""Optimizer state from and to other frameworks: a run goes on where it was.

`load` reads the state of a torch, timm, Stable-Baselines3, bitsandbytes, Keras, TF1 or
Optax run for a tree of parameters and returns it for the matching dialect, with the
hyperparameters; `resume` fills a model's optimizer with it. `save` and `export` go
back; `translate` goes from one dialect to another, and `migrate` from one
transformation of a run to another. `torch_to_flax` and `same` are rules for names and
layouts.

A run of torch goes on in a model of Flax NNX whose modules have torch's names::

    restored = convert.load("run.pt", model)
    optimizer = convert.resume(model, restored)

Where names differ, or a Linear reads a flattened image of (channels, height, width)::

    rule = convert.torch_to_flax({"conv": "features.0"}, {"fc/kernel": (4, 6, 6)})
    restored = convert.load("run.pt", model, weights=rule)
"""

from ._api import Restored as Restored
from ._api import export as export
from ._api import load as load
from ._api import save as save
from ._migrate import migrate as migrate
from ._names import same as same
from ._names import torch_to_flax as torch_to_flax
from ._origins import Place as Place
from ._record import Group as Group
from ._resume import resume as resume
from ._translate import translate as translate

__all__ = [
    "Group",
    "Place",
    "Restored",
    "export",
    "load",
    "migrate",
    "resume",
    "same",
    "save",
    "torch_to_flax",
    "translate",
]
