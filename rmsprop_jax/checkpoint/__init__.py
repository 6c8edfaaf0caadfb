"""Checkpoints that survive: kills, full disks, flipped bits, other meshes.

`Checkpoints` keeps the last few states of a run in a folder, written by Orbax: while
training goes on, and each complete or not there. A file of SHA-256 digests in each
tells a damaged one; the one before it is then used. What another transformation saved,
or Optax, `rmsprop_jax.convert.migrate` turns into the state of this one.
"""

from ._checkpoints import Checkpoints as Checkpoints
from ._reading import Restored as Restored
