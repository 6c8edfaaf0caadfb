"""Two processes train what one does: data-parallel, and with ZeRO."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parent / "distributed.py"


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def train(kind, out, processes):
    environment = os.environ | {"XLA_FLAGS": ""}
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), kind, str(out),
             str(processes), str(index), str(port)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, ends
    with np.load(out) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train("data", tmp_path_factory.mktemp("alone") / "params.npz", 1)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["data", "zero"])
def test_the_result_is_that_of_one_process(kind, processes, alone, tmp_path):
    found = train(kind, tmp_path / "params.npz", processes)
    assert len(found) == len(alone)
    for got, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
