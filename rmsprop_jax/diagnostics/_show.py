"""Diagnostics for loggers and for people: a flat dictionary, a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import _checks
from .._files import needed
from ._trees import field_of, names, nodes, pure, state_in
from ._values import QUANTILES, Diagnostics, Values

if TYPE_CHECKING:
    from rich.table import Table

# By field: the header of its column.
_HEADERS = {
    "eps_dominates": "ε dominates",
    "at_lowest": "ν at its lowest",
    "at_highest": "at its highest",
    "signal_to_noise": "Σμ²/Σν",
    "update_rms": "update, rms",
    "update_to_param": "update / param",
    "lost": "lost",
    "skipped": "skipped",
    "state_bytes": "bytes",
}
_FRACTIONS = ("eps_dominates", "at_lowest", "at_highest", "lost")
_COUNTS = ("skipped", "state_bytes")


def to_log(
    state: Any,
    values: Diagnostics | None = None,
    *,
    prefix: str = "rms/",
    quantiles: Sequence[float] = QUANTILES,
) -> dict[str, float]:
    """Returns diagnostics as a flat dictionary of floats, for a logger.

    Args:
      state: as for `table`.
      values: what to show; by default what `watch` kept in the state.
      prefix: of every key.
      quantiles: those that `values` were made with.

    Returns:
      Keys such as "rms/effective_rate_p50/w" or "rms/update_rms/total", where quantile
      0.5 is p50. What was not asked for is left out.

    Raises:
      ValueError: if there are no values, or several, or they are not of one state.

    Example:
      >>> import jax.numpy as jnp
      >>> from rmsprop_jax import diagnostics, scale_by_rms
      >>> tx = diagnostics.watch(scale_by_rms, also=diagnostics.ALSO)()
      >>> params = {"w": jnp.ones(3)}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> logged = diagnostics.to_log(state)
      >>> logged["rms/skipped/w"], round(logged["rms/update_to_param/total"], 3)
      (0.0, 3.162)
    """
    _checks.instance("prefix", prefix, str, "text")
    rows = _rows(state, values)
    logged = {}
    for name, row in rows.items():
        for field, value in row._asdict().items():
            if field == "effective_rate":
                for q, rate in zip(labels_of(quantiles, value), value, strict=True):
                    logged[f"{prefix}{field}_{q}/{name}"] = float(rate)
            elif value is not None:
                logged[f"{prefix}{field}/{name}"] = float(value)
    return logged


def table(
    state: Any,
    values: Diagnostics | None = None,
    *,
    quantiles: Sequence[float] = QUANTILES,
) -> "Table":
    """Returns diagnostics as a table of `rich`, one row for each leaf, then the total.

    Args:
      state: what names the leaves: the state that `init` or `update` returned; a Flax
        `nnx.Optimizer` or its `opt_state`, and what `nnx.state`, `nnx.as_pure` or
        `nnx.to_pure_dict` makes of either; a `TrainState` or its `opt_state`.
      values: what to show; by default what `watch` kept in the state.
      quantiles: those that `values` were made with.

    Returns:
      A `rich.table.Table`: ``rich.print`` it, or let a notebook show it.

    Raises:
      ImportError: without rich.
      ValueError: as `to_log`.
    """
    made = needed("rich.table", "A table of diagnostics", extra="demo").Table
    rows = _rows(state, values)
    total = rows["total"]._asdict()
    shown = made(
        title="effective learning rates, by their quantiles, and what else is to know",
        title_justify="left", title_style="",
        box=needed("rich.box", "A table of diagnostics", extra="demo").SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )  # fmt: skip
    shown.add_column("leaf", no_wrap=True)
    fields = [field for field in _HEADERS if total[field] is not None]
    labels = labels_of(quantiles, total["effective_rate"])
    for header in [*labels, *(_HEADERS[field] for field in fields)]:
        # Folded where it is too narrow: a number without its exponent is another one.
        shown.add_column(header, justify="right", overflow="fold")
    for name, row in rows.items():
        if name == "total":
            shown.add_section()
        cells = [_scientific(rate, 1) for rate in row.effective_rate]
        cells += [_cell(field, getattr(row, field)) for field in fields]
        shown.add_row(name, *cells)
    return shown


def _rows(state: Any, values: Any) -> dict[str, Values]:
    """Returns the values of each leaf by its name, those of all as "total"."""
    state, values = state_in(state), pure(values)
    if values is None:
        watched = nodes(state, "inner_state", "diagnostics")
        if len(watched) != 1:
            raise ValueError(
                f"`state` has {len(watched) or 'no'} diagnostics: make the optimizer "
                "with `watch`, pass one of its parts, or the `values`."
            )
        # Of several optimizers the leaves are those of the one that is watched.
        (state,) = watched
        values = field_of(state, "diagnostics")
    if isinstance(values, Mapping) and {*values} == {*Diagnostics._fields}:
        # What `nnx.state` returns has no classes.
        values = Diagnostics(*(Values(**values[x]) for x in Diagnostics._fields))
    _checks.instance("values", values, Diagnostics, "what `diagnostics.values` returns")
    leaves, total = jax.device_get(tuple(values))
    called = leaf_names(state)
    if np.shape(total.state_bytes) or len(leaves.state_bytes) != len(called):
        raise ValueError(
            f"`values` has state_bytes of shape {np.shape(leaves.state_bytes)}, but "
            f"`state` has {len(called)} leaves: pass the values of one step and state."
        )
    rows = {
        name: Values(*(None if x is None else x[i] for x in leaves))
        for i, name in enumerate(called)
    }
    return {**rows, "total": total}


def leaf_names(state: Any) -> list[str]:
    """Returns the names of the leaves; that of a tree which is an array is "params"."""
    return [name or "params" for name in names(state)]


def labels_of(quantiles: Sequence[float], rates: Any) -> list[str]:
    _checks.instance("quantiles", quantiles, Sequence | np.ndarray, "several numbers")
    if len(quantiles) != len(rates):
        raise ValueError(
            f"`quantiles` has {len(quantiles)} numbers, but the values were made with "
            f"{len(rates)}: pass the same ones."
        )
    return [f"p{100 * q:g}" for q in quantiles]


def _cell(field: str, value: Any) -> str:
    if field in _FRACTIONS:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if field in _COUNTS else _scientific(value, 2)


def _scientific(value: Any, digits: int) -> str:
    """Returns 1.6e-2, a digit shorter than Python has it."""
    return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e+")
