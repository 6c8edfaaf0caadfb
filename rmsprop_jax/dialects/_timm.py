"""The dialect of timm: v starts at 1, weight decay of two kinds."""

from typing import Any, Unpack

import optax

from .. import _checks
from ._dialect import Options, dialect, is_zero, unless_zero

Rate = optax.ScalarOrSchedule


@dialect({"nesterov": "timm's RMSpropTF has no Nesterov momentum"})
def timm(
    lr: Rate = 1e-2,
    alpha: float = 0.9,
    eps: float = 1e-10,
    weight_decay: float = 0,
    momentum: float = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    foreach: bool | None = None,
    *,
    max_lr_snapshot: float | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """`RMSpropTF` of timm: like TF1's, with three kinds of weight decay, and caution.

    ::

        g ← g + weight_decay·θ
        v ← alpha·v + (1 − alpha)·g², from v = 1
        m ← alpha·m + (1 − alpha)·g, from m = 0  (where centered: v − m² for v below)
        u = g / √(v + eps)
        b ← momentum·b + lr·u
        θ ← θ − b

    With `decoupled_decay` θ ← θ − lr·weight_decay·θ instead of the first line; with
    `corrected_weight_decay` too, lr²/max_lr_snapshot in the place of lr there.

    Args:
      lr: the learning rate, a number or an Optax schedule.
      alpha: the decay, in [0, 1).
      eps: at least 0, in units of the squared gradient.
      weight_decay: a number, at least 0.
      momentum: in [0, 1]; 0 keeps no buffer.
      centered: whether to subtract the squared mean.
      decoupled_decay: whether weight decay acts on the parameters, not the gradient.
      corrected_weight_decay: whether it falls with the square of the learning rate;
        only where decoupled.
      lr_in_momentum: whether the buffer gathers steps (TF) or directions (torch).
      caution: whether momentum that points against the gradient is left out, as
        `cautious` of `rmsprop`; no effect without momentum.
      foreach: chooses timm's implementation; no effect here.
      max_lr_snapshot: the learning rate that timm's constructor got, the peak of its
        schedule; by default lr, or its value at step 0, which has to be its peak.
      skip_nonfinite, nu_dtype, mu_dtype, accumulator_dtype, seed, round_params,
        weight_decay_mask: as for `rmsprop`, where they apply.

    Returns:
      The `optax.GradientTransformationExtraArgs` that `rmsprop` returns.

    Raises:
      ValueError: for a number out of its range.
      TypeError: for an argument that it does not have, or of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import dialects
      >>> tx = dialects.timm(0.016, 0.9, eps=1e-3, weight_decay=1e-5, momentum=0.9)
      >>> params = jnp.zeros(1)
      >>> updates, state = tx.update(jnp.ones(1), tx.init(params), params)
      >>> print(f"{updates[0]:.4f}")  # from v = 1
      -0.0160

    References:
      timm.optim.RMSpropTF in timm 1.0.31.
    """
    del foreach
    mode, rate = "coupled", unless_zero(weight_decay)
    if decoupled_decay and rate is not None:
        mode = "decoupled"
        if corrected_weight_decay:
            mode = "independent"
            rate = _corrected(lr, rate, _peak(lr, max_lr_snapshot))
    return dict(
        learning_rate=lr,
        decay=alpha,
        eps=eps,
        initial_scale=1.0,
        centered=centered,
        momentum=unless_zero(momentum),
        learning_rate_in_momentum=lr_in_momentum,
        cautious=caution and not is_zero(momentum),
        weight_decay=rate,
        weight_decay_mode=mode,
        **options,
    )


def _peak(lr: Any, max_lr_snapshot: Any) -> Any:
    """Returns the learning rate that timm's correction compares with."""
    if max_lr_snapshot is None and callable(lr):
        try:
            max_lr_snapshot = lr(0)
            rises = any(lr(count) > max_lr_snapshot for count in (1, 10, 100, 1000))
        except Exception as error:
            raise ValueError(
                "`corrected_weight_decay` compares `lr` with its peak, and this "
                "schedule has no value before a run: pass its peak, `max_lr_snapshot`."
            ) from error
        if rises:
            raise ValueError(
                "`corrected_weight_decay` compares `lr` with its peak, and this "
                "schedule rises after step 0: pass its peak, `max_lr_snapshot`."
            )
    peak = lr if max_lr_snapshot is None else max_lr_snapshot
    _checks.hyperparameter("max_lr_snapshot", peak, "finite and greater than 0")
    return peak


def _corrected(lr: Any, weight_decay: Any, peak: Any) -> Any:
    if callable(lr):
        return lambda count: lr(count) * (lr(count) / peak) * weight_decay
    return lr * (lr / peak) * weight_decay
