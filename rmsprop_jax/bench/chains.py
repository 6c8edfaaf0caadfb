"""What people train with: a whole chain, on the leaves of a 7 B transformer's layer."""

from typing import Any

import jax
import optax

from .. import rmsprop, rounding
from .peers import DECAY, RATE
from .shapes import Shapes

WEIGHT_DECAY, LARGEST_NORM = 0.1, 1.0


def layer() -> Shapes:
    """Returns the leaves of one layer of a 7 B model, its embedding and last norm."""
    width, hidden, vocabulary = 4096, 11_008, 32_000  # of Llama 2 7B
    attention = [(width, width)] * 4
    feed_forward = [(width, hidden), (width, hidden), (hidden, width)]
    norms = [(width,)] * 3
    return [(vocabulary, width), *attention, *feed_forward, *norms]


def of_optax(clipped: bool) -> optax.GradientTransformation:
    """Returns Optax's chain: schedule, and weight decay of matrices."""
    return optax.chain(
        _clip(clipped),
        optax.scale_by_rms(DECAY),
        optax.add_decayed_weights(WEIGHT_DECAY, _matrices),
        optax.scale_by_learning_rate(_schedule()),
    )


def ours(clipped: bool) -> optax.GradientTransformation:
    """Returns the same with one byte of nu, skipping and rounding."""
    inner = rmsprop(
        _schedule(), DECAY, nu_dtype="uint8", skip_nonfinite=True,
        weight_decay=WEIGHT_DECAY, weight_decay_mode="decoupled",
        weight_decay_mask=_matrices,
    )  # fmt: skip
    return optax.chain(_clip(clipped), inner, rounding.round_params())


def _clip(clipped: bool) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(LARGEST_NORM) if clipped else optax.identity()


def _schedule() -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, RATE, 100, 10_000)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
