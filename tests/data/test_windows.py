"""How long recordings are cut: every frame once, on the grid of the whole, and never more than a window at a time."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE, speech

from speechssl.data.audio import normalize, read_waveform
from speechssl.data.manifest import Utterance
from speechssl.data.recordings import Segment, window_batches
from speechssl.data.windows import Cutting, WindowError


@st.composite
def cuttings(draw):
    """Of any hop and receptive field, the latter also smaller than the former."""
    edge = draw(st.integers(0, 20))
    size = draw(st.integers(2 * edge + 1, 2 * edge + 60))
    return Cutting(draw(st.integers(1, 700)), draw(st.integers(1, 2000)), size, edge)


def recordings(cutting: Cutting) -> st.SearchStrategy[int]:
    """Samples of a recording, of up to some 300 frames."""
    return st.integers(1, cutting.receptive_field + 300 * cutting.hop)


@given(cuttings(), st.data())
def test_each_frame_is_kept_once_with_its_context(cutting, data):
    total = data.draw(recordings(cutting))
    windows = list(cutting.windows(total))
    frames = sum(first + cutting.receptive_field <= total for first in range(0, total, cutting.hop))
    assert cutting.frames(total) == frames
    assert [frame for window in windows for frame in range(window.first, window.stop)] == list(range(frames))
    assert cutting.is_long(total) == (len(windows) > 1)
    for window in windows:
        inside = cutting.frames(window.samples)
        assert window.start * cutting.hop + window.samples <= total, "it reads what there is"
        assert inside == min(cutting.size, frames)
        assert window.samples == (cutting.samples if len(windows) > 1 else total), "bounded, and nothing to pad"
        assert window.start <= window.first < window.stop <= window.start + inside
        assert window.start == 0 or window.first - window.start >= cutting.edge
        assert window.start + inside == frames or window.start + inside - window.stop == cutting.edge


@given(cuttings(), st.data(), st.integers(1, 3))
def test_stitched_rows_are_those_of_the_whole(cutting, data, rows):
    """A model that says where each of its frames begins, in as many rows as it likes."""
    total = data.draw(recordings(cutting))
    places = np.arange(0, total, cutting.hop)[: cutting.frames(total)].repeat(rows)
    parts = []
    for window in cutting.windows(total):
        begin = window.start * cutting.hop
        said = begin + np.arange(0, window.samples, cutting.hop)[: cutting.frames(window.samples)].repeat(rows)
        parts.append(said[window.kept(rows)])
    assert np.array_equal(np.concatenate([*parts, places[:0]]), places)


@given(st.integers(1, 500), st.integers(1, 2000), st.integers(1, 3000), st.integers(0, 1000), st.integers(4000, 48_000))
def test_windows_in_seconds(hop, field, window_ms, context_ms, rate):
    seconds, context = window_ms / 1000, context_ms / 1000
    try:
        cutting = Cutting.of(hop, field, rate, seconds=seconds, context=context)
    except WindowError:
        assert (round(seconds * rate) - field) // hop + 1 <= 2 * context * rate / hop + 2
        return
    assert cutting.samples <= round(seconds * rate) < cutting.samples + hop
    assert 0 <= cutting.edge * hop - context * rate <= hop
    assert not cutting.is_long(round(seconds * rate))
    assert cutting.is_long(round(seconds * rate) + hop)


@pytest.mark.parametrize(
    ("seconds", "context", "sentence"),
    [
        (1.0, 0.5, "windows of 1 s leave nothing between 0.5 s of context on both sides; take longer windows"),
        (0.001, 0.0, "leave nothing"),
        (0.0, 0.0, "more than 0 s"),
        (1.0, -0.1, "0 s or more, not 1 and -0.1 s"),
        (float("inf"), 0.0, "not inf and 0 s"),
        (float("nan"), 0.0, "not nan and 0 s"),
    ],
)
def test_windows_that_cannot_be(seconds, context, sentence):
    with pytest.raises(WindowError, match=sentence):
        Cutting.of(80, 85, RATE, seconds=seconds, context=context)


@pytest.fixture
def segment(tmp_path) -> Utterance:
    """3 s in the middle of a file."""
    soundfile.write(tmp_path / "long.wav", speech(4.0) + np.float32(0.1), RATE, subtype="FLOAT")
    return Utterance("u", str(tmp_path / "long.wav"), 3 * RATE, RATE, start=8000)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("seconds_per_batch", [0.1, 1.7])
def test_batches_of_windows_are_parts_of_the_whole(segment, normalized, seconds_per_batch):
    """Normalised by the statistics of the whole utterance, not of the window or of the file."""
    cutting = Cutting.of(80, 85, RATE, seconds=0.5, context=0.1)
    whole = read_waveform(segment, RATE)
    whole = normalize(whole) if normalized else whole
    found = list(
        window_batches(Segment(segment, RATE), cutting, normalize=normalized, seconds_per_batch=seconds_per_batch)
    )
    assert [window for _, windows in found for window in windows] == list(cutting.windows(3 * RATE))
    assert max(len(windows) for _, windows in found) == (1 if seconds_per_batch < 0.5 else 3)
    for batch, windows in found:
        assert not batch.padded
        for row, window in zip(batch.waveforms, windows, strict=True):
            begin = window.start * 80
            torch.testing.assert_close(row, whole[begin : begin + window.samples], atol=1e-5, rtol=1e-5)


def test_one_that_is_not_long_is_heard_whole(segment):
    ((batch, windows),) = window_batches(
        Segment(segment, RATE), Cutting.of(80, 85, RATE), normalize=True, seconds_per_batch=60.0
    )
    assert torch.equal(batch.waveforms[0], normalize(read_waveform(segment, RATE)))
    assert windows[0].kept() == slice(0, windows[0].stop)
