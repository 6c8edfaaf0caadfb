"""Eight virtual CPU devices, and no implicit dtype promotion unless a test says so."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Holds everywhere except where Optax's or Flax's own code promotes."""
    if request.node.get_closest_marker("promotion"):
        yield
    else:
        with jax.numpy_dtype_promotion("strict"):
            yield


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Most tests spend their time in the compiler: numbers are tested optimized."""
    quick = request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
