"""Corpora that nobody listened to: bad files are named once and left out, exactly; too many of them stop the run."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_run import RATE, assert_same_bits, make_corpus, metrics, tiny_config, train_here

from speechssl.data import audio
from speechssl.data.audio import AudioError, read_waveform
from speechssl.data.manifest import Manifest, Utterance

LENGTHS = np.random.default_rng(0).uniform(0.5, 0.9, 40).round(2).tolist()


def rotten(folder: Path, count: int):
    """A corpus of forty, of which `count` were damaged since the manifest was made: cut short, emptied, or gone."""
    corpus = make_corpus(folder, LENGTHS)
    bad = [corpus.utterances[i] for i in np.random.default_rng(1).permutation(40)[:count]]
    for number, utterance in enumerate(bad):
        path = Path(utterance.audio)
        if number % 3 == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif number % 3 == 1:
            path.write_bytes(b"")
        else:
            path.unlink()
    return corpus, {utterance.id for utterance in bad}


def left_out(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seconds", [2.5, 0.9])  # 0.9: an utterance is alone in its micro-batch, so some hold none
def test_five_percent(tmp_path, capsys, seconds):
    corpus, bad = rotten(tmp_path / "corpus", 2)
    data, train = {"seconds_per_batch": seconds}, {"updates": 12, "seconds_per_update": 3 * seconds}
    config = tiny_config("cpc", corpus, data=data, train=train)
    whole = train_here(config, tmp_path / "whole")
    assert {row["id"] for row in left_out(tmp_path / "whole")} <= bad
    for stop in (1, 4, 5, 11, None):
        last = train_here(config, tmp_path / "pieces", stop_after=stop)
    assert_same_bits(last, whole)
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")
    assert sorted(map(str, left_out(tmp_path / "pieces"))) == sorted(map(str, left_out(tmp_path / "whole")))
    if seconds == 2.5:  # more than an epoch
        assert {row["id"] for row in left_out(tmp_path / "whole")} == bad
        named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
        assert len(named) == 2 * len(bad)  # once for each run folder


def test_too_many_stop_the_run_with_a_report(tmp_path):
    corpus, bad = rotten(tmp_path / "corpus", 16)
    config = tiny_config("cpc", corpus, train={"updates": 100})
    with pytest.raises(AudioError, match=r"11 of 20 utterances asked for so far cannot be read, more than data\.max"):
        train_here(config, tmp_path / "run")
    assert len(left_out(tmp_path / "run")) == 11
    assert {row["id"] for row in left_out(tmp_path / "run")} < bad
    assert all(row["problem"] for row in left_out(tmp_path / "run"))
    done = metrics(tmp_path / "run")[-1]["step"]
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert f"step-{done:08d}" in saved  # nothing was lost
    with pytest.raises(AudioError):  # and it is no better the second time
        train_here(config, tmp_path / "run")
    train_here(config.override(data={"max_bad_share": 1.0}, train={"log_every": 50}), tmp_path / "run", stop_after=50)


def test_validation_passes_over_what_it_cannot_read(tmp_path, capsys):
    """Also where a whole micro-batch is unreadable."""
    train = make_corpus(tmp_path / "train", (0.5, 0.6, 0.7))
    valid = make_corpus(tmp_path / "valid", (0.5, 0.6, 0.7), name="valid")
    Path(valid.utterances[1].audio).write_bytes(b"")
    data = {"valid": str(valid.manifest), "seconds_per_batch": 0.9}
    config = tiny_config("cpc", train, data=data, train={"updates": 4, "valid_every": 2})
    train_here(config, tmp_path / "run")
    lines = [line for line in metrics(tmp_path / "run") if line["split"] == "valid"]
    assert np.isfinite([line["loss"] for line in lines]).all()
    assert capsys.readouterr().out.count("not validated: ") == 1
    assert [row["id"] for row in left_out(tmp_path / "run")] == ["valid-1"]


# --------------------------------------------------------------------------------------------- disks that stumble


@pytest.fixture
def sound(tmp_path):
    samples = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    return Utterance("a", str(tmp_path / "a.wav"), 8000, RATE)


def stumble(monkeypatch, times: int, number: int) -> list[float]:
    """soundfile hears of an error of the system `times` times; returns the waits between the tries."""
    waits, left, real = [], [times], soundfile.SoundFile

    def opened(*arguments):
        if left[0]:
            left[0] -= 1
            raise OSError(number, "the disk stumbles")
        return real(*arguments)

    monkeypatch.setattr(audio.soundfile, "SoundFile", opened)
    monkeypatch.setattr(audio.time, "sleep", waits.append)
    return waits


def test_a_disk_that_stumbles_is_tried_again(sound, monkeypatch):
    waits = stumble(monkeypatch, 2, errno.EIO)
    assert read_waveform(sound, RATE).shape == (8000,)
    assert waits == [0.2, 1.0]


def test_a_disk_that_stays_down_is_given_up(sound, monkeypatch):
    waits = stumble(monkeypatch, 99, errno.EIO)
    with pytest.raises(AudioError, match=r"a\.wav \(a\): cannot be read: .*the disk stumbles"):
        read_waveform(sound, RATE)
    assert waits == [0.2, 1.0, 3.0]


def test_a_file_that_is_gone_is_not_waited_for(sound, monkeypatch):
    waits = stumble(monkeypatch, 99, errno.ENOENT)
    with pytest.raises(AudioError):
        read_waveform(sound, RATE)
    assert waits == []


def test_libsndfile_keeps_the_number_to_itself(sound, monkeypatch):
    """So the file is read again, and only then known to be on a disk that stumbles."""
    waits, real = [], open
    failing = [True, True]

    def opened(path, *arguments, **named):
        if str(path) == sound.audio:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **named)

    class SoundFile(soundfile.SoundFile):
        def __init__(self, *arguments):
            if failing and failing.pop():
                raise soundfile.LibsndfileError(2)
            super().__init__(*arguments)

    monkeypatch.setattr(audio.soundfile, "SoundFile", SoundFile)
    monkeypatch.setattr(audio, "open", opened, raising=False)
    monkeypatch.setattr(audio.time, "sleep", waits.append)
    assert read_waveform(sound, RATE).shape == (8000,)
    assert waits == [0.2, 1.0]


def test_a_rate_that_cannot_be_resampled_is_left_out(tmp_path):
    soundfile.write(tmp_path / "odd.wav", np.zeros(44_099, dtype=np.float32), 44_099)
    with pytest.raises(AudioError, match=r"odd\.wav \(odd\): 44099 Hz cannot be resampled to 16000 Hz"):
        read_waveform(Utterance("odd", str(tmp_path / "odd.wav"), 44_099, 44_099), RATE)


def test_an_instead_of_utterance_is_the_next_that_can_be_read(tmp_path):
    from speechssl.data.dataset import SpeechDataset

    corpus, bad = rotten(tmp_path, 16)
    data = SpeechDataset(Manifest.read(corpus.manifest), tiny_config("cpc", corpus).data)
    ids = [utterance.id for utterance in data.utterances]
    for index in range(40):
        loaded = data.instead_of(0, np.array([index]))
        following = [ids[(index + k) % 40] for k in range(1, 41)]
        assert loaded.batch.ids[0] == next(name for name in following if name not in bad)
