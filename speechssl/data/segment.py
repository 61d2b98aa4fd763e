"""Recordings of hours -> utterances of seconds, cut at silences, that point into the original file."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import soundfile

from speechssl.data.audio import AudioError, open_audio, resample
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.scan import LeftOut, parallel
from speechssl.errors import UserError

BLOCK_SECONDS = 300  # audio held in memory at once
FRAME_SECONDS = 0.01  # of the energy detector
SILENCE_DB = -60.0  # below this (re full scale) nothing is speech
MIN_SILENCE = 0.3  # seconds; shorter pauses do not end a span of speech
MIN_SPEECH = 0.1  # seconds; shorter bursts are not speech
MARGIN = 0.1  # seconds kept on both sides of speech
MAX_PAUSE = 1.0  # seconds; a longer silence is not kept inside a segment

Span = tuple[int, int]  # first sample, sample after the last
Detector = Callable[[np.ndarray, int, int], list[Span]]  # (T,) mono, Hz, longest span in samples -> spans of speech


class SegmentError(UserError):
    """A recording that cannot be cut."""


def segment_long(
    manifest: Manifest,
    *,
    max_seconds: float,
    min_seconds: float = 1.0,
    detector: str = "auto",
    jobs: int = 0,
    progress: bool = True,
) -> tuple[Manifest, list[LeftOut]]:
    """Cuts every utterance longer than `max_seconds` at its silences; the others stay as they are.

    Args:
        manifest: utterances without transcripts where they are long (a transcript cannot be cut).
        max_seconds: longest segment.
        min_seconds: shorter pieces are dropped.
        detector: "silero" (extra `vad`), "energy", or "auto": silero if it is installed.
        jobs, progress: as in `speechssl.data.scan.scan`.

    Returns:
        The manifest, and recordings in which no speech was found.

    Raises:
        SegmentError: silero is asked for and not installed.
    """
    chosen = pick_detector(detector)
    long = [utterance for utterance in manifest if utterance.seconds > max_seconds]
    cut = functools.partial(segment, max_seconds=max_seconds, min_seconds=min_seconds, detector=chosen)
    pieces = dict(zip((u.id for u in long), parallel(cut, long, "cutting at silences", jobs, progress), strict=True))
    left_out = [LeftOut("no speech", u.id, u.audio, f"{u.seconds:.0f} s") for u in long if not pieces[u.id]]
    return Manifest.of(piece for u in manifest for piece in pieces.get(u.id, [u])), left_out


def pick_detector(name: str) -> str:
    """ "silero" or "energy". Raises SegmentError for another name, or if silero is asked for and not installed."""
    installed = importlib.util.find_spec("silero_vad") is not None
    if name == "auto":
        return "silero" if installed else "energy"
    if name not in _DETECTORS:
        raise SegmentError(f"no detector '{name}'; choose auto, {', '.join(_DETECTORS)}.")
    if name == "silero" and not installed:
        raise SegmentError("silero-vad is not installed; `pip install speechssl[vad]`, or use --detector energy.")
    return name


def segment(utterance: Utterance, *, max_seconds: float, min_seconds: float, detector: str) -> list[Utterance]:
    """Segments of one recording, in order, named `<id>_<first ms>-<last ms>` (eight digits each).

    Each is at most `max_seconds` long and cut at silences; speech without one is cut where it is quietest.

    Raises:
        AudioError: the recording cannot be read.
    """
    rate = utterance.sample_rate
    longest, shortest = int(max_seconds * rate), int(min_seconds * rate)
    spans = _join(speech_spans(utterance, _DETECTORS[detector], longest), longest, int(MAX_PAUSE * rate))
    return [
        replace(
            utterance,
            id=f"{utterance.id}_{start * 1000 // rate:08d}-{stop * 1000 // rate:08d}",
            start=utterance.start + start,
            num_samples=stop - start,
        )
        for start, stop in spans
        if stop - start >= shortest
    ]


def speech_spans(utterance: Utterance, detector: Detector, longest: int) -> Iterator[Span]:
    """Spans of speech, in samples from the start of the utterance; holds BLOCK_SECONDS of it in memory.

    A span that touches the end of a block waits for the next one, so that no block border cuts speech.
    """
    rate = utterance.sample_rate
    held, position = np.empty(0, np.float32), 0  # samples not yet decided on, and where they begin
    for block, last in _blocks(utterance):
        held = np.concatenate([held, block])
        spans = detector(held, rate, longest)
        decided = len(held)
        if not last and spans and spans[-1][1] > len(held) - MIN_SILENCE * rate:
            decided = spans.pop()[0]
        elif not last:
            decided = max(len(held) - int(MIN_SILENCE * rate), 0)
        for start, stop in spans:
            yield position + start, position + stop
        held, position = held[decided:], position + decided


def _blocks(utterance: Utterance) -> Iterator[tuple[np.ndarray, bool]]:
    """(T,) mono blocks, and whether one is the last."""
    with open_audio(utterance) as file:
        left = utterance.num_samples
        try:
            if utterance.start:
                file.seek(utterance.start)
            while left > 0:
                block = file.read(min(BLOCK_SECONDS * utterance.sample_rate, left), dtype="float32", always_2d=True)
                left = left - len(block) if len(block) else 0
                yield block.mean(axis=1), left == 0
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"{utterance.audio} ({utterance.id}): cannot be decoded: {error}.") from None


def _join(spans: Iterator[Span], longest: int, max_pause: int) -> list[Span]:
    """Joins neighbours while the whole stays within `longest` and the pause between them within `max_pause`."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] <= max_pause and stop - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


# ----------------------------------------------------------------------------------------------------------- detectors


def energy_spans(samples: np.ndarray, rate: int, longest: int) -> list[Span]:
    """Speech is what lies well above the noise floor of the block: 10 ms frames, an adaptive threshold in dB.

    The threshold lies at 30 % of the way from the 10th to the 95th percentile of the frame levels, or at SILENCE_DB
    where that is higher or the level hardly changes (nothing but speech, or nothing but noise).
    """
    hop = max(int(rate * FRAME_SECONDS), 1)
    frames = len(samples) // hop
    if frames == 0:
        return []
    power = np.square(samples[: frames * hop].reshape(frames, hop)).mean(axis=1, dtype=np.float64)
    level = 10 * np.log10(power + 1e-12)
    floor, peak = np.percentile(level, (10, 95))
    threshold = max(SILENCE_DB, floor + 0.3 * (peak - floor)) if peak - floor > 12 else SILENCE_DB
    margin = round(MARGIN / FRAME_SECONDS)
    spans = _close(_runs(level > threshold), round(MIN_SILENCE / FRAME_SECONDS))
    spans = [span for span in spans if span[1] - span[0] >= round(MIN_SPEECH / FRAME_SECONDS)]
    spans = _close([(max(start - margin, 0), min(stop + margin, frames)) for start, stop in spans], 0)
    smooth = np.convolve(level, np.full(11, 1 / 11), mode="same")
    pieces = [piece for span in spans for piece in _cut_quietest(span, smooth, longest // hop)]
    return [(start * hop, stop * hop) for start, stop in pieces]


def _runs(active: np.ndarray) -> list[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _close(spans: list[Span], gap: int) -> list[Span]:
    """Joins spans with less than `gap` between them (0: those that touch or overlap)."""
    closed: list[Span] = []
    for start, stop in spans:
        if closed and start - closed[-1][1] <= gap:
            closed[-1] = (closed[-1][0], max(stop, closed[-1][1]))
        else:
            closed.append((start, stop))
    return closed


def _cut_quietest(span: Span, level: np.ndarray, longest: int) -> Iterator[Span]:
    """Pieces of at most `longest` frames, cut at the quietest frame of the second half of what may still be kept."""
    start, stop = span
    while stop - start > longest:
        window = start + longest // 2
        cut = window + int(np.argmin(level[window : start + longest])) + 1
        yield start, cut
        start = cut
    yield start, stop


def silero_spans(samples: np.ndarray, rate: int, longest: int) -> list[Span]:
    """Speech by silero-vad, a small network whose weights come with its wheel. It hears 16 kHz."""
    import torch
    from silero_vad import get_speech_timestamps

    found = get_speech_timestamps(
        resample(torch.from_numpy(np.ascontiguousarray(samples)), rate, 16_000),
        _silero(),
        sampling_rate=16_000,
        max_speech_duration_s=longest / rate,
        min_silence_duration_ms=round(MIN_SILENCE * 1000),
        speech_pad_ms=round(MARGIN * 1000),
    )
    spans = ((item["start"] * rate // 16_000, min(item["end"] * rate // 16_000, len(samples))) for item in found)
    return [(start, min(stop, start + longest)) for start, stop in spans]


@functools.lru_cache(maxsize=1)
def _silero():
    from silero_vad import load_silero_vad

    return load_silero_vad()


_DETECTORS: dict[str, Detector] = {"silero": silero_spans, "energy": energy_spans}
