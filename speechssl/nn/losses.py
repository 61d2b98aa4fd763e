"""Losses as pure functions. Shapes: B utterances, M masked frames of the longest, K negatives, D channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.quantize import perplexity


def contrastive_logits(predictions: Tensor, targets: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cosine similarities of predictions with their own target and with K others of the same utterance.

    One (M, M) product per utterance, of which K + 1 scores per row are taken: the negatives' vectors are never
    gathered, so memory does not grow with K * D.

    Args:
        predictions, targets: (B, M, D).
        negatives: (B, M, K) places in 0 .. M - 1.
        temperature: divides the cosine (wav2vec 2.0, equation 3).

    Returns:
        (B, M, K + 1); the first is the positive.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predictions = F.normalize(predictions.float(), dim=-1, eps=1e-8)
        targets = F.normalize(targets.float(), dim=-1, eps=1e-8)
        scores = predictions @ targets.transpose(1, 2) / temperature  # (B, M, M)
    positive = scores.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    return torch.cat((positive, scores.gather(2, negatives)), dim=2)


def diversity_loss(probs: Tensor) -> Tensor:
    """Share of the codes that the mean softmax distribution leaves unused: (G V - perplexity) / (G V).

    wav2vec 2.0, equation 4, in the form of its implementations. probs: (N, G, V).
    """
    used = perplexity(probs.mean(0))
    total = probs.shape[1] * probs.shape[2]
    return (total - used) / total


def first_is_right(logits: Tensor) -> Tensor:
    """(..., K + 1) -> (...) bool: the positive scores higher than every negative. A tie is not a hit."""
    return logits[..., 0] > logits[..., 1:].amax(-1)
