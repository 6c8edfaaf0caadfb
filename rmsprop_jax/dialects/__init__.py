"""Every framework's RMSProp, under its own argument names, order and defaults.

A dialect takes the call that you have in another framework and returns the Optax
transformation that takes the same steps. Each is a specialisation of
`rmsprop_jax.rmsprop`, and takes its `skip_nonfinite`, `nu_dtype`, `mu_dtype`,
`accumulator_dtype`, `seed`, `round_params` and `weight_decay_mask` by keyword too. A
learning rate may be an Optax schedule everywhere. The dtypes of state and arithmetic
are ours (float32 or wider), and complex parameters use |g|², where torch takes their
parts one by one.

Where a framework divides by zero, as for a gradient of zero with ε = 0, the update is 0
and not NaN. Centred with a decay of 0 there is no variance: frameworks divide by ε
alone or by rounding errors then, and a dialect takes g² for it. In JAX's 64-bit mode
learning rates are float64; those of Keras have its `floatx`, so float32 by default.

| dialect | v₀ | ε | decay | learning rate | momentum | centred | weight decay |
| --- | --- | --- | --- | --- | --- | --- | --- |
| `torch` | 0 | 1e-08, outside | 0.99 | 0.01 | of directions | on request | coupled |
| `timm` | 1 | 1e-10, in the root | 0.9 | 0.01 | of steps | on request | coupled, decoupled on request |
| `sb3` | 1 | 1e-08, in the root | 0.99 | 0.01 | of directions | on request | coupled |
| `bitsandbytes` | 0 | 1e-08, outside | 0.99 | 0.01 | none | no | coupled |
| `mlx` | 0 | 1e-08, outside | 0.99 | required | none | no | none |
| `tf1` | 1 | 1e-10, in the root | 0.9 | required | of steps | on request | none |
| `keras` | 0 | 1e-07, in the root | 0.9 | 0.001 | of steps | on request | decoupled |
| `tf_keras` | 0 | 1e-07, outside, with momentum in the root | 0.9 | 0.001 | of steps | on request | none |
| `paddle` | 0 | 1e-06, in the root | 0.95 | required | of steps | on request | coupled |
| `optax` | 0 | 1e-08, in the root | 0.9 | required | of steps | on request | none |
| `jax_example` | 0 | 1e-08, in the root | 0.9 | required | of steps | no | none |
| `hinton` | 0 | 0, in the root | 0.9 | 0.001 | none | no | none |
| `graves` | 0 | 0.0001, in the root | 0.95 | 0.0001 | of steps, 0.9 | always | none |
| `nature_dqn` | 0 | 0.01, in the root | 0.95 | 0.00025 | none | always | none |
| `impala` | 1 | 0.1, in the root | 0.99 | 0.00048 | of steps | no | none |
"""  # noqa: E501

from ._jax import jax_example as jax_example
from ._jax import optax as optax
from ._keras import keras as keras
from ._keras import tf_keras as tf_keras
from ._papers import graves as graves
from ._papers import hinton as hinton
from ._papers import impala as impala
from ._papers import nature_dqn as nature_dqn
from ._table import table_of
from ._tensorflow import paddle as paddle
from ._tensorflow import tf1 as tf1
from ._timm import timm as timm
from ._torch import bitsandbytes as bitsandbytes
from ._torch import mlx as mlx
from ._torch import sb3 as sb3
from ._torch import torch as torch

__all__ = [
    "DIALECTS",
    "bitsandbytes",
    "graves",
    "hinton",
    "impala",
    "jax_example",
    "keras",
    "mlx",
    "nature_dqn",
    "optax",
    "paddle",
    "sb3",
    "table",
    "tf1",
    "tf_keras",
    "timm",
    "torch",
]

DIALECTS = {
    dialect.__name__: dialect
    for dialect in (
        torch, timm, sb3, bitsandbytes, mlx, tf1, keras, tf_keras, paddle, optax,
        jax_example, hinton, graves, nature_dqn, impala,
    )
}  # fmt: skip
"""The dialects by name."""


def table() -> str:
    """Returns what each dialect does, as a table in Markdown, read off the dialects.

    Example:
      >>> from rmsprop_jax import dialects
      >>> print(dialects.table().splitlines()[0])
      | dialect | v₀ | ε | decay | learning rate | momentum | centred | weight decay |
    """
    return table_of(DIALECTS.values())
