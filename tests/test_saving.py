"""Saving behind a run's back: the state of that moment is written, one at a time, and no failure goes unheard."""

import json
import threading

import pytest
import torch
from tiny_run import assert_same_bits, make_corpus, metrics, tensors, tiny_config, train_here

from speechssl import checkpoint, saving, stored
from speechssl.build import build_objective
from speechssl.checkpoint import CheckpointError, TrainState
from speechssl.optim import build_optimizer
from speechssl.saving import Saver


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), (0.5, 0.6, 0.7, 0.8))


@pytest.fixture
def config(corpus):
    return tiny_config("cpc", corpus)


def state_at(config, step: int) -> TrainState:
    objective = build_objective(config)
    state = TrainState(objective, build_optimizer(objective, config.optim), step)
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


class SlowDisk:
    """Writes nothing until it is opened, and counts how many want to write at once."""

    def __init__(self, monkeypatch):
        self.opened, self.writing, self.most = threading.Event(), 0, 0
        self.real = stored.save_file
        monkeypatch.setattr(stored, "save_file", self)

    def __call__(self, named, path):
        self.writing += 1
        self.most = max(self.most, self.writing)
        assert self.opened.wait(60)
        self.real(named, path)
        self.writing -= 1


def full_disk(monkeypatch, *, fails=lambda path: True) -> None:
    real = stored.save_file

    def save_file(named, path):
        if fails(path):
            raise OSError(28, "No space left on device")
        real(named, path)

    monkeypatch.setattr(stored, "save_file", save_file)


def test_the_state_of_that_moment_is_written_while_training_goes_on(config, tmp_path, monkeypatch):
    state = state_at(config, 4)
    expected = checkpoint.save(state, config, tmp_path / "at-once")
    disk = SlowDisk(monkeypatch)
    saver = Saver(tmp_path / "run", config, print)
    saver.save(state)  # returns, though the disk does not
    with torch.no_grad():
        for parameter in state.objective.parameters():
            parameter.add_(1.0)
    state.optimizer.step()
    state.step = 5
    assert not list((tmp_path / "run").glob("step-*"))
    disk.opened.set()
    saver.settle()
    assert_same_bits(tmp_path / "run" / "step-00000004", expected)
    assert stored.read_record(tmp_path / "run" / "step-00000004") == stored.read_record(expected)


def test_never_two_at_once(config, tmp_path, monkeypatch):
    disk, saver = SlowDisk(monkeypatch), Saver(tmp_path, config, print)
    saver.save(state_at(config, 1))
    second = threading.Thread(target=saver.save, args=(state_at(config, 2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # it waits for the first
    disk.opened.set()
    second.join(60)
    saver.settle()
    assert disk.most == 1
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000002", "step-00000001"]


def test_where_memory_is_short_it_is_written_at_once_and_not_copied(config, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_free_memory", lambda: 1000.0)
    state, copies = state_at(config, 1), []
    real = checkpoint.snapshot
    monkeypatch.setattr(checkpoint, "snapshot", lambda *a, copy, **k: copies.append(copy) or real(*a, copy=copy, **k))
    Saver(tmp_path, config, print).save(state)
    assert (tmp_path / "step-00000001" / "state.json").exists()
    assert copies == [False]


def test_what_a_killed_process_left_is_removed(config, tmp_path):
    (tmp_path / ".step-00000040.part").mkdir()
    Saver(tmp_path, config, print)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_is_told_and_tried_again_when_the_next_is_due(config, tmp_path, monkeypatch):
    said: list[str] = []
    saver = Saver(tmp_path, config, said.append)
    saver.save(state_at(config, 1))
    saver.settle()
    with monkeypatch.context() as full:
        full_disk(full)
        saver.save(state_at(config, 2))
        assert said == []
        saver.settle()
        assert len(said) == 1
        assert "step-00000002: cannot be saved: " in said[0]
        assert "The run goes on and tries again when the next save is due." in said[0]
        with pytest.raises(CheckpointError, match="No space left on device"):
            saver.save(state_at(config, 3), wait=True)
        saver.settle()
        assert len(said) == 1  # it was raised, so nobody says it again
    saver.save(state_at(config, 3), wait=True)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000003", "step-00000001"]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_run_survives_a_disk_that_was_full_for_a_while(corpus, tmp_path, monkeypatch, capsys, at_the_end):
    """The lines of its metrics that did not fit are written later; only the last checkpoint must be."""
    config = tiny_config("cpc", corpus, train={"updates": 6, "save_every": 2})
    whole = train_here(config, tmp_path / "whole")
    with monkeypatch.context() as full:
        unwritten = ["step-00000004", "step-00000006"][: 1 + at_the_end]
        full_disk(full, fails=lambda path: any(name in str(path) for name in unwritten))
        if at_the_end:
            with pytest.raises(CheckpointError, match="the last good checkpoint is intact"):
                train_here(config, tmp_path / "run")
            assert [p.name for p in checkpoint.list_checkpoints(tmp_path / "run/checkpoints")] == ["step-00000002"]
        else:
            train_here(config, tmp_path / "run")
    assert "step-00000004: cannot be saved" in capsys.readouterr().out
    assert_same_bits(train_here(config, tmp_path / "run"), whole)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_disk_that_stays_full_stops_a_run_as_configured(corpus, tmp_path, monkeypatch):
    """After three saves in a row that failed; nothing is lost but what came since the last that did not."""
    config = tiny_config("cpc", corpus, train={"updates": 12, "save_every": 2, "max_unsaved": 3})
    with monkeypatch.context() as full:
        full_disk(full, fails=lambda path: "step-00000002" not in str(path))
        with pytest.raises(CheckpointError, match=r"cannot be saved: .*Then run the same command again"):
            train_here(config, tmp_path / "run")
    assert 8 <= metrics(tmp_path / "run")[-1]["step"] < 12  # 4, 6 and 8 failed; a thread may be a little behind
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run/checkpoints")] == ["step-00000002"]
    assert train_here(config, tmp_path / "run").name == "step-00000012"


def test_lines_that_the_disk_refuses_are_kept(corpus, tmp_path, monkeypatch, capsys):
    config = tiny_config("cpc", corpus, train={"updates": 6, "save_every": 6})
    train_here(config, tmp_path / "whole")
    from speechssl import report

    real, calls = report.append_whole, []

    def append_whole(path, content):
        calls.append(path)
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(report, "append_whole", append_whole)
    train_here(config, tmp_path / "run")
    assert "metrics.jsonl: cannot be written (No space left on device); its lines are kept" in capsys.readouterr().out
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_what_nobody_thought_of_is_raised_where_somebody_hears_it(config, tmp_path, monkeypatch):
    """And not in the thread, which has nobody to raise to."""

    def save_file(named, path):
        raise RuntimeError("some tensors share memory")

    monkeypatch.setattr(stored, "save_file", save_file)
    saver = Saver(tmp_path, config, print)
    saver.save(state_at(config, 1))
    with pytest.raises(RuntimeError, match="share memory"):
        saver.settle()
    with pytest.raises(RuntimeError, match="share memory"):
        saver.save(state_at(config, 2), wait=True)


# ------------------------------------------------------------------------------------------------------------- pruning


def test_pruning_never_removes_the_only_good_one(config, tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(state_at(config, step), config, tmp_path)
    for step in (2, 3):
        with (tmp_path / f"step-{step:08d}" / "objective.safetensors").open("r+b") as file:
            file.truncate(100)
    checkpoint.prune(tmp_path, 2)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 3
    state = state_at(config, 0)
    assert len(checkpoint.restore(state, tmp_path)) == 2
    assert state.step == 1


# ------------------------------------------------------------------------------------------------------ what is stored


def test_a_changed_digit_of_the_record_is_noticed(config, tmp_path):
    path = checkpoint.save(state_at(config, 12), config, tmp_path) / "state.json"
    path.write_text(path.read_text().replace('"step": 12', '"step": 13'))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged \(its hash differs\)"):
        stored.read_record(path.parent)


def test_a_record_without_its_own_hash_is_of_an_older_version(config, tmp_path):
    path = checkpoint.save(state_at(config, 12), config, tmp_path) / "state.json"
    record = json.loads(path.read_text())
    for key in ("check", "counts", "best_step"):
        del record[key]
    path.write_text(json.dumps(record))
    state = state_at(config, 0)
    assert checkpoint.restore(state, tmp_path) == []
    assert (state.step, state.best_step, state.counts.skipped) == (12, None, 0)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "other.safetensors"])
def test_hashes_of_files_elsewhere_are_not_read(config, tmp_path, name):
    path = checkpoint.save(state_at(config, 1), config, tmp_path)
    record = json.loads((path / "state.json").read_text())
    record["sha256"][name] = "0"
    del record["check"]
    (path / "state.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="not what speechssl writes"):
        stored.read_record(path)


def test_code_of_strangers_is_not_imported(config, tmp_path, monkeypatch):
    """A checkpoint may name an objective outside the package, in a module that lies beside it."""
    (tmp_path / "strange_module.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = checkpoint.save(state_at(config, 1), config, tmp_path)
    record = json.loads((path / "state.json").read_text())
    record["config"]["objective"]["name"] = "strange_module:Thing"
    del record["check"]
    (path / "state.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="code outside speechssl, in the module 'strange_module'"):
        checkpoint.load_checkpoint(path)
    monkeypatch.setenv("SPEECHSSL_TRUST", "strange_module")
    with pytest.raises(SystemExit, match="it ran"):
        checkpoint.load_checkpoint(path)


def test_the_moments_are_the_optimisers(config, tmp_path):
    state = state_at(config, 1)
    path = checkpoint.save(state, config, tmp_path)
    moments = {name for name in tensors(path) if name.endswith("/exp_avg")}
    assert len(moments) == len(list(state.objective.parameters()))
