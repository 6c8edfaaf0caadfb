"""The two tasks: fixed splits of real data, a model, a loss and an accuracy."""

import collections
import dataclasses
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .models import CharacterGRU, DigitsNet

WINDOW = 24
"""Characters that the GRU predicts in a row."""

VOCABULARY = 64
"""The most frequent characters of the text, and one symbol for all others."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples: inputs [n, ...] and integer targets [n] or [n, time]."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """What to learn.

    Attributes:
      name: the name on the command line.
      title: model and data in words.
      unit: what one prediction is about.
      train: the examples to train on.
      validation: those to choose the learning rate on.
      test: those to report on.
      make_model: a new model whose state is `nnx.Param` alone, from `nnx.Rngs`; it
        maps inputs to logits.
    """

    name: str
    title: str
    unit: str
    train: Split
    validation: Split
    test: Split
    make_model: Callable[[nnx.Rngs], Callable[[jax.Array], jax.Array]]


def metrics(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean cross-entropy in nats and the accuracy in [0, 1], scalars.

    Args:
      logits: [..., classes].
      targets: integers [...].
    """
    # One-hot rows rather than a gather, whose gradient is slow on a CPU.
    chosen = jax.nn.one_hot(targets, logits.shape[-1])
    loss = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * chosen, axis=-1))
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == targets)


def digits() -> Task:
    """Returns handwritten digits from scikit-learn: 1000, 300 and 497 images."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    train, validation, test = (
        Split(images[part], labels[part])
        for part in (slice(1000), slice(1000, 1300), slice(1300, None))
    )
    return Task(
        name="digits",
        title="convolutional net on scikit-learn's handwritten digits",
        unit="image",
        train=train,
        validation=validation,
        test=test,
        make_model=lambda rngs: DigitsNet(rngs=rngs),
    )


def text() -> Task:
    """Returns next-character prediction on the text of `pydoc_data.topics`.

    The text is that of the running Python, so another version of Python gives other
    numbers.
    """
    characters = _encode(_python_topics())
    windows = (len(characters) - 1) // WINDOW
    inputs = characters[: windows * WINDOW].reshape(windows, WINDOW)
    targets = characters[1 : windows * WINDOW + 1].reshape(windows, WINDOW)
    # Long blocks, so that only windows at the borders touch another split.
    block = np.arange(windows) // 64 % 10
    train, validation, test = (
        Split(inputs[part], targets[part])
        for part in (block < 8, block == 8, block == 9)
    )
    return Task(
        name="text",
        title=f"character GRU on the manual of Python {platform.python_version()}",
        unit="character",
        train=train,
        validation=Split(validation.inputs[:128], validation.targets[:128]),
        test=Split(test.inputs[:1024], test.targets[:1024]),
        make_model=lambda rngs: CharacterGRU(VOCABULARY, rngs=rngs),
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "text": text}


def _python_topics() -> str:
    """Returns the text of `help(topic)` for all topics, each paragraph once.

    Topics quote one another at length; a paragraph in two splits would be no test.
    """
    from pydoc_data.topics import topics

    paragraphs = (
        paragraph.strip()
        for name in sorted(topics)
        for paragraph in topics[name].split("\n\n")
    )
    return "\n\n".join(dict.fromkeys(paragraphs))


def _encode(string: str) -> np.ndarray:
    """Returns integers [n] below `VOCABULARY`, 0 for every rare character."""
    ranked = collections.Counter(string).most_common(VOCABULARY - 1)
    codes = {character: i for i, (character, _) in enumerate(ranked, start=1)}
    return np.array([codes.get(character, 0) for character in string], np.int32)
