"""Scores and losses of predicting the latents of later frames.

Shapes: B utterances, F frames, C channels, K steps, N negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scores_ahead(predictions: Tensor, latents: Tensor, negatives: Tensor, steps: Sequence[int]) -> Tensor:
    """Dot products of the predictions made for a frame with the latent there, and with N latents elsewhere.

    All steps that predict a frame share its negatives, as in wav2vec's implementation: N + 1 vectors are gathered per
    frame, and one small product per frame scores them for all K steps.

    Args:
        predictions: (B, F, K, C), made at each frame; the k-th is of the frame `steps[k]` ahead.
        latents: (B, F, C).
        negatives: (B, F, N) frames of the same utterance, for each frame that is predicted.
        steps: K distances in frames, each 1 or more.

    Returns:
        (B, F, K, N + 1) float32 at the frame that is predicted; the first is the positive. Where no frame lies as many
        steps before it, 0.
    """
    batch, size, channels = latents.shape
    with torch.autocast(latents.device.type, enabled=False):
        predictions = F.pad(predictions.float(), (0, 0, 0, 0, max(steps), 0))
        # (B, F, C) for each step: what was predicted that many frames ago, zeros where there was no frame.
        made = [predictions[:, max(steps) - step :][:, :size, k] for k, step in enumerate(steps)]
        latents = latents.float()
        others = latents.gather(1, negatives.flatten(1)[..., None].expand(-1, -1, channels))
        candidates = torch.cat((latents[:, :, None], others.view(batch, size, -1, channels)), 2)  # (B, F, N + 1, C)
        return torch.stack(made, 2) @ candidates.transpose(2, 3)


def predicted_frames(lengths: Tensor, size: int, steps: Sequence[int]) -> Tensor:
    """(B, F, K) bool: whether frame f of F = `size` is valid and one lies `steps[k]` before it. lengths: (B,)."""
    place = torch.arange(size, device=lengths.device)
    enough = place[:, None] >= torch.tensor(steps, device=lengths.device)  # (F, K)
    return enough & (place < lengths[:, None])[..., None]


def binary_nce(scores: Tensor) -> Tensor:
    """(..., N + 1), the positive first -> (...): -log sigmoid(positive) - sum over negatives of log sigmoid(-negative).

    wav2vec (Schneider et al. 2019), equation 2, for one frame and step: the expectation over negatives, estimated from
    N of them, is weighted by lambda = N, so it is their sum.
    """
    signs = torch.full_like(scores, -1.0)
    signs[..., 0] = 1.0
    return -F.logsigmoid(scores.float() * signs).sum(-1)
