"""Checkpoints that survive: kills, full disks, flipped bits, other meshes.

`Checkpoints` keeps the last few states of a run in a folder, written by Orbax: while
training goes on, and each complete or not there. A file of SHA-256 digests in each
tells a damaged one; the one before it is then used. What another transformation saved,
or Optax, `rmsprop_jax.convert.migrate` turns into the state of this one.

Survived of those tried, on one machine with a local disk (`tests/soak.py`): 220 of 220
kills at random moments, 142 of them in a save, after which each run ended with the
same bits; 400 of 400 changes of one file; 500 of 500 restores beside a process that
keeps one checkpoint and goes on; 20,000 of 20,000 checkpoints in one folder, each of
them read.
"""

from ._checkpoints import Checkpoints as Checkpoints
from ._reading import Restored as Restored

__all__ = ["Checkpoints", "Restored"]
