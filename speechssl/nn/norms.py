"""Norms over time that padding does not reach. Shapes: B utterances, T steps, R rows (packed), C channels."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.nn.lengths import padding_mask


def channel_norm(x: Tensor, lengths: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Group norm with one channel per group, over valid frames only: padding does not change the answer.

    Args:
        x: (B, T, C).
        lengths: (B,) valid frames, or None when all are.
        weight, bias: (C,).
    """
    return _padded(x, lengths, weight, bias, eps, over=(1,))


def utterance_norm(x: Tensor, lengths: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Group norm with all channels in one group, over valid frames only. Arguments as for `channel_norm`."""
    return _padded(x, lengths, weight, bias, eps, over=(1, 2))


def _padded(x: Tensor, lengths: Tensor | None, weight: Tensor, bias: Tensor, eps: float, over) -> Tensor:
    if lengths is None:
        variance, mean = torch.var_mean(x.float(), dim=over, correction=0, keepdim=True)  # (B, 1, C) or (B, 1, 1)
        return _affine(x, mean, variance, weight, bias, eps)
    count = lengths.clamp(min=1)[:, None, None].float() * (x.shape[2] if 2 in over else 1)
    padding = padding_mask(lengths, x.shape[1])[:, :, None]
    mean = x.float().masked_fill(padding, 0.0).sum(over, keepdim=True) / count
    variance = (x.float() - mean).masked_fill(padding, 0.0).square().sum(over, keepdim=True) / count
    return _affine(x, mean, variance, weight, bias, eps)


def _affine(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    scale = weight * torch.rsqrt(variance + eps)
    return x * scale.to(x.dtype) + (bias - mean * scale).to(x.dtype)
