"""A checkpoint decodes a manifest: in one batch the same texts as one by one, in order, and nothing is hidden."""

import json
from dataclasses import replace

import pytest
import soundfile
import torch
from tiny_run import RATE, make_corpus, talkative, tiny_config, train_here

from speechssl.asr.decode import DecodeError, decode_manifest
from speechssl.asr.model import Model
from speechssl.checkpoint import load_checkpoint
from speechssl.data.manifest import Manifest, Utterance
from speechssl.device import DeviceError
from speechssl.objectives.ctc import CTC

LENGTHS = (0.5, 1.3, 0.7, 0.9, 0.45, 1.1)
LOGMEL = {"feature_encoder": {"name": "logmel", "num_bins": 20, "dims": [16], "kernels": [3], "strides": [1]}}


@pytest.fixture(scope="module", params=["waveform", "logmel", "probe"])
def trained(request, tmp_path_factory):
    """A run whose weights are all but random, and its corpus."""
    folder = tmp_path_factory.mktemp("decode")
    corpus = make_corpus(folder / "sound", LENGTHS)
    kind = "ctc_probe" if request.param == "probe" else "ctc"
    encoder = LOGMEL if request.param == "logmel" else {}
    config = tiny_config(kind, corpus, encoder=encoder, train={"updates": 1}, optim={"lr": 1e-9})
    with talkative():
        train_here(config, folder / "run")
    return folder / "run", corpus


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings(path) -> dict:
    return json.loads((path.parent / f"{path.name}.settings.json").read_text())


def test_batched_is_one_by_one(trained, tmp_path):
    run, corpus = trained
    decoded = {}
    for seconds in (0.1, 3.0, 60.0):  # one by one; a few; all at once
        out = tmp_path / f"{seconds}.jsonl"
        decode_manifest(run, corpus.manifest, out, seconds_per_batch=seconds, device="cpu")
        decoded[seconds] = rows(out)
    assert decoded[0.1] == decoded[3.0] == decoded[60.0]
    assert [row["id"] for row in decoded[0.1]] == [u.id for u in corpus.utterances]
    assert [row["reference"] for row in decoded[0.1]] == [u.text.upper() for u in corpus.utterances]
    texts = {row["text"] for row in decoded[0.1]}
    assert len(texts) == len(LENGTHS)  # something is spelt, and every utterance is another
    assert all(texts)


def test_unreadable_and_short_utterances_have_empty_texts(trained, tmp_path, capsys):
    run, corpus = trained
    gone = Utterance("gone", str(tmp_path / "gone.flac"), RATE, RATE, text="one")
    short = Utterance("short", corpus.utterances[0].audio, 50, RATE)
    Manifest.of([gone, corpus.utterances[0], short]).write(tmp_path / "some.jsonl")
    out = tmp_path / "texts.jsonl"
    decode_manifest(run, tmp_path / "some.jsonl", out, device="cpu")
    assert [row["id"] for row in rows(out)] == ["gone", corpus.utterances[0].id, "short"]
    assert [bool(row["text"]) for row in rows(out)] == [False, True, False]
    problems = settings(out)["problems"]
    assert len(problems) == 2
    assert any("gone.flac" in sentence for sentence in problems)
    assert any("short: too short" in sentence for sentence in problems)
    assert "2 of 3 utterances could not be decoded" in capsys.readouterr().out


def test_nothing_can_be_decoded(trained, tmp_path):
    run, _ = trained
    Manifest.of([Utterance("gone", str(tmp_path / "gone.flac"), RATE, RATE)]).write(tmp_path / "none.jsonl")
    with pytest.raises(DecodeError, match="not one of 1 utterances could be decoded"):
        decode_manifest(run, tmp_path / "none.jsonl", tmp_path / "texts.jsonl", device="cpu")
    assert not (tmp_path / "texts.jsonl").exists()


def test_refusals(trained, tmp_path):
    run, corpus = trained
    (tmp_path / "mine.txt").write_text("Dear mother")
    with pytest.raises(DecodeError, match="was not made by `speechssl decode`"):
        decode_manifest(run, corpus.manifest, tmp_path / "mine.txt", device="cpu")
    with pytest.raises(DeviceError, match="device 'cuda:77' is not there"):
        decode_manifest(run, corpus.manifest, tmp_path / "texts.jsonl", device="cuda:77")


# ---------------------------------------------------------------------------------------------------- long recordings

SHORT = {"window": 0.6, "context": 0.1}


def local(folder, **data):
    """A run whose frames know their neighbours alone: its windows are exact. One frame spells two tokens."""
    corpus = make_corpus(folder / "sound", (0.5, 2.3, 1.7, 0.4))
    encoder = {"feature_encoder": {"norm": "layer"}, "context": {"num_layers": 0}}
    config = tiny_config(
        "ctc",
        corpus,
        encoder=encoder,
        objective={"symbols_per_frame": 2},
        train={"updates": 1},
        optim={"lr": 1e-9},
        data={"max_seconds": 2.4} | data,
    )
    with talkative():
        train_here(config, folder / "run")
    return folder / "run", corpus


@pytest.mark.parametrize("normalize", [False, True])
def test_windows_spell_what_the_whole_spells(tmp_path, capsys, normalize):
    run, corpus = local(tmp_path, normalize=normalize)
    checkpoint = load_checkpoint(run)
    found = {}
    for name, numbers in (("whole", {}), ("windows", SHORT), ("batches", SHORT)):
        seconds = 60.0 if name == "batches" else 0.1
        model = Model(checkpoint, checkpoint.tokenizer, torch.device("cpu"), "fp32", seconds, **numbers)
        found[name], problems = model.run(Manifest.read(corpus.manifest), lambda ids, rows: rows)
        assert not problems
        decode_manifest(run, corpus.manifest, tmp_path / name, device="cpu", seconds_per_batch=seconds, **numbers)
    for utterance in corpus.utterances:
        whole = found["whole"][utterance.id]
        assert len(whole) == 2 * checkpoint.objective.encoder.frame_lengths(utterance.num_samples)
        for name in ("windows", "batches"):
            torch.testing.assert_close(found[name][utterance.id], whole, atol=1e-4, rtol=1e-4)
    assert rows(tmp_path / "whole") == rows(tmp_path / "windows") == rows(tmp_path / "batches")
    assert "windows" not in settings(tmp_path / "whole")
    assert settings(tmp_path / "windows")["windows"] == {"seconds": 0.6, "context": 0.1, "utterances": 2}
    assert "2 of 4 utterances last longer than 0.6 s: they are read in windows" in capsys.readouterr().out


def test_memory_is_bounded_and_what_breaks_off_is_named(tmp_path, monkeypatch):
    """No more than a window is read or encoded at a time, and of a truncated recording there is no text."""
    run, corpus = local(tmp_path, workers=0)
    longest = corpus.utterances[1]
    claimed = replace(longest, id="truncated", num_samples=longest.num_samples + RATE)
    Manifest.of([claimed, longest]).write(tmp_path / "long.jsonl")
    asked, encoded = [], []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, n, **k: asked.append(n) or read(file, n, **k))
    monkeypatch.setattr(
        CTC,
        "log_probs",
        lambda self, batch, of=CTC.log_probs: encoded.append(batch.waveforms.numel()) or of(self, batch),
    )
    decode_manifest(run, tmp_path / "long.jsonl", tmp_path / "texts", device="cpu", seconds_per_batch=0.1, **SHORT)
    assert max(asked) <= 0.6 * RATE
    assert max(encoded) <= 0.6 * RATE
    assert len(encoded) > 10
    assert [bool(row["text"]) for row in rows(tmp_path / "texts")] == [False, True]
    assert "truncated" in settings(tmp_path / "texts")["problems"][0]
