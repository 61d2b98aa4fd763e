"""Decodes just the needed segment of a file, mixes to mono, resamples. soundfile reads, torchaudio resamples.

torch is imported where a waveform becomes a tensor: it takes seconds to load, and a manifest is made without.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import soundfile

from speechssl.data.manifest import Utterance
from speechssl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOTCONN}
WAITS = (0.2, 1.0, 3.0)  # seconds between tries where the system says one of these: network disks stumble
QUIET = 1e-7  # in `normalize`, added to the variance: transformers' number, so that a model hears the same there
MAX_KERNEL = 20_000_000  # numbers in a resampling kernel (160 MB); usual rates need far less than a million


class AudioError(UserError):
    """Audio that cannot be used. The message names the utterance, the file and the reason."""


def read_waveform(utterance: Utterance, sample_rate: int, *, first: int = 0, count: int | None = None) -> Tensor:
    """The waveform of an utterance, or of a crop of it.

    Seeks to the segment: only the frames that are needed are decoded.

    Args:
        utterance: where the audio lies.
        sample_rate: Hz of the result; the file is resampled if it differs.
        first: first sample of the crop, at `sample_rate`.
        count: samples of the crop, at `sample_rate`; None: to the end.

    Returns:
        (T,) float32.

    Raises:
        AudioError: unreadable, shorter than its manifest says, or not finite.
    """
    import torch

    total = utterance.length_at(sample_rate)
    count = total - first if count is None else count
    rate = utterance.sample_rate
    if is_odd_rate(rate, sample_rate):
        raise AudioError(
            f"{utterance.audio} ({utterance.id}): {rate} Hz cannot be resampled to {sample_rate} Hz in reasonable "
            "memory; convert the file to a usual rate."
        )
    start = first * rate // sample_rate
    stop = min(-(-(first + count) * rate // sample_rate), utterance.num_samples)
    samples = _decode(utterance, utterance.start + start, stop - start)
    if samples.shape[0] < stop - start:
        raise AudioError(
            f"{utterance.audio} ({utterance.id}): ends after {utterance.start + start + samples.shape[0]} samples, "
            f"{stop - start - samples.shape[0]} before what the manifest says; the file is truncated or was changed: "
            "make the manifest again."
        )
    waveform = torch.from_numpy(samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0])
    if not torch.isfinite(waveform).all():
        raise AudioError(f"{utterance.audio} ({utterance.id}): holds samples that are not numbers (NaN or infinity).")
    return resample(waveform, rate, sample_rate)[:count]


def resample(waveform: Tensor, source: int, target: int) -> Tensor:
    """(T,) at `source` Hz to (ceil(T * target / source),) at `target` Hz: torchaudio's windowed sinc.

    Its kernel has source * target / gcd**2 numbers: see `is_odd_rate`.
    """
    from torch.nn.functional import pad

    if source == target:
        return waveform
    divisor = gcd(source, target)
    wanted = -(-len(waveform) * target // source)
    # torchaudio works out the length of its result in single precision, which may come out short: give it some silence.
    longer = pad(waveform, (0, 4 * source // divisor))
    return _resampler(source // divisor, target // divisor)(longer)[:wanted]


def is_odd_rate(source: int, target: int) -> bool:
    """Whether resampling needs unreasonable memory: 44,099 Hz to 16,000 Hz takes 5 GB, 44,100 Hz 0.5 MB."""
    return source != target and source * target // gcd(source, target) ** 2 > MAX_KERNEL


@lru_cache(maxsize=16)
def _resampler(source: int, target: int):
    from torchaudio.transforms import Resample  # the kernel is built once per pair of rates

    return Resample(source, target)


def normalize(waveform: Tensor) -> Tensor:
    """Zero mean and unit variance over time, as wav2vec 2.0 normalises its input."""
    from torch.nn.functional import layer_norm

    return layer_norm(waveform, waveform.shape[-1:], eps=QUIET)


def open_audio(utterance: Utterance) -> soundfile.SoundFile:
    """Opens the file of an utterance, inside its tar if it is in one. Raises AudioError."""
    try:
        return _patiently(lambda: _open(utterance), utterance)
    except (OSError, soundfile.LibsndfileError, MemoryError, ValueError, OverflowError) as error:  # no path at all
        number = _system_error(error, utterance) if "System error" in str(error) else None
        reason = os.strerror(number) if number else _reason(error)
        raise AudioError(f"{utterance.audio} ({utterance.id}): cannot be read: {reason}.") from None


def _open(utterance: Utterance) -> soundfile.SoundFile:
    if utterance.byte_range is None:
        return soundfile.SoundFile(utterance.audio)
    offset, size = utterance.byte_range
    with open(utterance.audio, "rb") as file:
        file.seek(offset)
        return soundfile.SoundFile(io.BytesIO(file.read(size)))


def _patiently(read: Callable[[], T], utterance: Utterance) -> T:
    """`read()`, tried again after a while where the system, not the file, is at fault."""
    for wait in WAITS:
        try:
            return read()
        except (OSError, soundfile.LibsndfileError) as error:
            if _system_error(error, utterance) not in TRANSIENT:
                raise
        time.sleep(wait)
    return read()


def _system_error(error: Exception, utterance: Utterance) -> int | None:
    """The system's error number; libsndfile does not hand it on, so the file's beginning is read again to hear it."""
    if isinstance(error, OSError) or utterance.byte_range is not None:  # from a tar, Python reads
        return getattr(error, "errno", None)
    try:
        with open(utterance.audio, "rb") as file:
            file.read(1 << 26)
    except OSError as heard:
        return heard.errno
    return None


def _decode(utterance: Utterance, start: int, count: int) -> np.ndarray:
    """(count, channels) float32, or fewer rows where the file ends early."""

    def read() -> np.ndarray:
        with open_audio(utterance) as file:
            if file.samplerate != utterance.sample_rate:
                raise AudioError(
                    f"{utterance.audio} ({utterance.id}): its rate is {file.samplerate} Hz, the manifest says "
                    f"{utterance.sample_rate}; make the manifest again."
                )
            if start:
                file.seek(start)
            return file.read(count, dtype="float32", always_2d=True)

    try:
        return _patiently(read, utterance)
    except (OSError, soundfile.LibsndfileError, MemoryError) as error:
        raise AudioError(f"{utterance.audio} ({utterance.id}): cannot be decoded: {_reason(error)}.") from None


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().rstrip(".").replace("Error opening ", "opening ")
