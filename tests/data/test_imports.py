"""fairseq's tsv and lhotse's cuts."""

import gzip
import json

import numpy as np
import pytest
import soundfile

from speechssl.data.corpora import CorpusError
from speechssl.data.corpora.imports import read_fairseq, read_lhotse
from speechssl.data.scan import Rules, scan


@pytest.fixture
def audio(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / f"audio/{name}.wav", 0.1 * np.ones(16_000), 16_000)
    return tmp_path / "audio"


def test_fairseq_with_letters_or_words(tmp_path, audio):
    tsv = tmp_path / "train.tsv"
    tsv.write_text(f"{audio}\na.wav\t16000\nb.wav\t16000\n")
    assert [c.text for c in read_fairseq(tsv).candidates] == [None, None]
    (tmp_path / "train.ltr").write_text("H I | T H E R E |\nY O U |\n")
    assert [c.text for c in read_fairseq(tsv).candidates] == ["HI THERE", "YOU"]
    (tmp_path / "train.wrd").write_text("HI THERE\nME\n")
    corpus = read_fairseq(tsv)
    assert [c.text for c in corpus.candidates] == ["HI THERE", "ME"]
    manifest, left_out = scan(corpus, Rules(), progress=False)
    assert [(u.id, u.num_samples) for u in manifest] == [("a", 16_000), ("b", 16_000)]
    assert not left_out


def test_fairseq_moved_corpus_and_byte_ranges(tmp_path, audio):
    whole = (audio / "a.wav").read_bytes()
    (audio / "packed.zip").write_bytes(b"head" + whole + b"tail")
    tsv = tmp_path / "train.tsv"
    tsv.write_text(f"/elsewhere\na.wav\t16000\npacked.zip:4:{len(whole)}\t16000\nb.wav\t17000\n")
    manifest, left_out = scan(read_fairseq(tsv, root=audio), Rules(), progress=False)
    assert [u.byte_range for u in manifest] == [None, (4, len(whole))]
    assert [(item.reason, item.id) for item in left_out] == [("truncated", "b")], "the list promises 17000 samples"


@pytest.mark.parametrize(
    ("tsv", "labels", "sentence"),
    [
        ("/data\n", None, "no utterances"),
        ("/data\na.wav 16000\n", None, "line 2: 'a.wav 16000' is not path<TAB>samples"),
        ("/data\na.wav\t0\n", None, "line 2"),
        ("/data\na.wav\t5\nb.wav\t5\n", "ONE\n", "1 lines for the 2 utterances"),
    ],
)
def test_fairseq_lists_that_cannot_be_read(tmp_path, tsv, labels, sentence):
    (tmp_path / "train.tsv").write_text(tsv)
    if labels:
        (tmp_path / "train.wrd").write_text(labels)
    with pytest.raises(CorpusError, match=sentence):
        read_fairseq(tmp_path / "train.tsv")


def cut(path, **changes):
    record = {
        "id": "call-1",
        "start": 0.25,
        "duration": 0.5,
        "channel": 0,
        "supervisions": [
            {"id": "s2", "start": 0.3, "duration": 0.2, "text": "THERE", "speaker": "anna"},
            {"id": "s1", "start": 0.0, "duration": 0.3, "text": "HELLO", "speaker": "anna"},
        ],
        "recording": {
            "id": "call",
            "sources": [{"type": "file", "channels": [0], "source": str(path)}],
            "sampling_rate": 16_000,
            "num_samples": 16_000,
            "duration": 1.0,
        },
        "type": "MonoCut",
    }
    return record | changes


@pytest.mark.parametrize("packed", [False, True])
def test_lhotse_cuts_point_into_their_recording(tmp_path, audio, packed):
    lines = json.dumps(cut("a.wav")) + "\n" + json.dumps(cut(audio / "b.wav", id="call-2", supervisions=[])) + "\n"
    path = tmp_path / ("cuts.jsonl.gz" if packed else "cuts.jsonl")
    path.write_bytes(gzip.compress(lines.encode()) if packed else lines.encode())
    manifest, left_out = scan(read_lhotse(path, root=audio), Rules(), progress=False)
    assert not left_out
    first, second = manifest
    assert (first.id, first.start, first.num_samples) == ("call-1", 4000, 8000)
    assert (first.text, first.speaker) == ("HELLO THERE", "anna")
    assert (second.text, second.speaker) == (None, None)


def several(record):
    record["recording"]["sources"][0]["channels"] = [0, 1]


def remote(record):
    record["recording"]["sources"][0]["type"] = "url"


def perturbed(record):
    record["recording"]["transforms"] = [{"name": "Speed"}]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda record: record.update(type="MixedCut"), "line 1: a MixedCut; only MonoCuts"),
        (lambda record: record.pop("recording"), "line 1: not a lhotse cut"),
        (lambda record: record.update(duration=-1), "not possible"),
        (lambda record: record.update(start="soon"), "not a lhotse cut"),
        (several, "several channels"),
        (remote, "not one file"),
        (perturbed, "transformed on the fly"),
    ],
)
def test_lhotse_cuts_that_cannot_be_read(tmp_path, change, sentence):
    record = cut("a.wav")
    change(record)
    (tmp_path / "cuts.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(CorpusError, match=sentence):
        read_lhotse(tmp_path / "cuts.jsonl")


def test_lhotse_files_that_are_damaged(tmp_path):
    packed = gzip.compress(json.dumps(cut("a.wav")).encode() * 50)
    (tmp_path / "cuts.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match="damaged after line"):
        read_lhotse(tmp_path / "cuts.jsonl.gz")
    (tmp_path / "cuts.jsonl").write_text("not json\n")
    with pytest.raises(CorpusError, match="line 1: not JSON"):
        read_lhotse(tmp_path / "cuts.jsonl")
