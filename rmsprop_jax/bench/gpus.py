"""GPUs as XLA's compiler wants them described: public numbers of each, as text."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """What the compiler is told of a GPU; sizes in bytes.

    Attributes:
      title: as the driver names it.
      capability: CUDA's compute capability, major and minor.
      cores: streaming multiprocessors.
      fpus: float32 units of a core.
      clock_ghz: of the cores.
      memory: of the device.
      bandwidth: of that memory, a second.
      l2: cache of the device.
      shared: memory for the blocks of a core, and for one block at most.
      threads: of a core at most.
    """

    title: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2: int
    shared: tuple[int, int]
    threads: int


_KIB, _MIB = 2**10, 2**20

GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 81_158 * _MIB,
        2_039_040_000_000, 40 * _MIB, (164 * _KIB, 163 * _KIB), 2048,
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 81_008 * _MIB,
        3_352_320_000_000, 50 * _MIB, (228 * _KIB, 227 * _KIB), 2048,
    ),
    "h200": Gpu(
        "NVIDIA H200", (9, 0), 132, 128, 1.98, 144_384 * _MIB,
        4_800_000_000_000, 50 * _MIB, (228 * _KIB, 227 * _KIB), 2048,
    ),
    "b200": Gpu(
        "NVIDIA B200", (10, 0), 148, 128, 1.965, 182_642 * _MIB,
        7_672_320_000_000, 126 * _MIB, (228 * _KIB, 227 * _KIB), 2048,
    ),
    "l4": Gpu(
        "NVIDIA L4", (8, 9), 58, 128, 2.04, 23_034 * _MIB,
        300_096_000_000, 48 * _MIB, (100 * _KIB, 99 * _KIB), 1536,
    ),
    "rtx4090": Gpu(
        "NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 2.52, 24_210 * _MIB,
        1_008_096_000_000, 72 * _MIB, (100 * _KIB, 99 * _KIB), 1536,
    ),
}  # fmt: skip
"""By the name that `--gpu` takes. The sizes are NVIDIA's; a kernel's bytes depend on
the program alone, how it is tiled on these."""


def description(gpu: Gpu) -> str:
    """Returns XLA's `GpuTargetConfigProto` for a GPU, in protobuf's text format."""
    major, minor = gpu.capability
    by_core, by_block = gpu.shared
    return f"""\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * _KIB}
  shared_memory_per_core: {by_core}
  shared_memory_per_block_optin: {by_block}
  threads_per_core_limit: {gpu.threads}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.title}"
"""
