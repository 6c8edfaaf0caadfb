"""The 8-bit state of bitsandbytes: a code and a map, and a scale for every block."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._torch_files import array

BLOCKS = (256, 2048, 4096)  # elements that share a scale, the newest versions first


def dequantised(state: Mapping[str, Any]) -> np.ndarray:
    """Returns the value of bitsandbytes' 8-bit state: code, map and scale per block."""
    codes, scales = array(state["state1"]), array(state["absmax1"])
    values = array(state["qmap1"])[codes.ravel()]
    block = block_of(codes.size, scales.size)
    values *= np.repeat(scales, block)[: values.size]
    return values.reshape(codes.shape)


def quantised(
    value: np.ndarray, qmap: np.ndarray, block: int = BLOCKS[0]
) -> dict[str, np.ndarray]:
    """Returns the nearest codes of bitsandbytes' 8-bit state, as it rounds."""
    flat = np.asarray(value, np.float32).ravel()
    starts = range(0, flat.size, block)
    scales = np.array([np.abs(flat[i : i + block]).max() for i in starts], np.float32)
    safe = np.where(scales > 0, scales, 1)
    scaled = flat / np.repeat(safe, block)[: flat.size]
    middles = (qmap[1:] + qmap[:-1]) / 2
    codes = np.searchsorted(middles, scaled).astype(np.uint8)
    return {"state1": codes.reshape(value.shape), "qmap1": qmap, "absmax1": scales}


def block_of(size: int, scales: int) -> int:
    """Returns how many elements share a scale."""
    for block in BLOCKS:
        if -(-size // block) == scales:
            return block
    raise ValueError(f"bitsandbytes' state of {size} elements has {scales} scales.")
