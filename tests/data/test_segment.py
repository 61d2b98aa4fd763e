"""Long recordings become segments that cut no speech and point into the file."""

import itertools
import sys
import types

import numpy as np
import pytest
import soundfile

from speechssl.data import segment as module
from speechssl.data.audio import read_waveform
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.segment import SegmentError, energy_spans, pick_detector, segment, segment_long

RATE = 8000


def recording(path, parts, channels=1):
    """A file of (seconds, is speech) parts over faint noise. Returns the utterance and the spans of speech."""
    random = np.random.default_rng(0)
    pieces, spans, position = [], [], 0
    for seconds, speaks in parts:
        count = int(seconds * RATE)
        pieces.append((0.1 if speaks else 1e-4) * random.standard_normal(count))
        spans += [(position, position + count)] if speaks else []
        position += count
    samples = np.stack([np.concatenate(pieces)] * channels, axis=1)
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return Utterance("talk", str(path), len(samples), RATE, speaker="anna"), spans


def random_parts(seconds, seed=0):
    random, parts = np.random.default_rng(seed), []
    while sum(length for length, _ in parts) < seconds:
        parts += [(random.uniform(0.5, 3), True), (random.uniform(0.5, 2.5), False)]
    return parts


@pytest.mark.parametrize("block", [7, 300])
@pytest.mark.parametrize("channels", [1, 2])
def test_all_speech_is_kept_and_none_is_cut(tmp_path, monkeypatch, block, channels):
    monkeypatch.setattr(module, "BLOCK_SECONDS", block)
    whole, spans = recording(tmp_path / "talk.wav", random_parts(90), channels)
    pieces = segment(whole, max_seconds=10, min_seconds=0.5, detector="energy")
    assert len(pieces) > 9
    assert all(piece.seconds <= 10 for piece in pieces)
    assert all(a.start + a.num_samples <= b.start for a, b in itertools.pairwise(pieces))
    slack = int(0.02 * RATE)  # two frames
    for start, stop in spans:
        holders = [p for p in pieces if p.start <= start + slack and stop - slack <= p.start + p.num_samples]
        assert len(holders) == 1, "each stretch of speech lies whole in one segment"
    kept = sum(piece.num_samples for piece in pieces)
    assert kept < 0.9 * whole.num_samples, "long silences are left out"


def test_segments_are_named_by_time_and_read_back_equal(tmp_path):
    whole, _ = recording(tmp_path / "talk.wav", [(2, False), (3, True), (2, False), (4, True), (1, False)])
    first, second = segment(whole, max_seconds=8, min_seconds=1, detector="energy")
    assert (first.id, second.id) == ("talk_00001900-00005100", "talk_00006900-00011100")
    assert (first.audio, first.speaker, first.sample_rate) == (whole.audio, "anna", RATE)
    samples = read_waveform(whole, RATE)
    assert read_waveform(second, RATE).equal(samples[second.start : second.start + second.num_samples])


def test_segments_of_a_segment_start_where_it_starts(tmp_path):
    whole, _ = recording(tmp_path / "talk.wav", [(3, True), (2, False), (3, True)])
    part = Utterance("part", whole.audio, whole.num_samples - 4 * RATE, RATE, start=4 * RATE)
    (piece,) = segment(part, max_seconds=8, min_seconds=1, detector="energy")
    assert piece.start == pytest.approx(4.9 * RATE, abs=0.02 * RATE)
    assert piece.start + piece.num_samples == whole.num_samples


@pytest.mark.parametrize("block", [7, 300])
def test_speech_without_silence_is_cut_where_it_is_quietest(tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_SECONDS", block)
    whole, spans = recording(tmp_path / "talk.wav", [(4, True), (0.2, False)] * 10 + [(1, True)])
    pieces = segment(whole, max_seconds=5, min_seconds=0.5, detector="energy")
    assert len(pieces) == len(spans)
    for piece, (start, stop) in zip(pieces, spans, strict=True):
        assert piece.start <= start + 0.02 * RATE
        assert piece.start + piece.num_samples >= stop - 0.02 * RATE
    assert all(piece.seconds <= 5 for piece in pieces)
    cuts = [piece.start / RATE % 4.2 for piece in pieces[1:]]
    assert all(cut >= 4 or cut < 0.02 for cut in cuts), "every cut lies in a pause"


@pytest.mark.parametrize("level", [0.0, 1e-5])
def test_silence_gives_nothing(level):
    samples = (level * np.random.default_rng(0).standard_normal(RATE * 20)).astype(np.float32)
    assert energy_spans(samples, RATE, 5 * RATE) == []
    assert energy_spans(samples[:10], RATE, 5 * RATE) == []


def test_only_what_is_long_is_cut_and_silence_is_reported(tmp_path):
    talk, _ = recording(tmp_path / "talk.wav", random_parts(30))
    (tmp_path / "silent").mkdir()
    silent, _ = recording(tmp_path / "silent/s.wav", [(30, False)])
    short = Utterance("short", talk.audio, 5 * RATE, RATE)
    whole = Manifest.of([short, talk, Utterance("silent", silent.audio, silent.num_samples, RATE)])
    manifest, left_out = segment_long(whole, max_seconds=10, detector="energy", jobs=1, progress=False)
    assert manifest[0] == short
    assert all(u.id.startswith("talk_") for u in manifest[1:])
    assert [(item.reason, item.id) for item in left_out] == [("no speech", "silent")]


def test_detectors_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert pick_detector("auto") == "energy"
    with pytest.raises(SegmentError, match=r"pip install speechssl\[vad\]"):
        pick_detector("silero")
    with pytest.raises(SegmentError, match="choose auto"):
        pick_detector("sliero")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert pick_detector("auto") == "silero"


def test_silero_hears_16_khz_and_answers_at_the_rate_of_the_file(monkeypatch):
    """Against silero-vad's documented interface; the network itself is not needed."""

    def get_speech_timestamps(audio, model, *, sampling_rate, max_speech_duration_s, **options):
        assert audio.shape == (20 * 16_000,)
        assert (model, sampling_rate, max_speech_duration_s) == ("model", 16_000, 5.0)
        return [{"start": 16_000, "end": 5 * 16_000}, {"start": 18 * 16_000, "end": 20 * 16_000 + 7}]

    fake = types.SimpleNamespace(get_speech_timestamps=get_speech_timestamps, load_silero_vad=lambda: "model")
    monkeypatch.setitem(sys.modules, "silero_vad", fake)
    module._silero.cache_clear()
    spans = module.silero_spans(np.zeros(20 * RATE, np.float32), RATE, 5 * RATE)
    module._silero.cache_clear()
    assert spans == [(RATE, 5 * RATE), (18 * RATE, 20 * RATE)]


def test_silero_finds_speech_if_it_is_installed():
    pytest.importorskip("silero_vad", reason="silero-vad is an extra: pip install speechssl[vad]")
    assert module.silero_spans(np.zeros(5 * RATE, np.float32), RATE, 5 * RATE) == []
