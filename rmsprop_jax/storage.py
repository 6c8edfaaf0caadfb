"""What an accumulator is stored in: its codes read and written, its bytes counted.

`nu`, which is never negative, may be a code: the top bits of its float32 pattern, an
unsigned float without a sign bit. In uint16 it has float32's whole range and 8 bits of
mantissa (bfloat16 has 7), in uint8 64 octaves and 2 bits.
"""

from typing import Any

import jax
import jax.numpy as jnp

from . import _checks
from ._codes import decode as decode
from ._codes import encode as encode
from ._format import uint8 as uint8
from ._store import nearest as nearest

__all__ = ["decode", "encode", "nearest", "sizes", "uint8"]


def sizes(state: Any) -> dict[str, int]:
    """Returns the bytes of every array of an optimizer's state, by its path.

    Args:
      state: any tree of arrays or of `jax.ShapeDtypeStruct`s (`jax.eval_shape` of an
        `init` needs no memory).

    Returns:
      A dictionary; the sum of its values is what the optimizer costs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rmsprop_jax import rmsprop, storage
      >>> tx = rmsprop(0.1, nu_dtype="uint8")
      >>> storage.sizes(jax.eval_shape(tx.init, {"w": jnp.ones((10, 10))}))
      {'[0].count': 4, "[0].nu['w']": 100, '[0].lowest': 4}
    """
    _checks.arrays("state", state)
    return {
        jax.tree_util.keystr(path): leaf.size * jnp.dtype(leaf.dtype).itemsize
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
