"""Lengths and padding. Shapes: B utterances, T samples, F frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Length = TypeVar("Length", int, Tensor)


def conv_lengths(lengths: Length, kernels: Sequence[int], strides: Sequence[int]) -> Length:
    """Length after a stack of unpadded convolutions; never below 0. Works on an int and on (B,)."""
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = (lengths - kernel) // stride + 1
        lengths = lengths.clamp(min=0) if isinstance(lengths, Tensor) else max(lengths, 0)
    return lengths


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame sees."""
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """(B, size) bool, True = padding."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]


def zero_padding(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, F, ...) with every frame past its utterance's end set to zero."""
    if lengths is None:
        return frames
    mask = padding_mask(lengths, frames.shape[1])
    return frames.masked_fill(mask.reshape(*mask.shape, *[1] * (frames.dim() - 2)), 0.0)


def full_lengths(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """`lengths`, or F for every utterance of (B, F, ...) when nothing is padded."""
    if lengths is not None:
        return lengths
    return torch.full((frames.shape[0],), frames.shape[1], dtype=torch.long, device=frames.device)
