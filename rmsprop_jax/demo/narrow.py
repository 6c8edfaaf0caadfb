"""Training in 16 bits: one program for contenders that share their passes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from .tasks import Split, metrics

POINTS = 5
"""Points of a curve, besides the one before training."""


class Form(NamedTuple):
    """A contender.

    Attributes:
      make: an optimizer from its schedule and its decay.
      dtype: that of the parameters, and so of both passes.
    """

    make: Callable[[Any, Any], optax.GradientTransformation]
    dtype: str = "bfloat16"


class Net(NamedTuple):
    """A classifier that computes in the dtype of its parameters.

    Attributes:
      init: from a key to float32 parameters.
      apply: from parameters and inputs [batch, ...] to logits [batch, classes].
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def training(
    net: Net, forms: Mapping[str, Form], data: Mapping[str, Split], steps: int,
    batch_size: int, points: int = POINTS,
) -> Any:  # fmt: skip
    """Returns a function under `jax.jit` that trains a net with each form.

    A member has the same initial parameters, those of bfloat16, and the same batches
    for every form. The rate falls to 0 along half a cosine.

    Args:
      net: what to train.
      forms: the contenders by name.
      data: examples by split, "train", "validation" and "test".
      steps: updates of a run, a multiple of `points`.
      batch_size: examples of a step.
      points: how often the validation loss is taken after the first one.

    Returns:
      A function of learning rates [members], keys [members] and a decay to
      "validation_loss" [points + 1, forms, members], "test_loss" and "test_accuracy"
      [forms, members].
    """
    arrays: dict[str, Any] = {
        name: (jnp.asarray(split.inputs), jnp.asarray(split.targets))
        for name, split in data.items()
    }
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    dtypes = list(dict.fromkeys(form.dtype for form in forms.values()))
    of_dtype = {d: [n for n, form in forms.items() if form.dtype == d] for d in dtypes}
    # One vector: a tree takes XLA several times as long.
    trees = {
        dtype: ravel_pytree(
            jax.tree.map(lambda x, dtype=dtype: jnp.zeros(x.shape, dtype), shapes)
        )[1]
        for dtype in dtypes
    }

    def measured(flat: jax.Array, inputs: jax.Array, targets: jax.Array) -> Any:
        logits = net.apply(trees[flat.dtype.name](flat), inputs.astype(flat.dtype))
        return metrics(logits.astype(jnp.float32), targets)

    def loss(flat: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return measured(flat, inputs, targets)[0]

    gradients = jax.vmap(jax.vmap(jax.grad(loss), (0, None, None)))
    over = jax.vmap(jax.vmap(measured, (0, None, None)), (0, None, None))

    def evaluate(params: Mapping[Any, jax.Array], split: str) -> list[jax.Array]:
        """Returns loss and accuracy [forms, members]."""
        found = {}
        for dtype, flats in params.items():
            # One after the other: the activations of all would take gigabytes.
            each = jax.lax.map(lambda p: over(p[None], *arrays[split]), flats)
            for index, name in enumerate(of_dtype[dtype]):
                found[name] = [x[:, 0, index] for x in each]
        return [
            jnp.stack(x) for x in zip(*(found[name] for name in forms), strict=True)
        ]

    @jax.jit
    def run(
        rates: jax.Array, keys: jax.Array, decay: jax.Array
    ) -> dict[str, jax.Array]:
        def optimizer(name: str, rate: jax.Array) -> optax.GradientTransformation:
            def falling(count: Any) -> jax.Array:
                part = jnp.asarray(count, jnp.float32) / steps
                return rate * 0.5 * (1 + jnp.cos(jnp.pi * part))

            return forms[name].make(falling, decay)

        def start(key: jax.Array) -> jax.Array:
            return ravel_pytree(net.init(key))[0].astype(jnp.bfloat16)

        first = jax.vmap(start)(keys)
        params = {
            dtype: jnp.stack([first.astype(dtype)] * len(names), axis=1)
            for dtype, names in of_dtype.items()
        }
        states = {
            name: jax.vmap(lambda rate, p, name=name: optimizer(name, rate).init(p))(
                rates, first.astype(form.dtype)
            )
            for name, form in forms.items()
        }

        def batch(key: jax.Array, count: jax.Array) -> Any:
            key = jax.random.fold_in(key, count)
            inputs, targets = arrays["train"]
            chosen = jax.random.randint(key, (batch_size,), 0, len(targets))
            return inputs[chosen], targets[chosen]

        def step(carry: Any, count: jax.Array) -> Any:
            params, states = carry
            batches = jax.vmap(batch, in_axes=(0, None))(keys, count)
            moved, after = {}, {}
            for dtype, names in of_dtype.items():
                grads, columns = gradients(params[dtype], *batches), []
                for index, name in enumerate(names):

                    def update(rate: Any, g: Any, state: Any, p: Any, name=name) -> Any:
                        updates, state = optimizer(name, rate).update(g, state, p)
                        return optax.apply_updates(p, updates), state

                    p, after[name] = jax.vmap(update)(
                        rates, grads[:, index], states[name], params[dtype][:, index]
                    )
                    columns.append(p)
                moved[dtype] = jnp.stack(columns, axis=1)
            return (moved, after), None

        def stretch(carry: Any, point: jax.Array) -> Any:
            each = steps // points
            carry, _ = jax.lax.scan(step, carry, point * each + jnp.arange(each))
            return carry, evaluate(carry[0], "validation")[0]

        before = evaluate(params, "validation")[0]
        carry = params, states
        (params, _), curve = jax.lax.scan(stretch, carry, jnp.arange(points))
        test_loss, test_accuracy = evaluate(params, "test")
        return {
            "validation_loss": jnp.concatenate([before[None], curve]),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }

    return run
