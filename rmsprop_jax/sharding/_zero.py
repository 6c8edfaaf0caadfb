"""ZeRO: inside `jax.shard_map`, every device updates its own part of the state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _checks, _matching
from . import _parts
from ._inside import init_inside, shapes_of, update_inside
from ._zero_state import init_outside, names


def zero(
    tx: optax.GradientTransformation, axis_name: str | tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
    """Splits the state of `tx` over the devices that share the data (ZeRO, stage 1).

    ::

        g = reduce-scatter(local g) / N
        u, state = update(g, state, its part of θ)
        u = all-gather(u)

    For use inside `jax.shard_map`, with gradients of each device's own examples: their
    mean is taken here. Each parameter counts as flat and padded to a multiple of
    `BLOCK`, device i has the i-th of N equal parts of its state, and neither shows in
    the updates, which are whole and the same on every device. Large leaves whose rows
    divide cost one reduce-scatter and one all-gather each over each axis, all others
    together likewise; gradients are never all-reduced. Stochastic rounding uses the
    bits that it would on one device.

    `tx` is traced for whole leaves and run on their parts. So masks, means and norms
    inside are those of one device, padding is left out, and what would mix elements is
    refused by `init`: it can act element by element, sum over whole leaves, and branch
    on numbers. `optax.clip_by_global_norm`, `optax.apply_if_finite`, `optax.MultiSteps`
    and `rmsprop_jax.diagnostics.watch` belong inside, where the mean gradients are:
    around `zero` they would see those of one device. All that the devices have to tell
    each other for sums travels in one all-gather, or in as many as depend on another.

    Args:
      tx: the transformation to split.
      axis_name: the mesh axis, or axes, that split the data. On TPU slices of 4 × 4
        and more make a mesh axis of each dimension, ``("x", "y")``: over one axis that
        spans them XLA has no reduce-scatter, and moves twice the bytes.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Its `init` may also be called outside
      of `shard_map`, with the mesh of `jax.set_mesh` or with parameters on a mesh; the
      state's arrays then show by their shardings what `in_specs` should be (`specs`).

    Raises:
      TypeError: if `axis_name` is no name.
      ValueError: if it names an axis twice, if there is no such axis where `init` or
        `update` is called, or if gradients were already summed over it (take them with
        respect to ``jax.lax.pcast(params, axis_name, to="varying")``), or if `tx` mixes
        elements of a leaf, or combines devices over the axis itself.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import PartitionSpec as P
      >>> from rmsprop_jax import rmsprop, sharding
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tx = sharding.zero(rmsprop(0.1, nu_dtype="uint8"), "data")
      >>> params = {"w": jnp.ones(3)}
      >>> with jax.set_mesh(mesh):
      ...     state = tx.init(params)
      >>> def step(params, state, x):
      ...     own = jax.lax.pcast(params, "data", to="varying")
      ...     grads = jax.grad(lambda p: jnp.mean((x @ p["w"]) ** 2))(own)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> specs = sharding.specs(state)
      >>> step = jax.shard_map(
      ...     step, mesh=mesh, in_specs=(P(), specs, P()), out_specs=(P(), specs)
      ... )
      >>> params, state = jax.jit(step)(params, state, jnp.ones((4, 3)))
      >>> print(params["w"], specs[0].nu["w"])
      [0.686... 0.686... 0.686...] P('data',)

    References:
      Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter
      Models, 2020 (https://arxiv.org/abs/1910.02054).
    """
    _checks.transformation("tx", tx)
    axes = names(axis_name)
    inner = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        _matching.floating_leaves("params", params)
        if _parts.bound(axes):
            return init_inside(inner, params, axes)
        return init_outside(inner, params, axes)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if not _parts.bound(axes):
            raise ValueError(
                f"`zero` was called outside of `jax.shard_map` over {axes}: its update "
                "is one device's. Under `jax.jit` alone use `state_sharding` with "
                "`zero_axis`."
            )
        _own_gradients(axes, updates)
        likes, treedef = jax.tree.flatten(updates)
        parts = treedef.unflatten(_parts.mean(axes, likes))
        shapes = shapes_of(updates)
        found, state = update_inside(
            inner, axes, parts, shapes, state, params, **extra_args
        )
        leaves, treedef = jax.tree.flatten(found)
        return treedef.unflatten(_parts.whole(axes, leaves, likes)), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_global_norm(
    max_norm: jax.typing.ArrayLike, axis_name: str | tuple[str, ...]
) -> optax.GradientTransformation:
    """Scales gradients whose norm is above a maximum.

    ::

        g ← g·min(1, max_norm / ‖g‖)

    It is `optax.clip_by_global_norm` with its argument checked: inside of `zero` that
    has the norm of all parts.

    Args:
      max_norm: the largest norm, in units of the gradient.
      axis_name: that of `zero`.

    Returns:
      An `optax.GradientTransformation`, for a chain inside of `zero`.

    Raises:
      ValueError: if `max_norm` is negative or not finite, or an axis is named twice.
      TypeError: if `axis_name` is no name.

    Example:
      >>> import optax
      >>> from rmsprop_jax import rmsprop, sharding
      >>> clip = sharding.clip_by_global_norm(1.0, "data")
      >>> tx = sharding.zero(optax.chain(clip, rmsprop(0.1)), "data")
    """
    _checks.number("max_norm", max_norm, "finite and at least 0")
    if jnp.ndim(max_norm):
        raise ValueError(f"`max_norm` must be one number, got {max_norm}.")
    names(axis_name)
    return optax.clip_by_global_norm(max_norm)


def _own_gradients(axes: tuple[str, ...], grads: optax.Updates) -> None:
    """Raises if gradients were summed already."""
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        if not _parts.varying_over(jax.lax.axis_index(axes)) <= _parts.varying_over(g):
            raise ValueError(
                f"The gradient of {jax.tree_util.keystr(path) or 'the parameter'} is "
                f"the same on all devices of {axes}: JAX has summed it. Give `zero` "
                "each device's own: differentiate with respect to "
                f'jax.lax.pcast(params, {axes}, to="varying").'
            )
