"""A checkpoint decodes a manifest: in one batch the same texts as one by one, in order, and nothing is hidden."""

import json

import pytest
from tiny_run import RATE, make_corpus, tiny_config, train_here

from speechssl.asr.decode import DecodeError, decode_manifest
from speechssl.data.manifest import Manifest, Utterance
from speechssl.device import DeviceError

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
