"""A third task beside the demo's: its text, learnt by a small transformer."""

import dataclasses
from functools import partial

import jax
from flax import nnx

from ..demo import tasks

_KERNELS = nnx.initializers.lecun_uniform()


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


def transformer() -> tasks.Task:
    """Returns the demo's text with a transformer for the GRU, and fewer tests."""
    text = tasks.text()
    return dataclasses.replace(
        text,
        name="transformer",
        title=text.title.replace("GRU", "transformer"),
        test=tasks.Split(text.test.inputs[:512], text.test.targets[:512]),
        make_model=lambda rngs: CharacterTransformer(
            tasks.VOCABULARY, tasks.WINDOW, rngs=rngs
        ),
    )
