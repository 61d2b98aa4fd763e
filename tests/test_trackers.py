"""Trackers: what they get, what a resume does to it, and what happens where one is missing or fails."""

from types import SimpleNamespace

import pytest
from tiny_run import metrics, one_sentence, tiny_config, train_here

from speechssl import report
from speechssl.config import ConfigError
from speechssl.report import Report, choose_trackers


@pytest.fixture
def installed(monkeypatch):
    return lambda *names: monkeypatch.setattr(report, "get_available_trackers", lambda: list(names))


def test_tensorboard_is_the_default_where_it_is_installed(installed):
    installed("wandb", "tensorboard")
    assert choose_trackers(None) == ["tensorboard"]
    assert choose_trackers(()) == []
    assert choose_trackers(("wandb", "wandb")) == ["wandb"]
    installed("wandb")
    assert choose_trackers(None) == []


def test_one_that_is_missing_is_a_sentence(installed, command, preset, corpus, tmp_path):
    installed()
    arguments = ("pretrain", "--preset", preset(), "--train", corpus.manifest, "-o", tmp_path / "run")
    missing = one_sentence(command(*arguments, "train.trackers=[wandb]"))
    assert missing == "train.trackers: wandb is not installed: `pip install wandb`, or leave it out."
    unknown = one_sentence(command(*arguments, "train.trackers=[pencil]"))
    assert unknown.startswith("train.trackers: no tracker 'pencil'; choose of ")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_every_line_once_after_a_resume(corpus, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config("cpc", corpus, train={"updates": 4, "save_every": 2, "trackers": None})
    train_here(config, tmp_path / "run", stop_after=3)
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    for file in saved.iterdir():  # as if it had been killed before this was written
        file.unlink()
    saved.rmdir()
    train_here(config, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "speechssl"))
    events.Reload()
    lines = {line["step"]: line for line in metrics(tmp_path / "run") if line["split"] == "train"}
    scalars = events.Scalars("train/infonce")
    assert [scalar.step for scalar in scalars] == sorted(lines) == [1, 2, 3, 4]
    for scalar in scalars:
        assert scalar.value == pytest.approx(lines[scalar.step]["infonce"], rel=1e-4)


class Broken:
    """A tracker that works until it loses its server."""

    name = "broken"

    def __init__(self):
        self.heard = []

    def log(self, values, step=None):
        if self.heard:
            raise ConnectionError("no route\nto the server.")
        self.heard.append(step)

    def finish(self):
        raise AssertionError("it is gone")


def test_one_that_fails_ends_no_run(tmp_path, capsys):
    tracker = Broken()
    accelerator = SimpleNamespace(is_main_process=True, trackers=[tracker], init_trackers=lambda *_, **__: None)
    tracker.store_init_configuration = lambda config: None
    told = Report(tmp_path, accelerator, SimpleNamespace(chance=dict), updates=3, step=0)
    told.start_trackers({})
    for step in (1, 2, 3):
        told.log("train", step, {"loss": 1.0})
    told.close()
    assert tracker.heard == [1]
    assert len(metrics(tmp_path)) == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "tracker" in line]
    assert said == [
        "train.trackers: ConnectionError: no route to the server; nothing more is tracked, metrics.jsonl has everything"
    ]


def test_one_that_cannot_start_is_a_sentence(tmp_path):
    def refuse(*_, **__):
        raise RuntimeError("api_key not configured.\nTry `wandb login`.")

    accelerator = SimpleNamespace(is_main_process=True, trackers=[], init_trackers=refuse)
    with pytest.raises(ConfigError, match=r"RuntimeError: api_key not configured\. Try `wandb login`; leave it out"):
        Report(tmp_path, accelerator, SimpleNamespace(chance=dict), updates=3, step=0).start_trackers({})
