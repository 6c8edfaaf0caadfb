"""Whatever works with Optax's function works with ours: a table, cell by cell.

Entry point x dtype of the parameters x dtype of the gradients x parameters given or not
x what consumes the updates. Shapes and dtypes are evaluated without a compilation.
"""

from functools import cache, partial

import jax
import optax
import pytest
from optax import transforms

from rmsprop_jax import diagnostics, dialects, rmsprop, scale_by_rms

pytestmark = pytest.mark.promotion

DTYPES = ("bfloat16", "float16", "float32", "float64", "complex64")
# Of a parameter and its gradient; a complex one of a real parameter is refused by name.
PAIRS_OF_DTYPES = [
    (p, g) for p in DTYPES for g in DTYPES if p == "complex64" or g != "complex64"
]

SAME = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True},
    "bias_correction": {"bias_correction": True},
    "eps_outside": {"eps_in_sqrt": False, "initial_scale": 1.0},
}


def _alone(make):
    return optax.chain(make(0.9), optax.scale(-0.1))


def _decayed():
    return optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(0.1))


_plain = partial(optax.rmsprop, 0.1)


# name -> (Optax's transformation, ours)
PAIRS = {
    name: (partial(optax.rmsprop, 0.1, **options), partial(rmsprop, 0.1, **options))
    for name, options in SAME.items()
} | {
    "scheduled": (
        lambda: optax.rmsprop(optax.cosine_decay_schedule(0.1, 9)),
        lambda: rmsprop(optax.cosine_decay_schedule(0.1, 9)),
    ),
    "scale_by_rms": (
        partial(_alone, optax.scale_by_rms),
        partial(_alone, scale_by_rms),
    ),
    "weight_decay": (_decayed, partial(rmsprop, 0.1, weight_decay=0.1)),
    "decoupled": (
        _decayed,
        partial(rmsprop, 0.1, weight_decay=0.1, weight_decay_mode="decoupled"),
    ),
    "uint8": (_plain, partial(rmsprop, 0.1, nu_dtype="uint8")),
    "skip_nonfinite": (_plain, partial(rmsprop, 0.1, skip_nonfinite=True)),
    "watch": (_plain, partial(diagnostics.watch(rmsprop), 0.1)),
    "torch": (_plain, partial(dialects.torch, lr=0.1)),
    "keras": (_plain, partial(dialects.keras, learning_rate=0.1)),
    "tf1": (_plain, partial(dialects.tf1, learning_rate=0.1)),
    "timm": (_plain, partial(dialects.timm, lr=0.1)),
}

QUICK = ("plain", "momentum", "scale_by_rms", "decoupled", "uint8")


def _added(params, updates):
    return jax.tree.map(lambda p, u: p + u, params, updates)


def _train(tx, params, grads, given, apply=optax.apply_updates):
    """The parameters after a scan, whose carry keeps every dtype or is an error."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params if given else None)
        return (apply(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=2)[0][0]


def _once(tx, params, grads, given):
    updates, _ = tx.update(grads, tx.init(params), params if given else None)
    return _added(params, updates)


def _strict(tx, params, grads, given):
    with jax.numpy_dtype_promotion("strict"):
        return _train(tx, params, grads, given)


def _wrapped(wrap):
    return lambda tx, *rest: _train(wrap(tx), *rest)


def _some(tree):
    return {name: i % 2 == 0 for i, name in enumerate(tree)}


def _always(step, **_):
    return step >= 0


CONSUMERS = {
    "apply_updates in a scan": _train,
    "p + u": _once,
    "p + u in a scan": partial(_train, apply=_added),
    "strict promotion": _strict,
    "apply_if_finite": _wrapped(lambda tx: optax.apply_if_finite(tx, 3)),
    "MultiSteps": _wrapped(lambda tx: optax.MultiSteps(tx, 2)),
    "MultiSteps, skipping": _wrapped(
        lambda tx: optax.MultiSteps(
            tx, 2, should_skip_update_fn=optax.transforms.skip_not_finite
        )
    ),
    "conditionally_transform": _wrapped(
        lambda tx: transforms.conditionally_transform(tx, _always)
    ),
    "conditionally_mask": _wrapped(
        lambda tx: transforms.conditionally_mask(tx, _always)
    ),
    "masked": _wrapped(lambda tx: optax.masked(tx, _some)),
    "inject_hyperparams": _wrapped(
        lambda tx: optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0))
    ),
}


def trees(pairs):
    """A parameter and a gradient for each pair of dtypes."""
    return tuple(
        {"-".join(pair): jax.ShapeDtypeStruct((2,), pair[side]) for pair in pairs}
        for side in (0, 1)
    )


def outcome(consume, make, pairs, given):
    """The dtypes that come of it, or None where it is an error."""
    params, grads = trees(pairs)
    try:
        shapes = jax.eval_shape(
            lambda p, g: consume(make(), p, g, given), params, grads
        )
    except (TypeError, ValueError, DeprecationWarning):
        return None
    return {name: leaf.dtype.name for name, leaf in shapes.items()}


@cache
def _of_optax(make, consumer, given):
    """The dtypes that come of Optax's, of all pairs of dtypes that it takes."""
    consume = CONSUMERS[consumer]
    together = outcome(consume, make, PAIRS_OF_DTYPES, given)
    if together is not None:
        return together
    found = {}
    for pair in PAIRS_OF_DTYPES:
        found |= outcome(consume, make, [pair], given) or {}
    return found


@pytest.mark.parametrize("given", [True, False], ids=["params", "no params"])
@pytest.mark.parametrize(
    "entry",
    [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in PAIRS],
)
def test_nothing_that_works_with_optax_fails(entry, given):
    theirs, ours = PAIRS[entry]
    fails, compared = [], 0
    with jax.enable_x64(True):
        for name, consume in CONSUMERS.items():
            expected = _of_optax(theirs, name, given)
            compared += len(expected)
            pairs = [pair for pair in PAIRS_OF_DTYPES if "-".join(pair) in expected]
            got = outcome(consume, ours, pairs, given)
            if got == expected:
                continue
            for pair in pairs:
                alone = outcome(consume, ours, [pair], given)
                label = "-".join(pair)
                if alone is None or alone[label] != expected[label]:
                    fails.append((label, name, expected[label], alone))
    assert compared > 100 or not given
    assert not fails, f"{len(fails)} of {compared}:\n" + "\n".join(map(str, fails))
