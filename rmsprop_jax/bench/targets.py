"""TPUs and GPUs that are not here, by name: what XLA compiles ahead of time for."""

import contextlib
import importlib
import importlib.util
import os
import re
from typing import Any

import jax

from .gpus import GPUS, description

LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Without these libtpu looks for a TPU, complains, and locks out another process."""

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
"""The modules of JAX's CUDA plugin, of which one has to be installed."""

CUDA_LIBRARIES = (
    "nvidia-cuda-runtime", "nvidia-cuda-cupti", "nvidia-cuda-nvcc", "nvidia-nvvm",
    "nvidia-cuda-crt", "nvidia-nvjitlink",
)  # fmt: skip
"""What the plugin loads to compile. cuDNN, cuBLAS, NCCL and others are for running."""

COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_autotune_level": 0},
}
"""By platform. XLA would time variants of matrix products on a GPU to choose one."""


def tpu(name: str) -> Any:
    """Returns the devices of a TPU topology, such as "v5e:2x2", by libtpu.

    Raises:
      ModuleNotFoundError: without libtpu.
      ValueError: for a name that libtpu does not know.
    """
    importlib.import_module("libtpu")
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return _topology(name, platform="tpu").devices
    except Exception as error:
        raise ValueError(
            f"libtpu knows no {name!r}; a topology is such as v5e:2x2: {_line(error)}"
        ) from None


def gpu(name: str) -> Any:
    """Returns the devices of GPUs, such as "h100", "h100:8" or "h100:2x8" (two nodes).

    Raises:
      ModuleNotFoundError: without JAX's CUDA plugin.
      ValueError: for a name that is not known here, or a plugin that does not start.
    """
    found = re.fullmatch(r"(\w+)(?::(?:([1-9]\d*)x)?([1-9]\d*))?", name)
    if found is None or found[1] not in GPUS:
        raise ValueError(
            f"no GPU is named {name!r}: one of {', '.join(GPUS)}; several are such as "
            "h100:8, or h100:2x8 for two nodes of eight"
        )
    if not has_cuda_plugin():
        raise ModuleNotFoundError("JAX's CUDA plugin", name=CUDA_PLUGINS[0])
    nodes, each = int(found[2] or 1), int(found[3] or 1)
    try:
        return _topology(
            platform="cuda",
            target_config=description(GPUS[found[1]]),
            topology=f"1x{nodes}x{each}",
        ).devices
    except Exception as error:
        raise ValueError(
            f"JAX's CUDA plugin does not describe {name!r}: {_line(error)}"
        ) from None


def has_cuda_plugin() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    return any(map(_installed, CUDA_PLUGINS))


def light_list() -> list[str]:
    """Returns the packages that compile for GPUs: an eighth of what runs there needs.

    They are for `pip install --no-deps`; the plugin is that of the installed JAX.
    """
    plugin = (f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt"))
    return [*plugin, *CUDA_LIBRARIES]


BY_OPTION = {"tpu": tpu, "gpu": gpu}


def compiled(lowered: Any, devices: Any) -> Any:
    """Returns the compiled program of `jax.stages.Lowered`, for such devices."""
    return lowered.compile(COMPILER_OPTIONS.get(devices[0].platform))


def _topology(*name: str, **options: Any) -> Any:
    with contextlib.suppress(RuntimeError):  # too late: it has started on something
        jax.config.update("jax_platforms", "cpu")
    topologies = importlib.import_module("jax.experimental.topologies")
    return topologies.get_topology_desc(*name, **options)


def _installed(module: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # of the package around it
        return importlib.util.find_spec(module) is not None
    return False


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
