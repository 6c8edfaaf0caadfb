"""kill -9 at random moments, and damage: kill.py and soak.py do more of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill.py"


@pytest.mark.slow
def test_a_run_survives_kill_9_to_the_bit():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "24"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    survived, tried, in_save = map(int, re.findall(r"\d+", run.stdout))
    assert survived == tried == 24
    assert in_save >= 3


@pytest.mark.slow
def test_a_short_soak():
    """Damage, a reader beside a writer, and a folder that keeps all it gets."""
    script = SCRIPT.with_name("soak.py")
    trials = {"corruptions": 16, "reads": 20, "checkpoints": 40}
    options = [f"--{name}={times}" for name, times in {**trials, "kills": 0}.items()]
    run = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for name, times in trials.items():
        assert f"{name}: survived {times} of {times};" in run.stdout
