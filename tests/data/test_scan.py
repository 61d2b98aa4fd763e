"""Every reason for which an utterance is left out, once; and that a lying header costs nothing."""

import io
import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from rich.console import Console

from speechssl.data import scan as module
from speechssl.data.corpora import Candidate, Corpus
from speechssl.data.scan import REASONS, Rules, ScanReport, check, parallel, scan

RATE = 16_000


def noise(seconds=1.0, scale=0.1):
    return scale * np.random.default_rng(0).standard_normal(int(seconds * RATE))


def write(path, samples, subtype="PCM_16"):
    soundfile.write(path, samples, RATE, subtype=subtype)
    return str(path)


def reason(path, rules=None, **fields):
    result = check(Candidate("id", str(path), **fields), rules or Rules())
    return result.reason if isinstance(result, module.LeftOut) else "kept"


def test_sound_files_are_kept_whole(tmp_path):
    path = write(tmp_path / "a.flac", noise())
    utterance = check(Candidate("id", path, text="HI", speaker="anna"), Rules())
    assert (utterance.num_samples, utterance.sample_rate) == (RATE, RATE)
    assert (utterance.text, utterance.speaker, utterance.start) == ("HI", "anna", 0)


def test_unreadable(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"this is a text\n" * 100)
    assert reason(tmp_path / "a.wav") == "unreadable"
    assert reason(tmp_path / "missing.wav") == "unreadable"


@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3"])
def test_truncated(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(3), RATE)
    assert reason(path) == "kept"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path) == "truncated"


def test_a_list_that_promises_more_is_truncated_too(tmp_path):
    path = write(tmp_path / "a.wav", noise())
    assert reason(path, start=8000, num_samples=8000) == "kept"
    assert reason(path, start=8000, num_samples=8001) == "truncated"
    assert reason(path, start=20_000, num_samples=8000) == "truncated"


def test_wav_written_to_a_pipe_promises_nothing(tmp_path):
    path = tmp_path / "a.wav"
    write(path, noise())
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert reason(path) == "kept"


def test_empty(tmp_path):
    (tmp_path / "no-bytes.flac").write_bytes(b"")
    assert reason(tmp_path / "no-bytes.flac") == "empty"
    assert reason(write(tmp_path / "no-samples.wav", np.zeros(0))) == "empty"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, value):
    samples = np.stack([noise(), noise()], axis=1)
    samples[777, 1] = value
    assert reason(write(tmp_path / "a.wav", samples, "FLOAT")) == "not finite"


def test_length_limits(tmp_path):
    path = write(tmp_path / "a.wav", noise(2))
    assert reason(path, Rules(min_seconds=2.01)) == "too short"
    assert reason(path, Rules(max_seconds=1.99)) == "too long"
    assert reason(path, Rules(max_seconds=1.99, keep_long=True)) == "kept"
    assert reason(path, Rules(max_seconds=1.99, keep_long=True), text="CANNOT BE CUT") == "too long"


def test_clipped(tmp_path):
    cut = write(tmp_path / "cut.wav", np.clip(noise(scale=0.5), -1, 1))  # 4.6 % beyond two deviations
    loud = write(tmp_path / "loud.wav", np.sin(np.arange(RATE) * 0.05))
    assert reason(cut) == "clipped"
    assert reason(cut, Rules(max_clipped=0.06)) == "kept"
    assert reason(loud) == "kept", "a tone at full scale is loud, not clipped"


def test_what_the_whole_corpus_tells(tmp_path):
    path = write(tmp_path / "a.wav", noise())
    corpus = Corpus(
        (Candidate("a", path, text="A"), Candidate("a", path, text="B"), Candidate("b", path)),
        no_audio=(("c", "trans.txt"),),
    )
    manifest, left_out = scan(corpus, Rules(require_text=True), progress=False)
    assert [u.text for u in manifest] == ["A"]
    expected = [("duplicate id", "a"), ("no transcript", "b"), ("no audio", "c")]
    assert [(item.reason, item.id) for item in left_out] == expected


def lying_flac(path, claimed):
    """A FLAC whose header claims this many samples."""
    write(path, noise())
    content = bytearray(path.read_bytes())
    content[21] = (content[21] & 0xF0) | (claimed >> 32)
    content[22:26] = struct.pack(">I", claimed & 0xFFFFFFFF)
    path.write_bytes(content)


def test_a_header_that_claims_years_costs_nothing(tmp_path):
    lying_flac(tmp_path / "years.flac", 2**36 - 1)
    tracemalloc.start()
    try:
        assert reason(tmp_path / "years.flac") == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_header_that_says_nothing(tmp_path):
    lying_flac(tmp_path / "unknown.flac", 0)
    assert reason(tmp_path / "unknown.flac") == "unreadable"


def test_files_are_decoded_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)
    samples = np.stack([noise(), noise()], axis=1)
    samples[-1] = np.nan
    assert reason(write(tmp_path / "a.wav", samples, "FLOAT")) == "not finite", "the last block is heard too"
    assert reason(write(tmp_path / "b.wav", samples[:-1])) == "kept"


def test_report_counts_names_and_writes(tmp_path):
    write(tmp_path / "good.wav", noise(3))
    (tmp_path / "bad[1].wav").write_bytes(b"x" * 100)
    paths = [Candidate(p.stem, str(p), speaker="anna") for p in sorted(tmp_path.iterdir())]
    manifest, left_out = scan(Corpus(tuple(paths), (("gone", "list"),)), Rules(), progress=False)
    report = ScanReport.of(manifest, left_out, {"command": "test"})
    assert report.histogram["2-4 s"] == 1
    assert sum(report.histogram.values()) == 1
    report.write(tmp_path / "sub/report.json")
    record = json.loads((tmp_path / "sub/report.json").read_text())
    assert record["utterances"] == record["speakers"] == 1
    assert record["made_by"] == {"command": "test"}
    assert {key: [item["id"] for item in items] for key, items in record["left_out"].items()} == {
        "unreadable": ["bad[1]"],
        "no audio": ["gone"],
    }
    shown = io.StringIO()
    report.show(Console(file=shown, width=200))
    assert "bad[1]" in shown.getvalue()
    assert REASONS["no audio"] in shown.getvalue()


def test_processes_answer_in_order(monkeypatch):
    monkeypatch.setattr(module, "FEW", 2)
    names = [f"/nowhere/{number}" for number in range(40)]
    assert list(parallel(os.path.basename, names, "", jobs=2, progress=False)) == [str(n) for n in range(40)]
