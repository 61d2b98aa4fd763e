"""The short form of the long torments: a run killed at random moments, and a few faults, end as if nothing had been."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its training runs")]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_killed_at_random_moments():
    done = tool("chaos", "--kills", "5", "--updates", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 times SIGKILL" in done.stdout
    assert "all of them are equal to the undisturbed run to the bit" in done.stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("newest checkpoint cut short", "is damaged (its hash differs)"),
        ("Ctrl-C", "stopped after update"),
        ("a reader process killed", "out of memory?"),
    ],
)
def test_faults(tmp_path, fault, words):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults: made by tools/faults.py -->\nold\n<!-- /faults -->\nafter\n")
    done = tool("faults", "--only", fault, "--write", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    before, head, _, row, _, after = page.read_text().splitlines()[:1] + page.read_text().splitlines()[2:]
    assert (before, after) == ("before", "after")
    assert head.startswith("| fault |")
    assert row.startswith(f"| {fault} |")
    assert words in row
    assert row.endswith("| equal to the bit |")
