"""Utterances of unequal length, end to end without padding. Shapes: B utterances, T steps, R rows, C channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.lengths import conv_lengths


@dataclass(frozen=True)
class Packing:
    """
    valid: how many steps of each utterance count; `rows`: how many it takes up, the rest being filled with zeros.
    """

    valid: list[int]
    rows: list[int]

    def convolved(self, kernel: int, stride: int) -> Packing:
        """After `convolve` on rows."""
        return Packing([conv_lengths(n, (kernel,), (stride,)) for n in self.valid], [n // stride for n in self.rows])

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, C) -> each utterance's valid steps."""
        return [utterance[:n] for utterance, n in zip(rows.split(self.rows), self.valid, strict=True)]


def pack(x: Tensor, lengths: Tensor | None, multiple: int) -> tuple[Tensor, Packing]:
    """(B, T, C) -> rows (R, C), each utterance filled with zeros to a multiple of `multiple` steps.

    lengths: (B,), or None when nothing is padded.
    """
    batch, size, channels = x.shape
    valid = [size] * batch if lengths is None else [min(n, size) for n in lengths.tolist()]
    rows = [-(-n // multiple) * multiple for n in valid]
    if lengths is None:
        return F.pad(x, (0, 0, 0, rows[0] - size)).view(-1, channels), Packing(valid, rows)
    parts = [F.pad(x[i, :n], (0, 0, 0, r - n)) for i, (n, r) in enumerate(zip(valid, rows, strict=True))]
    return torch.cat(parts), Packing(valid, rows)


def unpack(rows: Tensor, packing: Packing, size: int) -> Tensor:
    """(R, C) -> (B, size, C), zero behind each utterance's valid steps."""
    if len(set(packing.rows)) == 1 and packing.valid == [size] * len(packing.valid):
        return rows.view(len(packing.rows), -1, rows.shape[1])[:, :size]
    return torch.stack([F.pad(x, (0, 0, 0, size - len(x))) for x in packing.split(rows)])
