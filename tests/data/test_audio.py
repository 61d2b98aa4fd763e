"""Reading: a segment is a slice of the whole, at any rate; damage is named."""

import tarfile

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import speech

from speechssl.data.audio import AudioError, normalize, read_waveform, resample
from speechssl.data.manifest import Utterance

RATE = 16_000


def write(path, samples, rate=RATE, **arguments) -> Utterance:
    soundfile.write(path, samples, rate, **arguments)
    return Utterance("u", str(path), len(samples), rate)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_segment_is_a_slice_of_the_whole(tmp_path, ending):
    utterance = write(tmp_path / f"a.{ending}", speech(3.0))
    whole = soundfile.read(utterance.audio, dtype="float32")[0]
    assert len(whole) == 3 * RATE
    places = [(0, 100), (1, 4097), (12_345, 20_000), (0, None)]
    if ending != "ogg":  # in its last page libvorbis lands a few milliseconds beside the place it is told
        places += [(3 * RATE - 7, 7), (40_000, None)]
    for first, count in places:
        segment = read_waveform(utterance, RATE, first=first, count=count).numpy()
        np.testing.assert_allclose(segment, whole[first : None if count is None else first + count], atol=1e-6)


def test_an_utterance_inside_a_long_recording(tmp_path):
    whole = write(tmp_path / "long.wav", speech(2.0), subtype="FLOAT")
    utterance = Utterance("u", whole.audio, 8000, RATE, start=10_000)
    np.testing.assert_array_equal(read_waveform(utterance, RATE), speech(2.0)[10_000:18_000])
    np.testing.assert_array_equal(read_waveform(utterance, RATE, first=100, count=50), speech(2.0)[10_100:10_150])


def test_a_file_inside_a_tar(tmp_path):
    loose = write(tmp_path / "a.flac", speech(0.5))
    with tarfile.open(tmp_path / "sound.tar", "w") as tar:
        tar.add(tmp_path / "a.flac", "a.flac")
    with tarfile.open(tmp_path / "sound.tar") as tar:
        member = tar.getmember("a.flac")
    inside = Utterance("u", str(tmp_path / "sound.tar"), 8000, RATE, byte_range=(member.offset_data, member.size))
    torch.testing.assert_close(read_waveform(inside, RATE), read_waveform(loose, RATE), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------- resampling


@given(samples=st.integers(1, 700_000), rate=st.sampled_from([8000, 11_025, 22_050, 24_000, 44_100, 48_000]))
def test_length_after_resampling_is_what_the_manifest_says(samples, rate):
    expected = Utterance("u", "u", samples, rate).length_at(RATE)
    assert len(resample(torch.zeros(samples), rate, RATE)) == expected


@pytest.mark.parametrize(("samples", "rate"), [(180_697, 44_100), (180_861, 22_050), (180_892, 11_025)])
def test_lengths_that_round_badly_in_single_precision(samples, rate):
    assert len(resample(torch.zeros(samples), rate, RATE)) == -(-samples * RATE // rate)


def test_stereo_at_44100(tmp_path):
    left, right = speech(1.5, seed=1, rate=44_100), speech(1.5, seed=2, rate=44_100)
    utterance = write(tmp_path / "a.wav", np.stack((left, right), 1), 44_100, subtype="FLOAT")
    whole = read_waveform(utterance, RATE)
    assert len(whole) == utterance.length_at(RATE) == 24_000
    torch.testing.assert_close(whole, resample(torch.from_numpy((left + right) / 2), 44_100, RATE))
    # crops that begin on a sample of both rates are slices, but for the filter's width at their ends
    crop = read_waveform(utterance, RATE, first=1600, count=8000)
    assert len(crop) == 8000
    torch.testing.assert_close(crop[50:-50], whole[1650 : 1600 + 7950], rtol=0, atol=1e-5)
    for first, count in [(0, 1), (1, 77), (23_999, 1), (12_345, 11_655)]:
        assert len(read_waveform(utterance, RATE, first=first, count=count)) == count


def test_a_tone_keeps_its_pitch_and_loudness(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    read = read_waveform(write(tmp_path / "a.wav", tone, 48_000, subtype="FLOAT"), RATE).numpy()
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / RATE)
    np.testing.assert_allclose(read[100:-100], expected[100:-100], atol=2e-3)


def test_normalize():
    waveform = normalize(torch.from_numpy(speech(1.0)) * 3 + 0.7)
    assert abs(float(waveform.mean())) < 1e-5
    assert float(waveform.var(correction=0)) == pytest.approx(1.0, abs=1e-3)
    assert torch.isfinite(normalize(torch.zeros(100))).all()  # silence


# ------------------------------------------------------------------------------------------------------------- damage


def sentence(utterance: Utterance, **crop) -> str:
    with pytest.raises(AudioError) as caught:
        read_waveform(utterance, RATE, **crop)
    text = str(caught.value)
    assert utterance.audio in text
    assert utterance.id in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("first", [0, 30_000])
def test_a_truncated_file(tmp_path, ending, first):
    utterance = write(tmp_path / f"a.{ending}", speech(3.0))
    data = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(data[: len(data) // 2])
    text = sentence(utterance, first=first)
    assert "truncated" in text or "cannot be decoded" in text or "cannot be read" in text


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_an_empty_file(tmp_path, ending):
    utterance = write(tmp_path / f"a.{ending}", speech(1.0))
    (tmp_path / f"a.{ending}").write_bytes(b"")
    assert "cannot be read" in sentence(utterance)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers(tmp_path, bad):
    samples = speech(1.0)
    samples[5000] = bad
    utterance = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert "not numbers" in sentence(utterance)
    read_waveform(utterance, RATE, first=0, count=4000)  # what is not needed is not judged


def test_a_file_with_another_rate(tmp_path):
    utterance = write(tmp_path / "a.wav", speech(1.0))
    soundfile.write(utterance.audio, speech(1.0), 8000)
    assert "8000 Hz, the manifest says 16000" in sentence(utterance)


def test_a_missing_file(tmp_path):
    assert "cannot be read" in sentence(Utterance("u", str(tmp_path / "a.wav"), 16_000, RATE))
