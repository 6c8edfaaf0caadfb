"""The runs of `record` by the dialects of this package."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from golden.record import INDEX, RATES, flat, split
from rmsprop_jax import RmsState, ScaleByRmsState, dialects


def transformation(framework, options, rates=None, hyper_as_python_float=False):
    """What a framework's arguments give in its dialect, perhaps under a schedule."""
    framework = INDEX["frameworks"][framework]
    if hyper_as_python_float:  # which TF1 takes for float32
        rates = None if rates is None else rates.astype(np.float32)
    else:  # constants of the variable's dtype, where it has one
        options = {
            name: np.float64(value) if isinstance(value, float) else value
            for name, value in options.items()
        }
    if rates is not None:
        (name,) = (name for name in RATES if name in options)
        rates = jnp.asarray(rates)
        options = options | {name: lambda count: rates[count]}
    dialect = getattr(dialects, framework["dialect"])
    return dialect(**(framework["dialect_kwargs"] | options))


def replay(tx, params, grads, leafwise=False, compiled=False):
    """The path of the parameters, the steps on it, and the state after the last one.

    Flat arrays are one kernel where a leaf each would be three: `leafwise` is for what
    depends on the leaf.
    """

    def shaped(x):
        return list(map(jnp.asarray, split(x))) if leafwise else [jnp.asarray(x)]

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates)

    carry = shaped(params), tx.init(shaped(params))
    if compiled:
        columns = [jnp.stack(g) for g in zip(*map(shaped, grads), strict=True)]
        carry, both = jax.lax.scan(step, carry, columns)
        both = [jax.tree.map(lambda x, t=t: x[t], both) for t in range(len(grads))]
    else:
        both = []
        for g in grads:
            carry, now = step(carry, shaped(g))
            both.append(now)
    path, steps = (np.array(list(map(flat, x))) for x in zip(*both, strict=True))
    return np.concatenate([params[None], path]), steps, carry[1]


def accumulators(state, last_step):
    """What is in a state, by the frameworks' names, with E[g²] in the variance's place.

    Without a buffer "mom" is the last step: what a buffer without momentum has.
    """
    (rms,) = _parts(state, RmsState | ScaleByRmsState)
    traces = _parts(state, optax.TraceState)
    kept = {"v": _wide(rms.nu), "mom": last_step}
    if getattr(rms, "mu", None) is not None:
        kept["mg"] = _wide(rms.mu)
        kept["v"] += np.square(kept["mg"])
    if traces:
        kept["mom"] = _wide(traces[0].trace)
    return kept


def _wide(leaves):
    return flat(leaves).astype(float)


def _parts(state, kind):
    """The states of one kind, wherever they are in the state of a chain."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [node for node in nodes if isinstance(node, kind)]
