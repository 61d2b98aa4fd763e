"""The growth tables: a start that reads what it wrote, and a line per batch."""

import sys

import pytest
from tiny_run import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import growth


def test_a_start_is_timed_by_part():
    line = growth.start(300)
    assert line.startswith("300 utterances (0 MB of JSON lines): ")
    assert [part.rsplit(" ", 2)[0] for part in line.split("; ")[1].split(", ")] == [
        "read and check",
        "choose by length",
        "order of an epoch",
    ]


def test_a_line_per_batch(monkeypatch):
    monkeypatch.setattr(
        growth, "run_apart", lambda case: {"step": sum(case.seconds) / 8, "peak_gb": 1.0, "gflop": 90.0}
    )
    lines = growth.steps("wav2vec2-small", [(10.0,) * 3, (30.0,)], "fp32", 1).splitlines()
    assert lines[2:] == ["| 3 x 10 s | 3.750 | 8.0 | 1.00 | 3.00 |", "| 1 x 30 s | 3.750 | 8.0 | 1.00 | 3.00 |"]


def test_what_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(growth, "steps", lambda preset, batches, *_: f"{preset} {[len(b) for b in batches]}")
    for what, sizes in (("length", [6, 2, 1]), ("batch", [1, 4, 16, 64])):
        monkeypatch.setattr(sys, "argv", ["growth.py", what])
        growth.main()
        assert capsys.readouterr().out == f"wav2vec2-small {sizes}\n"
    monkeypatch.setattr(sys, "argv", ["growth.py", "width"])
    with pytest.raises(SystemExit):
        growth.main()
