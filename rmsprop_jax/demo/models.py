"""The Flax NNX models of the demo."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

# Uniform, because a (truncated) normal needs the inverse error function, which takes
# XLA seconds to compile for a CPU.
_KERNELS = nnx.initializers.lecun_uniform()


class DigitsNet(nnx.Module):
    """Two 3×3 convolutions and a linear layer: 8×8 images to 10 classes."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        init: dict[str, Any] = {"kernel_init": _KERNELS, "rngs": rngs}
        conv = partial(nnx.Conv, conv_general_dilated=patch_convolution, **init)
        self.conv1 = conv(1, 8, (3, 3))
        self.conv2 = conv(8, 16, (3, 3), strides=2)
        self.linear = nnx.Linear(4 * 4 * 16, 10, **init)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits [batch, 10] of images [batch, 8, 8, 1]."""
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.linear(x.reshape(x.shape[0], -1))


class CharacterGRU(nnx.Module):
    """An embedding, one GRU and a linear layer: characters to the next ones."""

    def __init__(self, vocabulary: int, hidden: int = 32, *, rngs: nnx.Rngs) -> None:
        self.vocabulary, self.hidden = vocabulary, hidden
        init: dict[str, Any] = {"kernel_init": _KERNELS, "rngs": rngs}
        self.embed = nnx.Linear(vocabulary, 16, use_bias=False, **init)
        cell = nnx.GRUCell(16, hidden, recurrent_kernel_init=_KERNELS, **init)
        self.rnn = nnx.RNN(cell, rngs=False)
        self.linear = nnx.Linear(hidden, vocabulary, **init)

    def __call__(self, characters: jax.Array) -> jax.Array:
        """Returns logits [batch, time, vocabulary] of characters [batch, time]."""
        # A product with one-hot rows: the gradient of a lookup is a scatter, which is
        # slow on a CPU.
        x = self.embed(jax.nn.one_hot(characters, self.vocabulary))
        start = jnp.zeros((characters.shape[0], self.hidden))
        hidden = cast(jax.Array, self.rnn(x, initial_carry=start))
        return self.linear(hidden)


def patch_convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str,
    **unused: Any,
) -> jax.Array:
    """Returns the 2-d convolution with "SAME" padding as one matrix product.

    Under `vmap` over kernels, `jax.lax.conv_general_dilated` becomes a grouped
    convolution, for which XLA's code for CPUs is several times slower than this.

    Args:
      inputs: [batch, height, width, channels].
      kernel: [height, width, channels, features].
      strides: one step for each of the two dimensions.
      padding: "SAME".
      unused: what else `nnx.Conv` passes: dilations of 1, one group.
    """
    del unused
    if padding != "SAME":
        raise ValueError(f"padding must be 'SAME', got {padding!r}.")
    rows, columns, channels, features = kernel.shape
    sizes = [-(-n // s) for n, s in zip(inputs.shape[1:3], strides, strict=True)]
    needed = [
        max((size - 1) * stride + k - n, 0)
        for size, stride, k, n in zip(
            sizes, strides, (rows, columns), inputs.shape[1:3], strict=True
        )
    ]
    margins = [(n // 2, n - n // 2) for n in needed]
    padded = jnp.pad(inputs, [(0, 0), *margins, (0, 0)])
    (height, width), (down, right) = sizes, strides
    shifted = [
        padded[:, i : i + height * down : down, j : j + width * right : right][
            :, :height, :width
        ]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(rows * columns * channels, features)
