"""The comparison of objectives: what is shared, what a failure and a signal do, and the table."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT

from speechssl.bench import step as step_module
from speechssl.config import load, write
from speechssl.errors import REQUEUE, UserError

sys.path.insert(0, str(ROOT / "tools"))

import compare_objectives as tool

PATHS = {name: Path(name) for name in ("unlabelled", "tune", "test", "vocabulary")}
PAIRS = {"speakers": (Path("a"), Path("b")), "words": (Path("c"), Path("d"))}


@pytest.fixture
def plan(tmp_path) -> tool.Plan:
    return tool.Plan(out=tmp_path, minutes=1, seeds=2, probe_updates=1, tune_updates=1, **PATHS, **PAIRS)


def begun(plan: tool.Plan, name: str) -> Path:
    """The folder of a pretraining that has written two lines."""
    folder = plan.out / name / "pretrain"
    folder.mkdir(parents=True)
    write(load(tool.preset_of(name)), folder / "config.yaml")
    lines = [{"split": "train", "step": step, "hours": 0.5, "seconds": 60} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_preset_is_there():
    assert tool.preset_of("hubert-2") == "hubert-tiny"
    for name in tool.PRESETS:
        load(tool.preset_of(name))


def test_random_weights_are_shared_by_architecture(plan):
    names = ("hubert", "hubert-2", "best-rq", "moco", "cpc")
    hubert, again, best_rq, moco, cpc = (tool.random_folder(plan, begun(plan, name)) for name in names)
    assert hubert == again == best_rq
    assert len({hubert, moco, cpc}) == 3


def test_the_table(plan):
    random = tool.random_folder(plan, begun(plan, "simclr"))
    for place, kind, rates in ((plan.out / "simclr", "frozen", (0.5, 0.7)), (random, "random", (0.9, 0.9))):
        for seed, rate in enumerate(rates, start=1):
            score = place / f"{kind}-seed{seed}" / "score" / "score.json"
            score.parent.mkdir(parents=True)
            score.write_text(json.dumps({"wer": rate}))
    head, rule, row = tool.table(plan, ["cpc", "simclr"]).splitlines()  # cpc has not begun
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert head.count("|") == rule.count("|") == row.count("|")
    assert (cells["| objective"], cells["minutes"], cells["hours heard"]) == ("| simclr", "2.0", "1.0")
    assert cells["frozen WER %"] == "60.0 (sd 14.1, 2 seeds)"
    assert cells["random, frozen WER %"] == "90.0 (sd 0.0, 2 seeds)"
    assert cells["scratch WER %"] == ""


@pytest.mark.parametrize(
    ("name", "probe_updates", "tune_updates", "kinds"),
    [
        ("simclr", 0, 0, []),
        ("simclr", 1, 0, ["frozen", "random"]),
        ("simclr", 0, 1, ["tuned", "scratch"]),
        (tool.LOG_MEL, 1, 1, ["frozen"]),
        (tool.LOG_MEL, 0, 1, []),
    ],
)
def test_words_are_counted_where_there_are_updates(plan, monkeypatch, name, probe_updates, tune_updates, kinds):
    counted = []
    monkeypatch.setattr(tool, "pretrain", lambda plan, name: begun(plan, "simclr"))
    monkeypatch.setattr(tool, "probe", lambda *_: None)
    monkeypatch.setattr(tool, "word_error_rates", lambda plan, encoder, kind, folder: counted.append(kind))
    tool.answer(dataclasses.replace(plan, probe_updates=probe_updates, tune_updates=tune_updates), name)
    assert counted == kinds


def test_every_step_is_timed_before_anything_is_trained(plan, monkeypatch):
    events = []

    def step(case):  # of a micro-batch, which may be less than an update
        name = case.config["objective"]["name"]
        events.append(("timed", name))
        return {"step": sum(case.seconds) * {"cpc": 0.01, "moco": 0.02}[name]}

    monkeypatch.setattr(step_module, "run_apart", step)
    monkeypatch.setattr(tool, "answer", lambda plan, name: events.append(("asked", name)))
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    tool.main(plan.out, only=["cpc", tool.LOG_MEL, "moco"], minutes=3, **PATHS, **PAIRS)
    assert events == [("timed", "cpc"), ("timed", "moco"), ("asked", "cpc"), ("asked", tool.LOG_MEL), ("asked", "moco")]
    three = dataclasses.replace(plan, minutes=3)
    for name, per_second in (("cpc", 0.01), ("moco", 0.02)):
        audio = load(f"{name}-tiny").train.seconds_per_update
        assert tool.updates_for(three, name) == int(180 / (per_second * audio))
    assert len(events) == 5  # what is written down is not timed again
    with pytest.raises(UserError, match=r"plan\.json is of 3 minutes, not 1"):
        tool.updates_for(plan, "cpc")


def test_pretraining_has_a_seed_of_its_own(plan, monkeypatch):
    asked = []
    monkeypatch.setattr(tool, "run", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(tool, "answer", tool.pretrain)
    monkeypatch.setattr(tool, "updates_for", lambda plan, name: 20)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    tool.main(plan.out, only=["moco"], pretrain_seed=7, **PATHS, **PAIRS)
    assert [arguments[0] for arguments in asked] == ["pretrain"]
    assert "train.seed=7" in asked[0]


def test_what_is_timed_waits_for_no_other_run(plan, monkeypatch):
    (plan.out / "cpc").mkdir()
    (plan.out / "cpc" / "plan.json").write_text('{"updates": 9, "minutes": 1}')
    with tool.alone_in(plan.out / "cpc"):  # as another run of the script that trains there
        monkeypatch.setattr(tool.fcntl, "flock", lambda *_: pytest.fail("waits"))
        tool.time_steps(plan, ["cpc"])
    assert tool.updates_for(plan, "cpc") == 9


def test_one_that_fails_is_named_and_the_others_go_on(plan, monkeypatch, capsys):
    asked = []

    def answer(plan, name):
        asked.append(name)
        if name == "cpc":
            raise tool.Failed("status 2")

    monkeypatch.setattr(tool, "answer", answer)
    monkeypatch.setattr(tool, "updates_for", lambda plan, name: 20)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="1"):
        tool.main(plan.out, only=["cpc", "moco"], **PATHS, **PAIRS)
    assert asked == ["cpc", "moco"]
    assert capsys.readouterr().err.splitlines() == ["not finished:", "cpc: status 2"]


class Process:
    """A verb that is stopped while it runs, or ends with a status."""

    def __init__(self, status):
        self.status, self.told = status, False

    def wait(self):
        if self.status is None and not self.told:
            raise KeyboardInterrupt
        return self.status

    def terminate(self):
        self.told = True


@pytest.mark.parametrize(
    ("status", "raised"), [(None, KeyboardInterrupt), (REQUEUE, SystemExit), (2, tool.Failed), (0, None)]
)
def test_a_verb_is_stopped_with_the_script(monkeypatch, status, raised):
    process = Process(status)
    monkeypatch.setattr(tool.subprocess, "Popen", lambda command: process)
    if raised is None:
        tool.run("show")
    else:
        with pytest.raises(raised):
            tool.run("show")
    assert process.told == (status is None)
