"""`round_params`: updates that move parameters of 16 or 8 bits without bias."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import _bits, _grid, _leaves, _matching, _store
from ._placement import placed

FORMS = ("stochastic", "remainder")
"""What `round_params` can do."""

DEFAULT = "remainder"
"""What `rmsprop(..., round_params=True)` means: on the mean of four nets at three
decays its test loss was within 0.61 % (95 %) of that of float32 master weights, that of
the other form 1.3 % higher (`rmsprop-jax claims bf16`)."""


class RoundParamsState(NamedTuple):
    """State of `round_params`.

    Attributes:
      count: how many updates were done, an int32 scalar.
      remainder: with ``form="remainder"`` an int8 array for each narrow parameter: what
        it lacks, in 256ths of the distance to its neighbours; None for wide ones.
        Otherwise None.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    remainder: Any = None


def round_params(
    seed: jax.typing.ArrayLike = 0,
    *,
    form: Literal["stochastic", "remainder"] = "stochastic",
) -> optax.GradientTransformation:
    """Makes updates that move parameters of 16 or 8 bits without bias.

    ::

        u ← round(θ + u) − θ

    Nearest rounding leaves a parameter in bfloat16 where it is if the update is under
    1/512 of it. Put this last in the chain: whatever scales or changes its updates
    afterwards, the sums are rounded to nearest again, and small updates are lost
    without an error. Where the state is seen as a whole, in `merge`, that is an error;
    of `optax.named_chain`, whose state is a dictionary, the order cannot be seen.

    Its updates have the parameters' dtype, so that `optax.apply_updates`,
    `equinox.apply_updates` and ``p + u`` do the same: up to |u| = |p| / 4 the sum is
    exactly one of the two neighbours of the target, beyond that it may be some numbers
    away, and always its mean is the target. Parameters of 32 bits and more pass.

    With ``form="remainder"`` the parameters are rounded to nearest, and what they lose
    is kept in a byte, as for weights of 8 more bits of mantissa. `merge` returns these.

    Args:
      seed: an integer, for runs that shall differ; may be traced.
      form: "stochastic", which needs no memory beside a count, or "remainder", which
        needs a byte for each narrow parameter.

    Returns:
      An `optax.GradientTransformation` whose `update` needs `params`.

    Raises:
      ValueError: if `update` gets no `params`, or `form` is neither.
      TypeError: if `seed` is not an integer, or a parameter has a narrow dtype that
        cannot be rounded without bias (float8_e8m0fnu, floats of 4 and 6 bits).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rmsprop_jax import rmsprop, rounding
      >>> tx = optax.chain(rmsprop(1e-3), rounding.round_params())
      >>> params = jnp.ones(1000, jnp.bfloat16)  # whose next numbers are 0.004 away
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...     updates, state = tx.update(jnp.ones_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(0.98 < params.astype(float).mean() < 0.995)
      True

    References:
      Zamirai et al., Revisiting BFloat16 Training, 2020
      (https://arxiv.org/abs/2010.06192); the remainder: FlashOptim, 2026
      (https://arxiv.org/abs/2602.23349).
    """
    _bits.check_seed(seed)
    if form not in FORMS:
        raise ValueError(f"`form` must be 'stochastic' or 'remainder', got {form!r}.")
    keeps = form == "remainder"

    def init(params: optax.Params) -> Any:
        def zeros(path: Any, p: Any) -> Any:
            if grid_of(path, p) is None or not keeps:
                return None
            return jnp.full_like(p, 0, dtype=jnp.int8)

        remainder = jax.tree_util.tree_map_with_path(zeros, params)
        count = jnp.zeros((), jnp.int32)
        return RoundParamsState(count, remainder if keeps else None)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        _matching.state_of("round_params", state, RoundParamsState)
        if params is None:
            raise ValueError(
                "`round_params` needs the parameters: call update(gradients, state, "
                "params)."
            )
        _matching.same_tree("updates", updates, "params", params)
        source = _bits.sources(params, ("params",), state.count, seed)

        def leaf(path: Any, u: Any, p: Any, remainder: Any) -> Any:
            grid = grid_of(path, p)
            needs = keeps and grid is not None
            if needs == (remainder is None):
                raise ValueError(
                    f"`form` is {form!r}, but the state has "
                    f"{'no' if needs else 'a'} remainder for "
                    f"params{jax.tree_util.keystr(path)}: it is of the other form, or "
                    "of parameters of another dtype. "
                    "`rmsprop_jax.convert.migrate(state, tx, params)` makes one of "
                    "this form."
                )
            if grid is None:
                return u, remainder
            if not jnp.issubdtype(u.dtype, jnp.inexact):
                raise _matching.not_floating("updates", path, u)
            _leaves.same_kind(path, "update", u, "parameter", p)
            return _rounded(source(path, "params", p), u, p, remainder, grid=grid)

        updates, remainder = _leaves.each(leaf, updates, params, state.remainder)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, RoundParamsState(count, remainder if keeps else None)

    return optax.GradientTransformation(placed(init), update)


def grid_of(path: Any, p: Any) -> _grid.Grid | None:
    """Returns the grid of a narrow parameter, None for a wide one."""
    dtype = jnp.result_type(p)
    grid = _grid.grid_of(dtype)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if grid is None and is_float and jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"params{jax.tree_util.keystr(path)} has dtype {dtype}, which "
            "`round_params` cannot round without bias; it takes float16, bfloat16 and "
            "the floats of 8 bits that have a mantissa. Keep this one in float32, or "
            "leave it out with `optax.masked`."
        )
    return grid


@partial(jax.jit, static_argnames="grid")
def _rounded(
    source: _bits.Source, u: Any, p: Any, remainder: Any, *, grid: _grid.Grid
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the update of one leaf in the parameter's dtype, and its remainder."""
    dtype = jnp.result_type(p)
    u, p = (jnp.asarray(x).astype(jnp.float32) for x in (u, p))
    bits = source(p + u)
    if remainder is None:
        return _grid.step_to(p, u, p + u, bits, grid).astype(dtype), None
    target = _grid.weight(p, remainder, grid) + u
    d, remainder = _grid.step_and_remainder(p, u, target, bits, grid)
    remainder = remainder.astype(jnp.int8)
    return _store.tied(d, remainder).astype(dtype), remainder
