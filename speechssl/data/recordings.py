"""Recordings of any length, read piece by piece at one sample rate. Shapes: T samples, C channels of a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from math import gcd
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from speechssl.batch import Batch
from speechssl.data.audio import QUIET, AudioError, is_odd_rate, normalize, open_audio, read_waveform, resample
from speechssl.data.manifest import Utterance
from speechssl.data.series import cut, is_series, open_series, segment_of, standardize
from speechssl.data.windows import Cutting, Window

Audio: TypeAlias = "Tensor | np.ndarray | str | PathLike[str]"
FILTER = 8  # samples of the lower rate that a resampled one sees to either side: torchaudio's filter has 6 zeros
BLOCK = 60  # seconds read at once to measure a whole recording
UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's answer where a header says nothing


class Recording:
    """`total` samples at `sample_rate`, whatever the rate of its source."""

    channels = 1

    def __init__(self, name: str, total: int, sample_rate: int):
        self.name, self.total, self.sample_rate = name, total, sample_rate

    def read(self, first: int, count: int) -> Tensor:
        """(count,) float32 from sample `first` on, the same numbers however the recording is cut. Raises AudioError."""
        raise NotImplementedError

    @cached_property
    def level(self) -> tuple[float, float]:
        """Mean and standard deviation of all samples, as `normalize` takes them."""
        total = squares = 0.0
        for first in range(0, self.total, BLOCK * self.sample_rate):
            block = self.read(first, min(BLOCK * self.sample_rate, self.total - first)).double()
            total, squares = total + float(block.sum()), squares + float(block.square().sum())
        mean = total / self.total
        return mean, (max(squares / self.total - mean**2, 0.0) + QUIET) ** 0.5

    def normalized(self, first: int, count: int) -> Tensor:
        """`read`, with zero mean and unit variance over the whole recording: for a part, all is read once first."""
        waveform = self.read(first, count)
        if count == self.total:
            return normalize(waveform)
        mean, deviation = self.level
        return (waveform - mean) / deviation


class Memory(Recording):
    """A waveform (T,) of floating-point numbers."""

    def __init__(self, waveform: Tensor | np.ndarray, source_rate: int, sample_rate: int, name: str):
        waveform = torch.as_tensor(waveform)
        if waveform.dim() != 1 or not waveform.is_floating_point():
            raise AudioError(
                f"{name}: a waveform is a row of floating-point samples from -1 to 1, not {waveform.dtype} of shape "
                f"{tuple(waveform.shape)}; take one channel, or their mean."
            )
        if not torch.isfinite(waveform).all():
            raise AudioError(f"{name}: holds samples that are not numbers (NaN or infinity).")
        if source_rate < 1 or is_odd_rate(source_rate, sample_rate):
            raise AudioError(f"{name}: {source_rate} Hz cannot be resampled to {sample_rate} Hz in reasonable memory.")
        self.waveform = resample(waveform.detach().float().cpu(), source_rate, sample_rate)
        super().__init__(name, len(self.waveform), sample_rate)

    def read(self, first: int, count: int) -> Tensor:
        return self.waveform[first : first + count]


class Segment(Recording):
    """An utterance of a manifest, of which only what is asked for is decoded."""

    def __init__(self, utterance: Utterance, sample_rate: int):
        self.utterance = utterance
        super().__init__(f"{utterance.audio} ({utterance.id})", utterance.length_at(sample_rate), sample_rate)

    def read(self, first: int, count: int) -> Tensor:
        rate = self.utterance.sample_rate
        if rate == self.sample_rate:
            return read_waveform(self.utterance, rate, first=first, count=count)
        # Begin where a sample of the file and one of ours fall together, and give the filter what it sees.
        step, edge = self.sample_rate // gcd(rate, self.sample_rate), FILTER * -(-self.sample_rate // rate)
        start = max(first - edge, 0) // step * step
        stop = min(first + count + edge, self.total)
        longer = read_waveform(self.utterance, self.sample_rate, first=start, count=stop - start)
        return longer[first - start : first - start + count]


class Series(Recording):
    """An array (C, T), in memory or mapped from a file, whose rate is the encoder's. It is read as (count, C)."""

    def __init__(self, array: np.ndarray, sample_rate: int, name: str):
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            raise AudioError(f"{name}: a series is of numbers (channels, time), not {array.dtype} of {array.shape}.")
        super().__init__(name, array.shape[1], sample_rate)
        self.array, self.channels = array, array.shape[0]

    def read(self, first: int, count: int) -> Tensor:
        return cut(self.array, first, first + count, self.name)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel, (C,) in double precision."""
        mean = self._mean_of(lambda block: block)
        return mean, self._mean_of(lambda block: (block - mean).square())

    def _mean_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        steps = BLOCK * self.sample_rate
        starts = range(0, self.total, steps)
        blocks = (self.read(first, min(steps, self.total - first)).double() for first in starts)
        return torch.stack([function(block).sum(0) for block in blocks]).sum(0) / self.total

    def normalized(self, first: int, count: int) -> Tensor:
        return standardize(self.read(first, count), *self.moments)


def recording_of(utterance: Utterance, sample_rate: int) -> Recording:
    """An utterance of a manifest, sound or series. Raises AudioError."""
    if is_series(utterance.audio):
        return Series(segment_of(utterance, sample_rate), sample_rate, f"{utterance.audio} ({utterance.id})")
    return Segment(utterance, sample_rate)


def open_recording(
    audio: Audio, sample_rate: int, *, source_rate: int | None = None, name: str = "", channels: int = 1
) -> Recording:
    """A file by its name, or a waveform (T,) of `source_rate` (None: `sample_rate`); where an encoder reads several
    channels, an array (channels, T).

    Raises:
        AudioError: unreadable, or of another number of channels.
    """
    recording = _open(audio, sample_rate, source_rate or sample_rate, name, channels)
    if recording.channels != channels:
        raise AudioError(
            f"{recording.name}: the number of its channels is {recording.channels}, and the encoder reads {channels}."
        )
    return recording


def _open(audio: Audio, sample_rate: int, source_rate: int, name: str, channels: int) -> Recording:
    if isinstance(audio, (str, PathLike)):
        if is_series(audio):
            return Series(open_series(audio), sample_rate, str(audio))
        return Segment(_whole_file(str(audio)), sample_rate)
    if isinstance(audio, (Tensor, np.ndarray)) and channels > 1:
        if source_rate != sample_rate:
            raise AudioError(f"{name}: has {source_rate} Hz, and the encoder reads {sample_rate}; resample it before.")
        return Series(audio.detach().cpu().numpy() if isinstance(audio, Tensor) else audio, sample_rate, name)
    if isinstance(audio, (Tensor, np.ndarray)):
        return Memory(audio, source_rate, sample_rate, name)
    raise AudioError(f"{name}: a recording is a waveform or the name of a file, not {type(audio).__name__}.")


def _whole_file(path: str) -> Utterance:
    unknown = Utterance(Path(path).name, path, 1, 1)
    with open_audio(unknown) as file:
        samples, rate = file.frames, file.samplerate
    if not 0 < samples < UNKNOWN_LENGTH:
        raise AudioError(f"{path}: its header says no length; convert it to WAV or FLAC.")
    return replace(unknown, num_samples=samples, sample_rate=rate)


def window_batches(
    recording: Recording, cutting: Cutting, *, normalize: bool, seconds_per_batch: float
) -> Iterator[tuple[Batch, list[Window]]]:
    """The windows of a recording in order, as many in a batch as go into `seconds_per_batch`, but at least one.

    Nothing is padded. Raises AudioError.
    """
    hear = recording.normalized if normalize else recording.read
    count = max(1, int(seconds_per_batch * recording.sample_rate) // cutting.samples)
    rest = cutting.windows(recording.total)
    while windows := list(islice(rest, count)):
        waveforms = torch.stack([hear(window.start * cutting.hop, window.samples) for window in windows])
        lengths = torch.tensor([window.samples for window in windows])
        yield Batch((recording.name,) * len(windows), waveforms, lengths, padded=False), windows
