"""Small nets: of Flax NNX modules, and layers that compute in any dtype."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

# Uniform, because a (truncated) normal needs the inverse error function, which takes
# XLA seconds to compile for a CPU.
_KERNELS = nnx.initializers.lecun_uniform()


class Net(NamedTuple):
    """A net as functions; it computes in the dtype of its parameters.

    Attributes:
      init: from a key to float32 parameters.
      apply: from parameters and inputs [batch, ...] to logits [batch, ..., classes].
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def of_module(make: Callable[..., nnx.Module]) -> Net:
    """Returns the net of an NNX module whose state is `nnx.Param` alone.

    Args:
      make: makes the module, from ``rngs=``.
    """
    graphdef = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]

    def init(key: jax.Array) -> Any:
        return nnx.split(make(rngs=nnx.Rngs(params=key)))[1]

    return Net(init, lambda params, x: cast(Any, nnx.merge(graphdef, params))(x))


def matrix(key: jax.Array, rows: int, columns: int, gain: float = 2.0) -> jax.Array:
    """Returns normal weights that keep the scale of what comes in, before a ReLU."""
    return jnp.sqrt(gain / rows) * jax.random.normal(key, (rows, columns))


def layers(key: jax.Array, *widths: int) -> Any:
    """Returns parameters of dense layers between these widths."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"w": matrix(k, m, n), "b": jnp.zeros(n)}
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def dense(layer: Any, x: jax.Array) -> jax.Array:
    """Returns the outputs of a layer."""
    return x @ layer["w"] + layer["b"]


def mlp(*widths: int) -> Net:
    """Returns a fully connected net with a ReLU after every layer but the last."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for layer in params[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(params[-1], x)

    return Net(lambda key: layers(key, *widths), apply)


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


class Block(nnx.Module):
    """Causal self-attention and two layers with a ReLU, each on what is normalised."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.Linear, use_bias=False, kernel_init=_KERNELS, rngs=rngs)
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.project, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 2 * width), linear(2 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what replaces x [batch, time, width]."""
        batch, time, width = x.shape
        projected = self.project(self.norm1(x))
        split = projected.reshape(batch, time, 3, self.heads, width // self.heads)
        query, key, value = (split[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class CharacterTransformer(nnx.Module):
    """An embedding, two blocks and a linear layer: characters to the next ones."""

    def __init__(
        self, vocabulary: int, time: int, width: int = 64, *, rngs: nnx.Rngs
    ) -> None:
        self.vocabulary = vocabulary
        linear = partial(nnx.Linear, kernel_init=_KERNELS, rngs=rngs)
        self.embed = linear(vocabulary, width, use_bias=False)
        self.place = linear(time, width, use_bias=False)
        self.blocks = nnx.List([Block(width, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.linear = linear(width, vocabulary)

    def __call__(self, characters: jax.Array) -> jax.Array:
        """Returns logits [batch, time, vocabulary] of characters [batch, time]."""
        x = self.embed(jax.nn.one_hot(characters, self.vocabulary))
        x = x + self.place.kernel[...]
        for block in self.blocks:
            x = block(x)
        return self.linear(self.norm(x))


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
