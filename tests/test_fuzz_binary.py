"""Strangers' bytes, continued (see test_fuzz.py): checkpoints, units and sound."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fuzzing import altered, damaged, fuzz, only_our_errors
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE, speech

from speechssl import stored
from speechssl.config import Config, parse
from speechssl.data.audio import read_waveform
from speechssl.data.corpora import Candidate
from speechssl.data.manifest import Utterance
from speechssl.data.scan import LeftOut, Rules, check
from speechssl.data.units import Units
from speechssl.errors import UserError

# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    record = {"step": 3, "epoch": 1, "batch_in_epoch": 2, "config": Config().to_dict(), "tokenizer": None}
    stored.write_files(path, {stored.WEIGHTS: {"a": torch.ones(2, 3), "b": torch.arange(4)}}, record)
    return path


def signed(path: Path, record: dict) -> None:
    """As a stranger would write it: every hash is right."""
    record.pop("check", None)
    record["check"] = stored._check(record)
    (path / stored.RECORD).write_text(json.dumps(record))


@fuzz
@given(data=st.data())
def test_records(saved, tmp_path, data):
    record = json.loads((saved / stored.RECORD).read_text())
    (tmp_path / stored.WEIGHTS).write_bytes((saved / stored.WEIGHTS).read_bytes())
    signed(tmp_path, data.draw(altered(record)))
    with only_our_errors():
        found = stored.read_record(tmp_path)
        parse(Config, found.get("config"), source="stranger")


@fuzz
@given(data=st.data())
def test_damaged_records(saved, tmp_path, data):
    (tmp_path / stored.RECORD).write_bytes(data.draw(damaged((saved / stored.RECORD).read_bytes())))
    with only_our_errors():
        stored.read_record(tmp_path)


@fuzz
@given(data=st.data())
def test_tensors(saved, tmp_path, data):
    (tmp_path / stored.WEIGHTS).write_bytes(data.draw(damaged((saved / stored.WEIGHTS).read_bytes())))
    with only_our_errors():
        stored.read_tensors(tmp_path / stored.WEIGHTS)


@pytest.mark.parametrize("size", [0, 2**31, 2**62, 2**64 - 1])
def test_a_header_that_claims_to_be_huge(tmp_path, size):
    (tmp_path / "a").write_bytes(size.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,9]}}')
    with pytest.raises(stored.CheckpointError):
        stored.read_tensors(tmp_path / "a")


# --------------------------------------------------------------------------------------------------------------- units


@fuzz
@given(data=st.data())
def test_units(tmp_path, data):
    np.save(tmp_path / "units.npy", np.arange(10, dtype=np.int16))
    record = {"format": 1, "hop": 320, "sample_rate": RATE, "num_units": 50, "source": {}}
    index = {"id": "a", "first": 0, "count": 10}
    which = data.draw(st.sampled_from(["record", "index", "array"]))
    (tmp_path / "units.json").write_text(json.dumps(data.draw(altered(record)) if which == "record" else record))
    (tmp_path / "index.jsonl").write_text(json.dumps(data.draw(altered(index)) if which == "index" else index) + "\n")
    if which == "array":
        (tmp_path / "units.npy").write_bytes(data.draw(damaged((tmp_path / "units.npy").read_bytes())))
    with only_our_errors():
        units = Units(tmp_path)
        for name in units.ids:
            units.read(name, 0, 5)


# --------------------------------------------------------------------------------------------------------------- sound


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, speech(0.3), RATE, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "OGG", "MP3", "AIFF"])
@fuzz
@given(data=st.data())
def test_sound(tmp_path, kind, data):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data.draw(damaged(encoded(kind))))
    with only_our_errors():
        waveform = read_waveform(Utterance("a", str(path), 4800, RATE), RATE)
        assert waveform.shape == (4800,)
        assert waveform.isfinite().all()
    found = check(Candidate("a", str(path)), Rules())
    assert isinstance(found, (Utterance, LeftOut))


@pytest.mark.parametrize("path", ["a\0b", "", "a" * 5000, "~", "/dev/null"])
@pytest.mark.parametrize("span", [None, (0, 10), (2**62, 2**62)])
def test_paths_that_are_none(path, span):
    with pytest.raises(UserError):
        read_waveform(Utterance("a", path, 4800, RATE, byte_range=span), RATE)


def test_a_header_of_a_trillion_samples(tmp_path):
    """FLAC has 36 bits for their number: a year of sound. Neither listening nor decoding reserves room for it."""
    data = bytearray(encoded("FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"
    (tmp_path / "a.flac").write_bytes(data)
    found = check(Candidate("a", str(tmp_path / "a.flac")), Rules())
    assert isinstance(found, LeftOut)
    claimed = Utterance("a", str(tmp_path / "a.flac"), 2**36 - 1, RATE)
    with pytest.raises(UserError):
        read_waveform(claimed, RATE)
    huge = Utterance("a", str(tmp_path / "a.flac"), 2**50, RATE)
    with pytest.raises(UserError):
        read_waveform(huge, RATE)
    with pytest.raises(UserError):
        read_waveform(Utterance("a", str(tmp_path / "a.flac"), 4800, RATE, byte_range=(0, 2**60)), RATE, count=2**40)
