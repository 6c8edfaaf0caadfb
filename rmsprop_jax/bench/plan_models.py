"""What is planned: language models of four sizes, and what their bytes come to."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import rmsprop, storage
from .peers import DECAY, RATE


class Model(NamedTuple):
    """The dimensions of a decoder; no biases, embedding and head are two matrices."""

    layers: int
    width: int
    hidden: int  # of the feed-forward layer
    key_value: int  # width of all keys, and of all values
    vocabulary: int
    gated: bool  # three feed-forward matrices rather than two
    source: str


MODELS = {
    "7B": Model(32, 4096, 11_008, 4096, 32_000, True, "Llama 2 7B"),
    "70B": Model(80, 8192, 28_672, 1024, 32_000, True, "Llama 2 70B"),
    "400B": Model(126, 16_384, 53_248, 1024, 128_256, True, "Llama 3.1 405B"),
    "1T": Model(128, 25_600, 102_400, 25_600, 51_200, False, "Megatron-LM 1T"),
}

TOY = {"toy": Model(2, 1024, 4096, 1024, 1024, True, "made up")}

DTYPES = ("bfloat16", "float32")
"""Of parameters and gradients."""

LAYOUTS = {
    "replicated": "all on every chip, gradients all-reduced",
    "ZeRO": "state split by `zero`, gradients reduce-scattered, updates all-gathered",
    "fully sharded": "parameters, gradients and state split over all chips",
}

WHOLES = {"replicated": 2, "ZeRO": 2, "fully sharded": 3}
"""How often as many bytes as all parameters have cross a chip's wires in a step, but
for 1 / chips: an all-reduce is a reduce-scatter and an all-gather. Fully sharded,
parameters are gathered forwards and again backwards, and gradients reduce-scattered."""


def shapes(model: Model, dtype: Any) -> dict[str, Any]:
    """Returns abstract parameters; those of all layers are stacked, as for a scan."""
    width, hidden, key_value = model.width, model.hidden, model.key_value
    layers = {
        "query": (width, width), "key": (width, key_value), "value": (width, key_value),
        "out": (width, width), "up": (width, hidden), "down": (hidden, width),
        "norm_attention": (width,), "norm_mlp": (width,),
    }  # fmt: skip
    if model.gated:
        layers["gate"] = (width, hidden)
    tree = {
        "embedding": (model.vocabulary, width), "norm": (width,),
        "head": (width, model.vocabulary),
        "layers": {name: (model.layers, *shape) for name, shape in layers.items()},
    }  # fmt: skip
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `tx` with state and arithmetic in float32; Optax's follow parameters."""

    def init(params: Any) -> Any:
        return tx.init(optax.tree.cast(params, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        wide = optax.tree.cast(updates, jnp.float32)
        found, state = tx.update(wide, state, params)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), found, updates), state

    return optax.GradientTransformation(init, update)


OPTIMIZERS = {
    "Adam, float32": in_float32(optax.adam(RATE)),
    "ours, float32": rmsprop(RATE, DECAY),
    "ours, one byte": rmsprop(RATE, DECAY, nu_dtype="uint8"),
}


def arithmetic(
    params: Any, tx: optax.GradientTransformation, layout: str, chips: int
) -> dict[str, int]:
    """Returns the bytes of a chip, and on its wires, by what they should be."""
    whole = sum(storage.sizes(params).values())
    state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    held = whole / chips if layout == "fully sharded" else whole
    scalars = sum(x.dtype.itemsize for x in state if not x.ndim)
    arrays = sum(math.prod(x.shape) * x.dtype.itemsize for x in state if x.ndim)
    return {
        "parameters": round(held),
        "gradients": round(held),
        "state": round(arrays if layout == "replicated" else arrays / chips) + scalars,
        "wire": round(WHOLES[layout] * (chips - 1) / chips * whole),
    }
