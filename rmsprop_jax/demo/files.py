"""`results.json`, and files that are written whole or not at all."""

import contextlib
import errno
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rmsprop_jax

from .report import Outcome, at_edge, verdict


def results(
    outcomes: Sequence[Outcome], options: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Returns everything that was measured, in the types of JSON and NumPy."""
    sweeps = [sweep for outcome in outcomes for sweep in outcome.sweeps.values()]
    return {
        "options": {k: v for k, v in options.items() if k not in ("run", "command")},
        "versions": versions(),
        "seconds": seconds,
        "compile_seconds": sum(sweep.compile_seconds for sweep in sweeps),
        "tasks": {outcome.task.name: _task(outcome) for outcome in outcomes},
    }


def json_bytes(value: Any) -> bytes:
    """Returns JSON in UTF-8; a number that is not finite becomes null."""
    return (json.dumps(_plain(value), indent=1, allow_nan=False) + "\n").encode()


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files by name into a folder, made if need be, its parents too.

    Each is first written in full under a temporary name next to its own, and none is
    moved to its own before all are; a failure until then leaves what was there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    moves = {folder / f".{name}.{os.getpid()}.tmp": folder / name for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for final in moves.values():
            if final.is_dir():
                # A move onto it would fail, perhaps after another has succeeded.
                raise IsADirectoryError(
                    errno.EISDIR, os.strerror(errno.EISDIR), str(final)
                )
        for temporary, data in zip(moves, contents.values(), strict=True):
            temporary.write_bytes(data)
        for temporary, final in moves.items():
            os.replace(temporary, final)
    except BaseException:
        for temporary in moves:
            with contextlib.suppress(OSError):
                temporary.unlink()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _task(outcome: Outcome) -> dict[str, Any]:
    return {
        "title": outcome.title,
        "batch_size": outcome.batch_size,
        "verdict": verdict(outcome.test_losses),
        "optimizers": {
            name: {
                "learning_rates": sweep.learning_rates,
                "final_validation_loss_by_rate_and_seed": sweep.validation_loss[-1],
                "best_learning_rate": sweep.learning_rates[sweep.best],
                "best_is_at_edge": at_edge(sweep),
                "test_loss_by_seed": sweep.test_loss,
                "test_accuracy_by_seed": sweep.test_accuracy,
                "curve_steps": sweep.evaluated_at,
                "curve_validation_loss_by_step_and_seed": sweep.validation_loss[
                    :, sweep.best
                ],
                "parameters": sweep.parameters,
                "state_bytes_per_parameter": sweep.state_bytes_per_parameter,
                "seconds_per_step_and_run": sweep.step_seconds,
                "compile_seconds": sweep.compile_seconds,
            }
            for name, sweep in outcome.sweeps.items()
        },
    }


def versions() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "rmsprop_jax": rmsprop_jax.__version__,
        "machine": platform.platform(),
        "platform": device.platform,
        "device": device.device_kind,
        "cpu_count": os.cpu_count(),
    }


def _plain(value: Any) -> Any:
    """Returns a value in the types that `json` knows."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case Path():
            return str(value)
        case _:
            return value
