"""The driver of the speed table: turns, going on where it stopped, ratios; and that its rows are what they say."""

import sys

import pytest
from tiny_run import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import speed_table

from speechssl.bench import peers
from speechssl.build import build_objective
from speechssl.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """A machine on which ours takes a second and others three, unless it is told that one fails."""
    calls, failing = [], set()

    def run_apart(case, environment):
        calls.append((case.peer, case.precision, bool(environment)))
        if case.peer in failing:
            raise UserError(f"{case.peer} fails.")
        ours = case.peer == "ours"
        return {"step": 1.0 if ours else 3.0, "peak_gb": 1.0 if ours else 4.0} | ({"gflop": 50.0} if ours else {})

    monkeypatch.setattr(speed_table, "run_apart", run_apart)
    monkeypatch.setattr(speed_table, "gemm_limit", lambda *_: 100.0)
    return calls, failing


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["speed_table.py", *map(str, arguments)])
    speed_table.main()
    return capsys.readouterr().out


def test_toolkits_take_turns_and_a_table_is_made(machine, monkeypatch, capsys, tmp_path):
    calls, _ = machine
    out = run(monkeypatch, capsys, tmp_path / "a.jsonl", "--only", "base-fp32", "--rounds", 2)
    turn = [("ours", "fp32", False), ("transformers", "fp32", True), ("transformers", "fp32", False)]
    assert calls == turn * 2
    assert "| base-fp32 | transformers fp32 tuned | 1.000 | 3.000 | 3.00 x | 1.45 x | 0.25 | 50% |" in out
    assert "| base-fp32 | transformers fp32 installed | 1.000 | 3.000 | 3.00 x | 2 x | 0.25 | 50% |" in out


def test_what_is_done_is_not_measured_again(machine, monkeypatch, capsys, tmp_path):
    calls, failing = machine
    failing.add("transformers")
    file = tmp_path / "a.jsonl"
    out = run(monkeypatch, capsys, file, "--only", "var-fp32", "--rounds", 1)
    assert "| var-fp32 | transformers fp32 tuned | transformers fails. |" in out
    file.write_text(file.read_text().splitlines()[0] + "\n")  # as if stopped between the two
    calls.clear()
    failing.clear()
    out = run(monkeypatch, capsys, file, "--only", "var-fp32", "--rounds", 1)
    assert calls == [("transformers", "fp32", True)]
    assert "3.00 x" in out


def test_an_unknown_row_is_named(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, tmp_path / "a.jsonl", "--only", "large")
    assert "no row large; choose of base-fp32" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row", [r for r in speed_table._rows() if "small" in r.name or "var" in r.name], ids=lambda row: row.name
)
def test_peers_have_our_sizes(row):
    pytest.importorskip("transformers")
    case = speed_table.case_of(row.config(), (0.3, 0.3), row.precision, 1, 1)
    objective = build_objective(case.resolved())
    build = {"transformers": peers.transformers, "torchaudio": peers.torchaudio_hubert}[row.peers[0].toolkit]
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in (objective, build(case, "cpu").model))
    assert ours == theirs
