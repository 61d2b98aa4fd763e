"""Checkpoints that do not fit and disks that refuse, through the command line: one clear sentence, and nothing lost."""

import sys

import pytest
from safetensors import SafetensorError
from tiny_run import metrics, one_sentence

from speechssl import stored

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_a_checkpoint_of_another_shape(command, corpus, preset, pretrained, tmp_path):
    path = preset(kind="wav2vec2", encoder={"context": {"dim": 24}})
    arguments = ["pretrain", "-p", path, "--init", pretrained, "--train", corpus.manifest, "-o", tmp_path / "run"]
    sentence = one_sentence(command(*arguments))
    assert str(pretrained) in sentence
    assert "its encoder does not fit this configuration: encoder." in sentence
    path = preset(kind="ctc", encoder={"context": {"num_layers": 3}})
    arguments = ["finetune", "-p", path, "--init", pretrained, "--train", corpus.manifest]
    arguments += ["--vocabulary", corpus.vocabulary, "-o", tmp_path / "other"]
    sentence = one_sentence(command(*arguments))
    assert "is missing" in sentence


def test_a_folder_that_holds_another_run(command, corpus, preset, pretrained):
    before = (pretrained / "config.yaml").read_bytes()
    sentence = one_sentence(command("pretrain", "-p", preset(), "--train", corpus.manifest, "-o", pretrained))
    assert "holds a run with another configuration" in sentence
    assert (pretrained / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk(command, corpus, preset, tmp_path, monkeypatch, kind):
    arguments = ["pretrain", "-p", preset(), "--train", corpus.manifest, "-o", tmp_path / "run", "train.save_every=1"]
    real, done = stored.save_file, []

    def save_file(tensors, path):
        if len(done) == 2:  # the first checkpoint's two files had room
            raise kind(28, "No space left on device") if kind is OSError else kind("No space left on device")
        done.append(path)
        real(tensors, path)

    with monkeypatch.context() as full:
        full.setattr(stored, "save_file", save_file)
        sentence = one_sentence(command(*arguments))
    assert "step-00000002: cannot be saved: " in sentence
    assert "No space left on device" in sentence
    assert "the last good checkpoint is intact" in sentence
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "resumed at update 1" in out
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_a_disk_that_is_full_from_the_start(command, corpus, preset, tmp_path, monkeypatch):
    arguments = ["pretrain", "-p", preset(), "--train", corpus.manifest, "-o", tmp_path / "run"]

    def write_whole(path, content):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as full:
        full.setattr("speechssl.config.write_whole", write_whole)
        assert "No space left on device" in one_sentence(command(*arguments))
    assert command(*arguments)[0] == 0


def test_a_torchaudio_that_does_not_fit(command, corpus, preset, tmp_path, monkeypatch):
    arguments = ["pretrain", "-p", preset(), "--train", corpus.manifest, "-o", tmp_path / "run"]
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    sentence = one_sentence(command(*arguments))
    assert "torchaudio does not work beside torch" in sentence
    assert "pip install" in sentence
