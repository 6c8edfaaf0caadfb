"""`watch`: a transformation that keeps the last diagnostics in its state."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax

from .. import _matching, dialects
from .._placement import placed
from .._signature import canonical
from ._values import QUANTILES, Diagnostics, checked_quantiles, values

P = ParamSpec("P")

ALSO = ("gradients", "updates", "params")
"""What may be looked at beside the state."""


class WatchState(NamedTuple):
    """State of what `watch` makes.

    Attributes:
      inner_state: that of the transformation that is watched.
      diagnostics: the values of the last step, zeros before the first.
    """

    inner_state: optax.OptState
    diagnostics: Diagnostics


def watch(
    factory: Callable[P, optax.GradientTransformation],
    *,
    also: Sequence[str] = (),
    quantiles: Sequence[float] = QUANTILES,
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    """Makes an optimizer keep the diagnostics of its last step in its state.

    It wraps the function that makes the transformation, as `optax.inject_hyperparams`
    does, and not the transformation: an element of a chain sees updates alone, and
    what is made already does not say its ε, which the caller would have to repeat, and
    could get wrong. The call has the learning rate, ε and where it stands. The updates
    are those of the optimizer, to the bit.

    By default a step reads `nu` once more and nothing else: the compiler counts the
    bytes of that one pass on TPUs for every dtype, on CPUs for float32. (There a narrow
    `nu` costs 4 bytes per parameter beside it.) Where centred, `signal_to_noise` needs
    two more passes, over `nu` and `mu`: with float32 parameters and state a step of 28
    bytes per parameter takes 40 on TPUs. All that `also` can name costs a pass each, 12
    bytes together there (16 where centred), on CPUs more. To look now and then only,
    call `values` on what a step returned instead.

    Args:
      factory: `rmsprop`, `scale_by_rms`, a dialect, Optax's function of these names,
        one that `optax.inject_hyperparams` made, or your own. Yours has an argument
        `eps`, and may have `learning_rate` (otherwise 1; a number or a schedule) and
        `eps_in_sqrt` (otherwise True), which mean what they mean here.
      also: what to look at beside the state: "gradients" adds `skipped`, "updates" adds
        `update_rms`, and "updates" with "params" `update_to_param` and `lost`.
      quantiles: of the effective learning rates, numbers in [0, 1].

    Returns:
      A function with the arguments of `factory` that returns its transformation. The
      state is a `WatchState`; ``optax.tree_utils.tree_get(state, "diagnostics")`` has
      the values wherever it is.

    Raises:
      TypeError: if `factory` has no argument `eps`.
      ValueError: for an unknown name in `also` or "params" without "updates", quantiles
        outside [0, 1], and an update without `params` if it shall look at them.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import diagnostics, rmsprop
      >>> tx = diagnostics.watch(rmsprop)(optax.linear_schedule(0.2, 0.1, 10))
      >>> params = {"w": jnp.ones(4)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.full(4, 2.0)}, state, params)
      >>> last = optax.tree_utils.tree_get(state, "diagnostics")
      >>> print(f"{last.total.effective_rate[2]:.3f}")  # 0.2 / √(0.1 · 2²)
      0.316
    """
    if not callable(factory):
        raise TypeError(
            "`factory` must be the function that makes the transformation, got "
            f"{type(factory).__name__}: write watch(rmsprop)(0.1), not "
            "watch(rmsprop(0.1))."
        )
    also = (also,) if isinstance(also, str) else also
    if not isinstance(also, Sequence) or not all(name in ALSO for name in also):
        accepted = ", ".join(map(repr, ALSO))
        raise ValueError(f"`also` must have names out of {accepted}, got {also!r}.")
    also = tuple(also)
    if "params" in also and "updates" not in also:
        raise ValueError(
            "`also` has 'params', which are compared with 'updates': name both."
        )
    checked_quantiles(quantiles)
    parameters = inspect.signature(factory).parameters
    if "eps" not in map(canonical, parameters):
        raise TypeError(
            f"`factory` has no argument `eps`: it takes {', '.join(parameters)}. Give "
            "it one, and what it means to `rmsprop` or `scale_by_rms`."
        )
    # Not the factory's own signature, whose `bind` may make arrays of numbers.
    signature = inspect.Signature(list(parameters.values()))

    def build(*args: P.args, **kwargs: P.kwargs) -> Any:
        tx = optax.with_extra_args_support(factory(*args, **kwargs))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)

        def look(inner: Any, count: Any, *seen: Any) -> Diagnostics:
            options = _options(factory, given, inner, count)
            shown = dict(zip(also, seen, strict=True))
            return values(inner, **shown, **options, quantiles=quantiles)

        def on_device(*seen: Any) -> Diagnostics:
            # As in a step; what waits in the host's memory would not mix with numbers.
            return look(*jax.device_put(seen, jax.memory.Space.Device))

        def init(params: optax.Params) -> Any:
            inner = tx.init(params)
            shapes = jax.eval_shape(on_device, inner, 0, *[params] * len(also))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return WatchState(inner, zeros)

        def update(
            updates: optax.Updates,
            state: Any,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, Any]:
            _matching.state_of("watch", state, WatchState)
            if "params" in also and params is None:
                raise ValueError(
                    "`watch` needs the parameters: call update(gradients, state, "
                    "params), or leave 'params' out of `also`."
                )
            steps, inner = tx.update(updates, state.inner_state, params, **extra_args)
            all_seen = {"gradients": updates, "updates": steps, "params": params}
            count = _count(state.inner_state)
            return steps, WatchState(
                inner, look(inner, count, *[all_seen[name] for name in also])
            )

        return optax.GradientTransformationExtraArgs(placed(init), update)

    return functools.wraps(factory)(build)


def _options(
    factory: Callable[..., Any], given: dict[str, Any], state: Any, count: Any
) -> dict[str, Any]:
    """Returns the arguments of `values` that a call of `factory` says, for a step."""
    injected = optax.tree_utils.tree_get_all_with_path(state, "hyperparams")
    given = {**given, **(injected[0][1] if injected else {})}
    native = inspect.unwrap(factory)
    if native in map(inspect.unwrap, dialects.DIALECTS.values()):
        given = native(**given)
    given = {canonical(name): value for name, value in given.items()}
    rate = given.get("learning_rate")
    rate = rate(count) if callable(rate) else rate
    return {
        "learning_rate": 1.0 if rate is None else rate,
        "eps": given["eps"],
        "eps_in_sqrt": given.get("eps_in_sqrt", True),
    }


def _count(state: Any) -> Any:
    """Returns the number of updates done, which is what a schedule gets."""
    found = optax.tree_utils.tree_get_all_with_path(state, "count")
    return next((count for _, count in found if jnp.ndim(count) == 0), 0)
