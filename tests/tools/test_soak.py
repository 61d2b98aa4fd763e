"""The soak's watch: it sees growth, open files and who is left behind, and calls a short life one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc"),
]
GROWS = """
import subprocess, sys, time
held, files = [], []
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
while True:
    held.append(bytearray(b"x") * 2_000_000)
    files.append(open(sys.executable, "rb"))
    time.sleep(0.1)
"""


def soak(folder: Path, program: str, seconds: float) -> tuple[int, str, list[dict]]:
    command = [sys.executable, ROOT / "tools" / "soak.py", folder / "looks.jsonl", "--minutes", str(seconds / 60)]
    command += ["--every", "0.2", "--", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr, list(map(json.loads, (folder / "looks.jsonl").open()))


def test_growth_and_those_left_behind_are_seen(tmp_path):
    """Two megabytes and a file more at every turn; the child outlives its parent."""
    status, said, looks = soak(tmp_path, GROWS, 6)
    assert status == 1, said
    assert said.count("LEFT BEHIND: process ") == 1
    assert looks[-1]["processes"] == 2
    assert looks[-1]["rss"] > looks[len(looks) // 2]["rss"] > 0
    assert looks[-1]["files"] > looks[len(looks) // 2]["files"]


def test_a_short_life_is_no_soak(tmp_path):
    assert soak(tmp_path, "pass", 5)[0] == 1


def test_a_quiet_command_passes(tmp_path):
    status, said, _ = soak(tmp_path, "import time; time.sleep(600)", 3)
    assert status == 0, said
    assert "LEFT BEHIND" not in said
