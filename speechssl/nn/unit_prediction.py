"""Masked prediction of units (HuBERT). Shapes: B utterances, F frames, U unit hops, R units per frame, N predictions,
C latent and E embedding channels, V different units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.lengths import padding_mask


def unit_logits(predictions: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    """Cosine similarity of predictions (N, E) with the units' embeddings (V, E), over temperature: (N, V) float32.

    Its softmax is the distribution over units of HuBERT (Hsu et al. 2021, equation 3).
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predictions = F.normalize(predictions.float(), dim=-1, eps=1e-8)
        embeddings = F.normalize(embeddings.float(), dim=-1, eps=1e-8)
        return predictions @ embeddings.t() / temperature


def units_of_frames(units: Tensor, frames: Tensor, size: int, per_frame: int) -> Tensor:
    """The units that begin within each encoder frame's hop.

    Args:
        units: (B, U) int64, -1 = ignore; unit u begins at sample u * (hop / per_frame).
        frames: (B,) valid encoder frames.
        size: F, encoder frames of the longest.
        per_frame: R, unit hops in an encoder hop.

    Returns:
        (B, F, R) int64; -1 behind an utterance's end, and where there is no unit.
    """
    wanted = size * per_frame
    units = F.pad(units[:, :wanted], (0, max(wanted - units.shape[1], 0)), value=-1)
    return units.view(len(units), size, per_frame).masked_fill(padding_mask(frames, size)[..., None], -1)


def mean_square(latents: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean square of (B, F, C) over valid frames, 0-d float32: the feature penalty of wav2vec 2.0 and HuBERT."""
    square = latents.float().square()
    if lengths is None:
        return square.mean()
    total = square.masked_fill(padding_mask(lengths, latents.shape[1])[..., None], 0.0).sum()
    return total / (lengths.sum() * latents.shape[-1]).clamp(min=1)
