"""What nets learn: fixed splits of real data, a net, a loss and an accuracy."""

import collections
import dataclasses
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .models import CharacterGRU, CharacterTransformer, DigitsNet, Net, of_module
from .program import Problem

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
      title: net and data in words.
      unit: what one prediction is about.
      train: the examples to train on.
      validation: those to choose the learning rate on.
      test: those to report on.
      net: maps inputs to logits.
    """

    name: str
    title: str
    unit: str
    train: Split
    validation: Split
    test: Split
    net: Net


def learning(
    task: Task,
    steps: int,
    batch_size: int,
    *,
    epochs: bool = True,
    dtype: str = "float32",
    **options: Any,
) -> Problem:
    """Returns a task as a problem whose measure is the validation loss.

    Its report, for examples that chose nothing, is "test_loss" and "test_accuracy".

    Args:
      task: what to learn.
      steps: updates of a run.
      batch_size: examples of a step.
      epochs: whether batches go through every example before any comes again; each is
        drawn by itself otherwise.
      dtype: what initial parameters are rounded to, for all contenders alike.
      options: others of `Problem`, such as its schedule.
    """
    arrays = {
        name: (jnp.asarray(split.inputs), jnp.asarray(split.targets))
        for name, split in (
            ("train", task.train), ("validation", task.validation), ("test", task.test),
        )
    }  # fmt: skip
    examples = len(task.train.inputs)

    def start(setting: Any, key: jax.Array) -> Any:
        params = jax.tree.map(
            lambda x: x.astype(dtype).astype(x.dtype), task.net.init(key)
        )
        return params, shuffled(key, examples, batch_size, steps) if epochs else ()

    def of(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        if jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(jax.tree.leaves(params)[0].dtype)
        return metrics(task.net.apply(params, inputs).astype(jnp.float32), targets)

    def loss(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        inputs, targets = arrays["train"]
        chosen = world[step] if epochs else drawn(key, step, batch_size, examples)
        return of(params, inputs[chosen], targets[chosen])[0]

    def measure(world: Any, params: Any, key: jax.Array, step: jax.Array) -> jax.Array:
        return of(params, *arrays["validation"])[0]

    def report(world: Any, params: Any) -> dict[str, jax.Array]:
        test_loss, test_accuracy = of(params, *arrays["test"])
        return {"test_loss": test_loss, "test_accuracy": test_accuracy}

    return Problem(start, loss, measure, steps, report=report, **options)


def shuffled(key: jax.Array, examples: int, batch_size: int, steps: int) -> jax.Array:
    """Returns indices [steps, batch_size]: epoch after epoch, each shuffled."""
    epochs = jnp.arange(-(-steps * batch_size // examples))
    orders = jax.vmap(
        lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    )(epochs)
    return orders.ravel()[: steps * batch_size].reshape(steps, batch_size)


def drawn(key: jax.Array, step: jax.Array, batch_size: int, examples: int) -> jax.Array:
    """Returns indices [batch_size] of a step, drawn with replacement."""
    key = jax.random.fold_in(key, step)
    return jax.random.randint(key, (batch_size,), 0, examples)


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
        net=of_module(DigitsNet),
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
        net=of_module(partial(CharacterGRU, VOCABULARY)),
    )


def transformer() -> Task:
    """Returns the text with a small transformer for the GRU, and fewer tests."""
    task = text()
    return dataclasses.replace(
        task,
        name="transformer",
        title=task.title.replace("GRU", "transformer"),
        test=Split(task.test.inputs[:512], task.test.targets[:512]),
        net=of_module(partial(CharacterTransformer, VOCABULARY, WINDOW)),
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits, "text": text, "transformer": transformer,
}  # fmt: skip


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
