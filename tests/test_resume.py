"""Exact resumes: in pieces, killed, stopped by a signal, and from a folder that holds another run."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_run import KINDS, ROOT, assert_same_bits, metrics, tiny_config, tiny_plain, train_here

from speechssl import checkpoint
from speechssl import train as loop
from speechssl.config import ConfigError, load, read_run
from speechssl.objectives import OBJECTIVES


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_five_and_five(kind, corpus, valid, tmp_path):
    """With three micro-batches per update, masks, dropout, LayerDrop, crops and (ctc) unfreezing on the way."""
    config = tiny_config(kind, corpus, data={"valid": valid})
    whole = train_here(config, tmp_path / "whole")
    half = train_here(config, tmp_path / "pieces", stop_after=5)
    assert half.name == "step-00000005"
    assert_same_bits(half, tmp_path / "whole" / "checkpoints" / "step-00000005")
    assert_same_bits(train_here(config, tmp_path / "pieces"), whole)
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole") if line["split"] == "valid"] == [5, 10]


def test_every_objective_is_among_them():
    assert {kind["objective"]["name"] for kind in KINDS.values()} == set(OBJECTIVES)


def test_in_reduced_precision(corpus, tmp_path):
    config = tiny_config("data2vec", corpus, train={"precision": "bf16", "updates": 6})
    whole = train_here(config, tmp_path / "whole")
    train_here(config, tmp_path / "pieces", stop_after=3)
    assert_same_bits(train_here(config, tmp_path / "pieces"), whole)


def test_interrupted_after_every_update(corpus, tmp_path):
    config = tiny_config("ctc", corpus, train={"updates": 6, "save_every": 4})
    whole = train_here(config, tmp_path / "whole")
    pieces = [train_here(config, tmp_path / "pieces", stop_after=step) for step in range(1, 7)]
    assert [path.name for path in pieces] == [f"step-{step:08d}" for step in range(1, 7)]
    assert_same_bits(pieces[-1], whole)
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")


def test_killed_between_two_checkpoints(corpus, tmp_path):
    """What was done after the last checkpoint is done again, and its lines are not written twice."""
    config = tiny_config("cpc", corpus, train={"updates": 6, "save_every": 3})
    whole = train_here(config, tmp_path / "whole")
    train_here(config, tmp_path / "killed", stop_after=3)
    log = tmp_path / "killed" / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"split": "train", "step": 4, "loss": 9.9}\n{"split": "tra')
    assert_same_bits(train_here(config, tmp_path / "killed"), whole)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


class Killed(BaseException):
    """Nobody catches it: nothing more is written."""


def test_killed_while_it_validates(corpus, valid, tmp_path, monkeypatch):
    """Between its first batch and its line."""
    numbers = {"updates": 6, "valid_every": 3, "save_every": 2, "log_every": 2}
    config = tiny_config("cpc", corpus, data={"valid": valid}, train=numbers)
    whole = train_here(config, tmp_path / "whole")
    real = loop.load

    def load(*arguments, **named):
        yield from itertools.islice(real(*arguments, **named), 1)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "load", load)
        with pytest.raises(Killed):
            train_here(config, tmp_path / "killed")
    assert_same_bits(train_here(config, tmp_path / "killed"), whole)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_killed_after_a_validation_saved_the_best(corpus, valid, tmp_path, monkeypatch):
    """Between two lines and far from a save: what was done before it has a line all the same."""
    numbers = {"updates": 6, "valid_every": 3, "save_every": 100, "log_every": 4}
    config = tiny_config("cpc", corpus, data={"valid": valid}, train=numbers)
    whole = train_here(config, tmp_path / "whole")
    real = loop.update

    def update(run, *arguments):
        if run.state.step == 4:
            raise Killed
        return real(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", update)
        with pytest.raises(Killed):
            train_here(config, tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed/checkpoints").glob("step-*")] == ["step-00000003"]
    assert_same_bits(train_here(config, tmp_path / "killed"), whole)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_stopped_by_a_signal(corpus, tmp_path):
    """As a scheduler does it: SIGTERM to every process of the job. Saved, status 75, and then to the bit the same."""
    run, file = tmp_path / "run", tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(tiny_plain("cpc", corpus, data={"workers": 1}, train={"updates": 20, "save_every": 20}))
    )
    command = [sys.executable, "-m", "speechssl", "pretrain", "-p", file, "--train", corpus.manifest, "-o", run]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "printed.txt").open("w+") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=printed, stderr=subprocess.STDOUT
        )
        try:
            ends = time.monotonic() + 120
            while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < ends:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGTERM)
            status = process.wait(timeout=60)
        finally:
            process.kill()
        printed.seek(0)
        text = printed.read()
    assert status == 75, text
    assert "Traceback" not in text
    (saved,) = (run / "checkpoints").glob("step-*")
    done = int(saved.name.removeprefix("step-"))
    assert f"stopped after update {done}, saved; run the same command again to go on" in text
    assert done < 20
    whole = train_here(read_run(run), tmp_path / "whole")
    assert_same_bits(train_here(read_run(run), run), whole)
    assert metrics(run) == metrics(tmp_path / "whole")


def test_a_finished_run_does_nothing(corpus, tmp_path):
    config = tiny_config("cpc", corpus, train={"updates": 2})
    path = train_here(config, tmp_path)
    before = path.stat().st_mtime_ns, metrics(tmp_path)
    assert train_here(config, tmp_path) == path
    assert (path.stat().st_mtime_ns, metrics(tmp_path)) == before


def test_a_folder_holds_one_run(corpus, tmp_path):
    config = tiny_config("cpc", corpus, train={"updates": 2})
    train_here(config, tmp_path / "run")
    train_here(config.override(train={"keep": 5, "log_every": 3}, about="another word"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another configuration \(optim.lr is 0.001 there and 0.5 here\)"):
        train_here(config.override(optim={"lr": 0.5}), tmp_path / "run")
    assert load(tmp_path / "run" / "config.yaml").optim.lr == 1e-3
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-mother.txt").write_text("Dear mother")
    with pytest.raises(ConfigError, match="holds files, and no run of speechssl"):
        train_here(config, tmp_path / "letters")


def test_a_full_disk_does_not_cost_the_configuration(corpus, tmp_path, monkeypatch):
    config = tiny_config("cpc", corpus, train={"updates": 4})
    train_here(config, tmp_path, stop_after=2)

    def write_whole(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("speechssl.config.write_whole", write_whole)
        with pytest.raises(OSError, match="No space left"):
            train_here(config, tmp_path)
    assert train_here(config, tmp_path).name == "step-00000004"


# ------------------------------------------------------------------------------------------------- signals, in process


def signal_before(step: int, number: int, monkeypatch) -> None:
    """The process receives a signal when update `step` begins."""
    update = loop.update

    def signalled(run, *arguments):
        if run.state.step == step:
            os.kill(os.getpid(), number)
        return update(run, *arguments)

    monkeypatch.setattr(loop, "update", signalled)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_every_signal_saves(corpus, tmp_path, monkeypatch, capsys, number, status):
    config = tiny_config("cpc", corpus, train={"updates": 5, "save_every": 5})
    whole = train_here(config, tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_before(2, number, patch)
        with pytest.raises(SystemExit) as caught:
            train_here(config, tmp_path / "run")
    assert caught.value.code == status
    assert signal.getsignal(number) is before  # given back
    assert "stopped after update 3, saved" in capsys.readouterr().out
    assert_same_bits(train_here(config, tmp_path / "run"), whole)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_a_second_signal_exits_at_once():
    code = """
        import os, signal, time
        from speechssl.system import StopSignal
        stop = StopSignal()
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop.status:
            time.sleep(0.01)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            print("not at once")
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == ""
    assert "a second signal stops at once" in done.stderr


# ------------------------------------------------------------------------------------------------------ between lines


def test_a_run_stopped_between_two_lines_loses_none(corpus, tmp_path):
    """A line is written before every save: together they tell of every hour of audio, once."""
    config = tiny_config("cpc", corpus, train={"updates": 6, "log_every": 4, "save_every": 100})
    train_here(config, tmp_path / "whole")
    for stop in (1, 3, 5, None):
        train_here(config, tmp_path / "run", stop_after=stop)
    heard = [sum(line["hours"] for line in metrics(folder)) for folder in (tmp_path / "run", tmp_path / "whole")]
    assert heard[0] == pytest.approx(heard[1], rel=1e-4)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 3, 4, 5, 6]


def test_saved_by_the_clock(corpus, tmp_path):
    config = tiny_config("cpc", corpus, train={"updates": 3, "save_every": 100, "save_minutes": 1e-9, "keep": 9})
    train_here(config, tmp_path)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == [
        "step-00000003",
        "step-00000002",
        "step-00000001",
    ]


def test_killed_before_the_best_was_marked(corpus, valid, tmp_path):
    config = tiny_config("ctc", corpus, data={"valid": valid}, train={"updates": 4, "valid_every": 2, "save_every": 2})
    train_here(config, tmp_path / "whole")
    train_here(config, tmp_path / "run", stop_after=2)
    (tmp_path / "run/checkpoints/best.json").unlink()
    train_here(config, tmp_path / "run", stop_after=3)
    assert json.loads((tmp_path / "run/checkpoints/best.json").read_text())["step"] == 2
