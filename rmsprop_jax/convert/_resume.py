"""The two ends of a run that goes on: the tree that a model has, and filling it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from ._record import names_of

MOST_STEPS = 2**31 - 1
"""Steps that a count can hold."""


def resume(target: Any, restored: Any) -> Any:
    """Fills a model's optimizer with what `load` returned, its step included.

    Args:
      target: a Flax NNX model, an `nnx.Optimizer` made with ``restored.optimizer``, an
        `nnx.ModelAndOptimizer`, or a Linen `TrainState`.
      restored: what `load` returned for its parameters.

    Returns:
      For a model an `nnx.Optimizer` of it, and the model has the parameters, if the
      source has them; an optimizer of NNX itself, filled; for a `TrainState` a new one,
      with the optimizer, its state, the step, and the parameters if the source has
      them.

    Raises:
      TypeError: if the target is none of these.
      ValueError: if the source does not say the step, or the target has other
        parameters or another optimizer. Nothing is changed then.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from rmsprop_jax import convert
      >>> state_dict = {
      ...     "state": {0: {"step": 7, "square_avg": np.full((2, 3), 0.5)}},
      ...     "param_groups": [
      ...         {"lr": 0.1, "alpha": 0.9, "foreach": None, "params": [0]}
      ...     ],
      ... }
      >>> model = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
      >>> restored = convert.load(state_dict, model, names=["weight"])
      >>> optimizer = convert.resume(model, restored)
      >>> int(optimizer.step[...])
      7
    """
    from flax import nnx  # here, because it takes a second

    if not hasattr(restored, "optimizer"):
        raise TypeError(f"`restored` must be what `load` returned, got {restored!r}.")
    if restored.step is None:
        raise ValueError(
            "The source does not say how many updates were done: give `step` to load()."
        )
    if isinstance(target, nnx.Optimizer):
        _fill(nnx, target, getattr(target, "__dict__", {}).get("model"), restored)
        return target
    if isinstance(target, nnx.Module):
        optimizer = nnx.Optimizer(target, restored.optimizer, wrt=nnx.Param)
        _fill(nnx, optimizer, target, restored)
        return optimizer
    if _is_train_state(target):
        params = target.params if restored.params is None else restored.params
        expected = jax.eval_shape(restored.optimizer.init, target.params)
        _check_same(expected, restored.state)
        step = target.step
        return target.replace(
            step=jnp.asarray(restored.step, step.dtype)
            if hasattr(step, "dtype")
            else restored.step,
            params=params,
            tx=restored.optimizer,
            opt_state=restored.state,
        )
    raise TypeError(
        "`target` must be a model or an optimizer of Flax NNX, or a TrainState, got "
        f"{type(target).__name__}. Otherwise go on with restored.optimizer, "
        "restored.state and restored.step."
    )


def tree_of(params: Any) -> Any:
    """Returns the parameters of a model or of a `TrainState`; a tree is one already.

    Raises:
      TypeError: that says which tree is meant, if it is none of arrays.
    """
    if _is_train_state(params):
        return params.params
    if type(params).__module__.startswith("flax.") or hasattr(params, "_pytree__state"):
        from flax import nnx  # here, because it takes a second

        if isinstance(params, nnx.Optimizer):
            raise TypeError("`params` is an nnx.Optimizer: pass its model.")
        if isinstance(params, nnx.Module):
            return nnx.as_pure(nnx.state(params, nnx.Param))
    if hasattr(params, "apply") and hasattr(params, "init"):
        raise TypeError(
            "`params` is a module, which in Linen has no parameters in it: pass "
            'variables["params"], of variables = module.init(key, inputs).'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"`params` must be a tree of arrays, and {jax.tree_util.keystr(path)} "
                f"is a {type(leaf).__name__}: of an Equinox model pass "
                "eqx.filter(model, eqx.is_inexact_array)."
            )
    return params


def counted(params: Any, step: int | None) -> int | None:
    """Returns the step that is given, checked, or that of a `TrainState`."""
    if step is not None:
        return _checks.integer("step", step, 0, MOST_STEPS)
    return int(params.step) if _is_train_state(params) else None


def transposed_in(params: Any) -> tuple[str, ...] | None:
    """Returns the paths of an NNX model's transposed convolutions with flipped kernels.

    None of anything else, which does not show its layers.
    """
    if not type(params).__module__.startswith("flax.") and not hasattr(
        params, "_pytree__state"
    ):
        return None
    from flax import nnx  # here, because it takes a second

    if not isinstance(params, nnx.Module):
        return None
    return tuple(
        "/".join(map(str, path))
        for path, node in nnx.iter_graph(params)
        if isinstance(node, nnx.ConvTranspose) and not node.transpose_kernel
    )


def _is_train_state(target: Any) -> bool:
    fields = ("params", "opt_state", "tx", "replace")
    return all(hasattr(target, name) for name in fields)


def _fill(nnx: Any, optimizer: Any, model: Any, restored: Any) -> None:
    new = nnx.state(restored.state)
    _check_same(nnx.state(optimizer.opt_state), new)
    if model is not None and restored.params is not None:
        nnx.update(model, restored.params)
    nnx.update(optimizer.opt_state, new)
    optimizer.step[...] = jnp.asarray(restored.step, optimizer.step[...].dtype)


def _check_same(expected: Any, state: Any) -> None:
    """Checks that two states have the same leaves.

    Raises:
      ValueError: that names those of one of them.
    """
    there, here = (
        {name: np.shape(leaf) for name, leaf in names_of(tree).items()}
        for tree in (expected, state)
    )
    differ = sorted(n for n in {*there, *here} if there.get(n) != here.get(n))
    if differ:
        raise ValueError(
            "The target has other parameters than the tree that was given to load(), "
            f"or another optimizer ({', '.join(differ)}): make it with "
            "restored.optimizer, and give its model to load()."
        )
