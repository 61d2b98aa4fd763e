"""Regression onto frames: targets from a teacher's layers or from a spectrogram, losses, and how much they vary.

Shapes: B utterances, F frames, N chosen frames of the batch, D channels, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.norms import channel_norm


def mean_of_layers(layers: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """The mean of several layers, each normalised per utterance and channel over its valid frames, in float32.

    data2vec's targets for speech (Baevski et al. 2022, section 3.3, and its implementation): instance norm of each
    layer without parameters, then the average, which is not normalised again. Padding is left out of the statistics.

    Args:
        layers: (B, F, D) each.
        lengths: (B,) valid frames, or None when all are.

    Returns:
        (B, F, D).
    """
    ones = torch.ones(layers[0].shape[-1], device=layers[0].device)
    normed = [channel_norm(layer.float(), lengths, ones, torch.zeros_like(ones)) for layer in layers]
    return torch.stack(normed).mean(0)


def scaled_regression(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """(N, D), (N, D) -> (N,): smooth L1 over the channels, divided by sqrt(D) (data2vec, section 3.4).

    With error e, a channel adds e^2 / (2 beta) where |e| < beta, and |e| - beta / 2 elsewhere; with beta 0 it adds e^2,
    as the published speech models do.
    """
    predictions, targets = predictions.float(), targets.float()
    if beta == 0:
        loss = F.mse_loss(predictions, targets, reduction="none")
    else:
        loss = F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none")
    return loss.sum(-1) / predictions.shape[-1] ** 0.5


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """(N, P) with zero mean and unit variance in each patch (He et al. 2022, section 4.1: the normalised target)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + eps)


def squares_around_mean(vectors: Tensor) -> Tensor:
    """(N, D) -> the sum over rows and channels of the squared distance from the channel's mean, 0-d float32.

    Divided by N * D it is the mean variance of a channel: near 0 when all rows are equal, that is, after a collapse.
    """
    vectors = vectors.float()
    return (vectors - vectors.sum(0) / max(len(vectors), 1)).square().sum()
