"""Series of several channels: sensors, machines, EEG, in .npy of shape (channels, time).

Files are mapped into memory and only what is asked for is read. Nothing is resampled: a series has the rate that its
manifest says. Shapes: C channels, T steps; tensors are (T, C), and (T,) where there is one channel, as for sound.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechssl.data.audio import AudioError, read_waveform
from speechssl.data.manifest import Manifest, ManifestError, Utterance

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".npy"


def is_series(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix == SUFFIX


def open_series(path: str | os.PathLike[str]) -> np.ndarray:
    """The series in a file, (C, T) and mapped into memory, once its header agrees with the file's size.

    Raises:
        AudioError: unreadable, truncated, not of two dimensions, or neither integers nor floats.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, fortran, kind = read(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except Exception as error:  # whatever a strange header makes numpy's parser say
        reason = str(error).partition("\n")[0].rstrip(".") if isinstance(error, (OSError, ValueError)) else "its header"
        raise AudioError(f"{path}: not an array in .npy that can be read: {reason}.") from None
    if kind.kind not in "iuf":
        raise AudioError(f"{path}: holds values of type {kind}; a series is of integers or floating-point numbers.")
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 0:
        raise AudioError(f"{path}: is of shape {shape}, and a series is (channels, time): one channel is array[None].")
    if (promised := start + math.prod(shape) * kind.itemsize) != size:
        raise AudioError(
            f"{path}: has {size} bytes where its header promises {promised}; it is truncated or was changed: write it "
            "again."
        )
    if not shape[1]:
        return np.empty(shape, kind)  # nothing to map
    return np.memmap(path, kind, "r", offset=start, shape=shape, order="F" if fortran else "C")


def cut(array: np.ndarray, start: int, stop: int, name: str) -> Tensor:
    """Steps `start` to `stop` of a series (C, T), in float32. Raises AudioError if one is not finite."""
    import torch  # where a series becomes a tensor: see `speechssl.data.audio`

    with np.errstate(over="ignore"):  # what is too large for float32 is found below
        values = torch.from_numpy(np.array(array[:, start:stop].T, dtype=np.float32, order="C"))
    if not torch.isfinite(values).all():
        raise AudioError(f"{name}: holds values that are not numbers (NaN or infinity, also as float32).")
    return values[:, 0] if len(array) == 1 else values


def segment_of(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """The utterance's part of its series, (C, T), mapped into memory.

    Raises:
        AudioError: of another rate, or not what the manifest says.
    """
    name = f"{utterance.audio} ({utterance.id})"
    if utterance.sample_rate != sample_rate:
        raise AudioError(f"{name}: has {utterance.sample_rate} Hz, not {sample_rate}; series are not resampled.")
    array, stop = open_series(utterance.audio), utterance.start + utterance.num_samples
    if array.shape[0] != utterance.channels or array.shape[1] < stop:
        raise AudioError(
            f"{name}: is of shape {array.shape}, and the manifest says {utterance.channels} channels and at least "
            f"{stop} steps; make the manifest again."
        )
    return array[:, utterance.start : stop]


def read_samples(utterance: Utterance, sample_rate: int, *, first: int = 0, count: int | None = None) -> Tensor:
    """As `read_waveform`, (T,); of a series with several channels (T, C). Raises AudioError."""
    if not is_series(utterance.audio):
        return read_waveform(utterance, sample_rate, first=first, count=count)
    stop = utterance.num_samples if count is None else first + count
    return cut(segment_of(utterance, sample_rate), first, stop, f"{utterance.audio} ({utterance.id})")


def standardize(series: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(T,) or (T, C) with each channel's mean taken out and its deviation made 1, whatever its unit.

    A channel that changes by less than a millionth of its mean counts as constant and becomes zeros.
    """
    return ((series.double() - mean) / (variance + 1e-12 * mean.square() + 1e-30).sqrt()).float()


def normalize_series(series: Tensor) -> Tensor:
    """Zero mean and unit variance of each channel over time: (T,) or (T, C)."""
    from torch import var_mean

    variance, mean = var_mean(series.double(), dim=0, correction=0)
    return standardize(series, mean, variance)


def check_readable(manifest: Manifest, sample_rate: int, channels: int) -> None:
    """Raises ManifestError if an utterance has another number of channels, or a series another rate."""
    for utterance in manifest:
        if utterance.channels != channels:
            raise ManifestError(
                f"{utterance.id}: the number of its channels is {utterance.channels}, and the encoder reads "
                f"{channels}; use other data, or pretrain with encoder.feature_encoder.channels={utterance.channels}."
            )
        if is_series(utterance.audio) and utterance.sample_rate != sample_rate:
            raise ManifestError(
                f"{utterance.id}: a series of {utterance.sample_rate} Hz, and data.sample_rate is {sample_rate}; "
                f"series are not resampled: use other data, or pretrain with data.sample_rate={utterance.sample_rate}."
            )
