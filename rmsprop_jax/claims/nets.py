"""Four small nets for signals of 40 numbers, and MNIST-1D, the signals.

The nets compute in the dtype of their parameters.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..lab.models import Net, dense, layers, matrix, mlp
from ..lab.tasks import Split, Task

CLASSES = 10
LENGTH = 40
"""Numbers of a signal."""

TRAIN, VALIDATION, TEST = 16_000, 1_000, 4_000


@cache
def signals() -> Task:
    """Returns MNIST-1D with the first net: computed by its package, more examples.

    References:
      Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, 2020
      (https://arxiv.org/abs/2011.14439).
    """
    from mnist1d import data  # pyright: ignore[reportMissingImports]

    options: Any = data.get_dataset_args()
    options.num_samples = TRAIN + VALIDATION + TEST
    options.train_split = 1.0
    # The package seeds NumPy's global generator.
    state = np.random.get_state()  # noqa: NPY002
    try:
        made = data.make_dataset(options)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ends = np.cumsum([TRAIN, VALIDATION, TEST])
    train, validation, test = (
        Split(
            made["x"][end - size : end].astype(np.float32),
            made["y"][end - size : end].astype(np.int32),
        )
        for size, end in zip((TRAIN, VALIDATION, TEST), ends, strict=True)
    )
    return Task("signals", "MNIST-1D", "signal", train, validation, test, NETS["MLP"])


def _cnn(channels: int) -> Net:
    """Three convolutions of size 5 and stride 2."""
    size = 5

    def init(key: jax.Array) -> Any:
        first, *others, last = jax.random.split(key, 4)
        convolutions = [
            layers(k, size * n, channels)[0]
            for k, n in zip([first, *others], (1, channels, channels), strict=True)
        ]
        return [*convolutions, *layers(last, LENGTH // 8 * channels, CLASSES)]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for layer in params[:-1]:
            x = jnp.pad(x, ((0, 0), (2, 2), (0, 0)))
            ends = x.shape[1] - size + 1
            # As products of matrices: mapped convolutions are slow on CPUs.
            patches = [x[:, i : i + ends : 2] for i in range(size)]
            x = jax.nn.relu(dense(layer, jnp.concatenate(patches, axis=-1)))
        return dense(params[-1], x.reshape(x.shape[0], -1))

    return Net(init, apply)


def _gru(hidden: int, features: int) -> Net:
    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "in": {"w": matrix(keys[0], features, 3 * hidden, 1.0),
                   "b": jnp.zeros(3 * hidden)},
            "state": matrix(keys[1], hidden, 3 * hidden, 1.0),
            "out": layers(keys[2], hidden, CLASSES)[0],
        }  # fmt: skip

    def apply(params: Any, x: jax.Array) -> jax.Array:
        steps = x.reshape(x.shape[0], -1, features).swapaxes(0, 1)

        def step(h: jax.Array, given: jax.Array) -> Any:
            reset, update, new = jnp.split(given, 3, axis=-1)
            r, z, n = jnp.split(h @ params["state"], 3, axis=-1)
            z = jax.nn.sigmoid(update + z)
            n = jnp.tanh(new + jax.nn.sigmoid(reset + r) * n)
            return z * h + (1 - z) * n, None

        start = jnp.zeros((x.shape[0], hidden), x.dtype)
        last, _ = jax.lax.scan(step, start, dense(params["in"], steps))
        return dense(params["out"], last)

    return Net(init, apply)


def _transformer(width: int, heads: int, patch: int) -> Net:
    """One block, normalised before each part, on tokens of a few numbers."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 6)
        return {
            "embed": layers(keys[0], patch, width)[0],
            "places": 0.5 * jax.random.normal(keys[1], (LENGTH // patch, width)),
            "scales": jnp.ones((3, width)),
            "attention": matrix(keys[2], width, 3 * width, 1.0),
            "mix": matrix(keys[3], width, width, 1.0),
            "wide": layers(keys[4], width, 2 * width, width),
            "out": layers(keys[5], width, CLASSES)[0],
        }

    def normal(x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return (wide * rms).astype(x.dtype) * scale

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = dense(params["embed"], x.reshape(x.shape[0], -1, patch)) + params["places"]
        first, second, third = params["scales"]
        q, k, v = (
            part.reshape(*part.shape[:-1], heads, -1)
            for part in jnp.split(normal(x, first) @ params["attention"], 3, axis=-1)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads).item()
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + seen @ params["mix"]
        wide = jax.nn.relu(dense(params["wide"][0], normal(x, second)))
        x = x + dense(params["wide"][1], wide)
        return dense(params["out"], normal(x, third).mean(axis=1))

    return Net(init, apply)


NETS = {
    "MLP": mlp(LENGTH, 64, 64, CLASSES),
    "CNN": _cnn(12),
    "transformer": _transformer(16, 2, 4),
    "GRU": _gru(20, 4),
}
