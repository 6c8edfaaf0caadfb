"""kill -9 at random moments: `python tests/kill.py --kills 100` does more of it."""

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
