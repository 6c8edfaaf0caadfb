"""Shardings of an optimizer's state, and ZeRO: every device keeps a part of the state.

Two ways lead past one device. Under `jax.jit`, arrays have shardings and XLA inserts
what moves between devices: `state_sharding` says how the state of any Optax
transformation follows the parameters, and `init` makes it there. Inside
`jax.shard_map`, a program is written for one device: there `zero` sums gradients where
their part of the state is, and gathers the updates.
"""

from ._follow import init as init
from ._follow import left_whole as left_whole
from ._follow import specs as specs
from ._follow import state_sharding as state_sharding
from ._zero import clip_by_global_norm as clip_by_global_norm
from ._zero import zero as zero
from ._zero_state import zero_state as zero_state

__all__ = [
    "clip_by_global_norm",
    "init",
    "left_whole",
    "specs",
    "state_sharding",
    "zero",
    "zero_state",
]
