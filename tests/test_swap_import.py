"""Swap the import, keep your checkpoints: Optax's states in ours, and ours in Optax's.

Every way that people store a state, for the options that Optax has and that need no
count; the numbers go on as if nothing had changed.
"""

import functools
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

import rmsprop_jax
from rmsprop_jax.checkpoint import Checkpoints
from table import assert_close

pytestmark = [
    pytest.mark.promotion,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]

PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": [jnp.ones(3)]}
COSINE = optax.cosine_decay_schedule(0.1, 100)
RULES = {
    "plain": lambda rmsprop: rmsprop(0.1),
    "momentum": lambda rmsprop: rmsprop(0.1, momentum=0.9, nesterov=True),
    "schedule": lambda rmsprop: rmsprop(COSINE),
    "eps outside": lambda rmsprop: rmsprop(0.1, eps=1e-3, eps_in_sqrt=False),
    "injected": lambda rmsprop: optax.inject_hyperparams(rmsprop)(COSINE, momentum=0.9),
    "wrapped": lambda rmsprop: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"w": optax.MultiSteps(rmsprop(0.1), 2), "b": optax.flatten(rmsprop(0.1))},
            {"w": "w", "b": ["b"]},
        ),
    ),
}


def step(tx, state, params):
    gradients = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)
    updates, state = jax.jit(tx.update)(gradients, state, params)
    return state, optax.apply_updates(params, updates)


@functools.cache
def run_of(library, name, steps=3):
    """A transformation, and the state and parameters after some steps."""
    tx = RULES[name](library.rmsprop)
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(steps):
        state, params = step(tx, state, params)
    return tx, state, params


def with_flax_bytes(folder, old, new):
    return flax.serialization.from_bytes(new, flax.serialization.to_bytes(old))


def with_flax_dictionaries(folder, old, new):
    stored = flax.serialization.to_state_dict(old)
    return flax.serialization.from_state_dict(new, stored)


def with_train_state(folder, old, new):
    """The transformation is not part of what is stored."""
    before, after = (
        TrainState(0, None, PARAMS, optax.identity(), state) for state in (old, new)
    )
    stored = flax.serialization.to_bytes(before)
    return flax.serialization.from_bytes(after, stored).opt_state


def with_pickle(folder, old, new):
    return pickle.loads(pickle.dumps(old))


def with_leaves(folder, old, new):
    return jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(old))


def saved(folder, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    return folder / "state"


def with_orbax(folder, old, new):
    target = jax.eval_shape(lambda: new)
    return ocp.StandardCheckpointer().restore(saved(folder, old), target)


def with_orbax_trees(folder, old, new):
    return ocp.PyTreeCheckpointer().restore(saved(folder, old), item=new)


def with_our_checkpoints(folder, old, new):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, PARAMS, old)
        return checkpoints.restore(PARAMS, new).opt_state


def as_it_is(folder, old, new):
    return old


ROUTES = {
    route.__name__: route
    for route in (
        with_flax_bytes,
        with_flax_dictionaries,
        with_train_state,
        with_pickle,
        with_leaves,
        with_orbax,
        with_orbax_trees,
        with_our_checkpoints,
        as_it_is,
    )
}
LIBRARIES = {"into ours": (optax, rmsprop_jax), "back": (rmsprop_jax, optax)}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("direction", LIBRARIES)
def test_a_run_goes_on(tmp_path, direction, route, name):
    old_library, new_library = LIBRARIES[direction]
    _, state, params = run_of(old_library, name)
    tx, _, _ = run_of(new_library, name)
    fresh = tx.init(PARAMS)
    found = ROUTES[route](tmp_path, state, fresh)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    after, params = step(tx, found, params)
    assert jax.tree.structure(after) == jax.tree.structure(fresh)
    _, _, expected = run_of(old_library, name, 4)
    assert_close(params, expected, 1e-6)


OTHERS = {
    "centred": {"centered": True},
    "bias": {"bias_correction": True},
    "narrow": {"nu_dtype": "uint8"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_options_name_the_call_that_migrates(tmp_path, name):
    """Ours keeps the variance where centred, so Optax's class would lie."""
    ours = {"learning_rate": 0.1, **OTHERS[name]}
    theirs = {key: value for key, value in ours.items() if key != "nu_dtype"}
    old, new = optax.rmsprop(**theirs), rmsprop_jax.rmsprop(**ours)
    state, _ = step(old, old.init(PARAMS), PARAMS)
    call = r"rmsprop_jax\.convert\.migrate\("
    with pytest.raises(TypeError, match=call):
        new.update(PARAMS, state, PARAMS)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, PARAMS, state)
        with pytest.raises(ValueError, match=call):
            checkpoints.restore(PARAMS, new.init(PARAMS))
    found = rmsprop_jax.convert.migrate(state, new, PARAMS, step=1, decay=0.9)
    step(new, found, PARAMS)
