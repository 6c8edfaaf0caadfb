"""The error of nu and of the updates against a float64 reference, step by step."""

import dataclasses
import math
from typing import Any

import numpy as np

from ..lab.progress import Show, silent
from ..lab.results import Cells
from . import forms, streams, theory
from .streams import Stream

DECAYS = (0.9, 0.99, 0.999)
EVERY = 20
"""Errors are taken at every so many steps, in the second half of a stream."""

WITHIN = 1.2
"""A jump is over when the mean of nu is within this factor of its new level."""

# Mean |du/u| on the first stream in percent, by decay; and |bias of nu| in percent.
TARGETS = {
    "uint16": (0.12, 0.4, 1.2),
    "bfloat16": (0.3, 0.8, 2.0),
    "uint8": (7.5, 12.0, 13.0),
}
BIAS_TARGET = 0.5


@dataclasses.dataclass
class Samples:
    """What is kept of one form at one decay while it follows a stream.

    Attributes:
      errors: u / u_exact - 1 of the sampled steps in the second half, where g is not 0.
      ratios: the mean of nu / nu_exact over coordinates, at all sampled steps.
      by_coordinate: the sum of nu / nu_exact over the sampled steps in that half.
      level: the mean over coordinates of nu in units of the first scale squared, at
        all steps.
      last: nu / nu_exact after the last step.
    """

    errors: list[np.ndarray] = dataclasses.field(default_factory=list)
    ratios: list[np.ndarray] = dataclasses.field(default_factory=list)
    by_coordinate: Any = 0.0
    level: list[np.ndarray] = dataclasses.field(default_factory=list)
    last: Any = None


class Reference:
    """RMSProp in float64, from nu = 0."""

    def __init__(self, decay: float, coordinates: int) -> None:
        self.decay, self.nu = decay, np.zeros(coordinates)

    def __call__(self, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns updates and nu, [steps, coordinates], of gradients of that shape."""
        gradients = gradients.astype(np.float64)
        nus = np.empty_like(gradients)
        for step, g in enumerate(gradients):
            self.nu = self.decay * self.nu + (1 - self.decay) * g * g
            nus[step] = self.nu
        root = np.sqrt(nus)
        return np.divide(gradients, root, where=root > 0, out=np.zeros_like(root)), nus


def stretches() -> int:
    """Returns how many times the display is opened."""
    return len(streams.STREAMS)


def measure(
    quick: bool = False,
    seeds: int | None = None,
    show: Show = silent,
    cells: Cells | None = None,
) -> dict[str, Any]:
    """Returns the settings and, by stream, decay and form, what was measured.

    Args:
      quick: few steps and coordinates.
      seeds: not for this part: coordinates are its samples.
      show: what a person sees.
      cells: keeps the streams that are done.
    """
    del seeds
    coordinates = 256 if quick else 4096
    cells = cells or Cells(None, "tracking", False)
    cells.begin({"coordinates": coordinates})
    found = {}

    def measured(name: str, stream: Stream) -> dict[str, Any]:
        with show(f"{name}, {len(DECAYS)} decays", stream.steps) as on_step:
            return {
                "gradients": stream.title,
                "steps": stream.steps,
                "by_decay": follow(stream, coordinates, on_step),
            }

    for name, stream in streams.STREAMS.items():
        stream = streams.quick(stream) if quick else stream
        found[name] = cells.of(
            name, lambda name=name, stream=stream: measured(name, stream)
        )
    return {
        "settings": {
            "coordinates": coordinates,
            "sampled_every": EVERY,
            "eps": 0,
            "within": WITHIN,
        },
        "targets": {
            "stream": next(iter(streams.STREAMS)),
            "mean_error_percent": dict(TARGETS),
            "bias_of_nu_percent": BIAS_TARGET,
        },
        "streams": found,
    }


def follow(stream: Stream, coordinates: int, on_step: Any) -> dict[str, Any]:
    """Returns the measures of every form, by decay, on one stream."""
    followers = {
        decay: {name: forms.make(name, decay, coordinates) for name in forms.names()}
        for decay in DECAYS
    }
    references = {decay: Reference(decay, coordinates) for decay in DECAYS}
    samples = {
        decay: {name: Samples() for name in followers[decay]} for decay in DECAYS
    }
    theories = {decay: theory.Theory(decay) for decay in DECAYS}
    length = min(500, stream.steps // 4)
    units = stream.scales(coordinates) ** 2
    for index, gradients in enumerate(stream.chunks(coordinates, length)):
        late = 2 * index * length >= stream.steps
        for decay in DECAYS:
            exact = references[decay](gradients)
            if late:
                theories[decay].add(exact[1])
            for name, advance in followers[decay].items():
                kept = samples[decay][name]
                _keep(kept, gradients, advance(gradients), exact, units, late)
        on_step((index + 1) * length)
    return {
        str(decay): {
            name: summary(
                kept, stream, theories[decay].mean_errors(name), samples[decay]
            )
            for name, kept in samples[decay].items()
        }
        for decay in DECAYS
    }


def summary(
    kept: Samples,
    stream: Stream,
    predicted: dict[str, float],
    others: dict[str, Samples],
) -> dict[str, Any]:
    """Returns the measures of one form at one decay; errors in percent.

    Args:
      kept: of this form.
      stream: what it followed.
      predicted: of the mean error, by theory.
      others: of all forms at this decay, float32 among them.
    """
    errors = np.concatenate(kept.errors).astype(np.float64)
    sizes = np.abs(errors)
    ratios = np.concatenate(kept.ratios)
    late = ratios[len(ratios) // 2 :]
    quarters = [part.mean() for part in np.array_split(ratios, 4)]
    means = kept.by_coordinate / len(late)
    found = {
        "mean_error": 100 * sizes.mean(),
        "p99_error": 100 * np.percentile(sizes, 99),
        "rms_error": 100 * np.sqrt((errors**2).mean()),
        **{f"mean_{key}": 100 * value for key, value in predicted.items()},
        "bias_of_u": 100 * errors.mean(),
        "bias_of_nu": 100 * (late.mean() - 1),
        "bias_of_nu_standard_error": 100 * means.std(ddof=1) / math.sqrt(means.size),
        "drift_of_nu": 100 * (quarters[3] - quarters[1]),
        "stall": _largest_log(kept.last),
    }
    if stream.period:
        ours, base = (recovery(s.level, stream) for s in (kept, others["float32"]))
        found["steps_to_recover"] = ours
        found["steps_to_recover_by_float32"] = base
    return found


def recovery(level: list[np.ndarray], stream: Stream) -> dict[str, int | None]:
    """Returns the steps until nu is at its level again after the first jumps.

    None where that takes longer than the scale stays.
    """
    curve = np.concatenate(level)
    found = {}
    for jump, name in enumerate(("up", "down"), start=1):
        part = slice(jump * stream.period, (jump + 1) * stream.period)
        settled = curve[part] / stream.factor(np.arange(len(curve))[part]) ** 2
        within = np.flatnonzero((settled < WITHIN) & (settled > 1 / WITHIN))
        found[name] = int(within[0]) + 1 if within.size else None
    return found


def _keep(
    kept: Samples,
    gradients: np.ndarray,
    followed: tuple[np.ndarray, np.ndarray],
    exact: tuple[np.ndarray, np.ndarray],
    units: np.ndarray,
    late: bool,
) -> None:
    """Adds a stretch of a stream to the samples of one form."""
    kept.level.append((followed[1] / units).mean(axis=1))
    rows = slice(EVERY - 1, None, EVERY)
    u, nu, u_exact, nu_exact, g = (
        array[rows].astype(np.float64) for array in (*followed, *exact, gradients)
    )
    ratio = np.divide(nu, nu_exact, where=nu_exact > 0, out=np.ones_like(nu))
    kept.ratios.append(ratio.mean(axis=1))
    kept.last = ratio[-1]
    if late:
        kept.by_coordinate = kept.by_coordinate + ratio.sum(axis=0)
        moved = g != 0
        kept.errors.append((u[moved] / u_exact[moved] - 1).astype(np.float32))


def _largest_log(ratio: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.abs(np.log(ratio)).max())
