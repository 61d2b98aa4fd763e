"""A run folder and who trains in it: one process at a time, which a dead one does not keep from the next."""

import subprocess
import sys

import pytest
from tiny_run import alone, metrics, one_sentence, tiny_config

from speechssl import claim as claiming
from speechssl.checkpoint import CheckpointError
from speechssl.claim import LOCK, claim
from speechssl.config import ConfigError, read_run, write
from speechssl.run import start

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOLD = """import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire(timeout=5)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds a lock until it is killed."""
    started = []

    def hold(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_do_not_train_in_one_folder(command, corpus, preset, tmp_path, monkeypatch, holder):
    monkeypatch.setattr(claiming, "LOCK_SECONDS", 0.1)
    folder = tmp_path / "run"
    arguments = ["pretrain", "-p", preset(), "--train", corpus.manifest, "-o", folder]
    other = holder(folder / LOCK)
    sentence = one_sentence(command(*arguments))
    assert f"{folder}: another process trains in this folder" in sentence
    assert [path.name for path in folder.iterdir()] == [LOCK]
    other.kill()
    other.wait()
    status, _, err = command(*arguments)
    assert status == 0, err
    assert [line["step"] for line in metrics(folder)][-1] == 2


def test_whoever_is_done_lets_go(corpus, tmp_path, holder):
    config = tiny_config("cpc", corpus)
    with alone():
        run = start(config, tmp_path / "ends")
        run.close()
    holder(tmp_path / "ends" / LOCK)  # though `run` is still there
    with alone(), pytest.raises(CheckpointError) as caught:  # which keeps all frames, as a notebook does
        start(config.override(init=str(tmp_path)), tmp_path / "fails")
    holder(tmp_path / "fails" / LOCK)
    assert "train first" in str(caught.value)


def test_a_folder_that_another_run_took_in_the_meantime(corpus, preset, pretrained, tmp_path):
    config = read_run(pretrained)
    other = config.override(train={"seed": config.train.seed + 1})

    class Waits:
        def acquire(self, timeout):
            write(other, tmp_path / "run" / "config.yaml")

    with pytest.raises(ConfigError, match=r"holds a run with another configuration \(train\.seed"):
        claim(config, tmp_path / "run", Waits())
    assert read_run(tmp_path / "run") == other
