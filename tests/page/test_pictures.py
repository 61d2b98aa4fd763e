"""Pictures and sound that a reader of the page gets back as they were."""

import base64
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.page import pictures
from speechssl.page.pictures import ink, png, sound, spectrogram


def decoded(content: bytes) -> np.ndarray:
    """(H, W) in 0 to 1 of a PNG with 4-bit palette numbers whose opacity is in tRNS."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        chunks[kind] = content[place + 8 : place + 8 + size]
        (crc,) = struct.unpack(">I", content[place + 8 + size : place + 12 + size])
        assert crc == zlib.crc32(kind + chunks[kind])
        place += 12 + size
    width, height, depth, kind_of_colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, kind_of_colour) == (4, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    levels = np.stack([rows[:, 1:] >> 4, rows[:, 1:] & 15], -1).reshape(height, -1)[:, :width]
    return np.frombuffer(chunks[b"tRNS"], np.uint8)[levels] / 255


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_picture_comes_back(height, width, seed):
    strength = np.random.default_rng(seed).random((height, width))
    assert np.abs(decoded(png(strength)) - strength).max() <= 0.5 / 15 + 1e-9


def test_what_is_no_number_or_out_of_range_is_drawn_as_nothing_or_all():
    assert decoded(png(np.array([[np.nan, -1.0, 2.0]]))).tolist() == [[0.0, 0.0, 1.0]]


def test_a_tone_is_a_dark_row_in_its_place():
    time = torch.arange(16_000) / 16_000
    low, high = (spectrogram(torch.sin(2 * np.pi * f * time), 16_000) for f in (200, 5000))
    assert low.shape == (64, 101)
    assert low.mean(1).argmax() > 48  # near the bottom
    assert high.mean(1).argmax() < 16


@pytest.mark.parametrize("samples", [1, 80, 400, 16_000, 3_000_000])
def test_any_length_has_a_spectrogram(samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = spectrogram(torch.randn(samples), 16_000)
    assert 1 <= picture.shape[1] <= 602
    assert np.isfinite(picture).all()


def test_sound_can_be_played_and_is_small():
    waveform = 0.02 * torch.sin(torch.arange(48_000) / 5)
    kind, content = sound(waveform, 16_000).split(";base64,")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert kind in ("data:audio/ogg", "data:audio/wav")
    assert len(samples) / rate == pytest.approx(3.0, abs=0.05)
    assert np.abs(samples).max() == pytest.approx(0.89, abs=0.1)
    if kind == "data:audio/ogg":
        assert len(content) < 40_000


@pytest.mark.parametrize("rate", [11_025, 16_000])
def test_wav_where_opus_cannot_be_written(rate, monkeypatch):
    if rate == 16_000:
        monkeypatch.setattr(pictures.soundfile, "available_subtypes", lambda kind: ["VORBIS"])
    assert sound(torch.zeros(500), rate).startswith("data:audio/wav;")


def test_ink_is_described():
    html = ink(np.zeros((2, 2)), "a picture of nothing", "spectrogram")
    assert 'role="img"' in html
    assert 'aria-label="a picture of nothing"' in html
