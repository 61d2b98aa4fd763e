"""Losses that compare two views of each utterance. Shapes: B utterances here, N on all processes, D channels, K keys.

`couple`: with the utterances of all processes, as in training; False in validation (see `nn.distributed`).
Everything is done in float32, whatever autocast says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.distributed import all_gather, all_reduce_sum, batch_moments


def unit(x: Tensor) -> Tensor:
    """x in float32 at length 1 along its last axis."""
    return F.normalize(x.float(), dim=-1, eps=1e-8)


def nt_xent(first: Tensor, second: Tensor, temperature: float, *, couple: bool) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, equation 1).

    Each view picks its partner among the other 2 N - 1 views of all utterances, by cosine.

    Args:
        first, second: (B, D), projections of the two views.
        temperature: divides the cosine.

    Returns:
        (B,), the mean of an utterance's two terms; 0 where there is nothing to choose from.
    """
    views = torch.stack((unit(first), unit(second)), 1)  # (B, 2, D)
    everyone, start = all_gather(views) if couple else (views, 0)
    anchors, candidates = views.flatten(0, 1), everyone.flatten(0, 1)  # (2 B, D), (2 N, D): partners side by side
    own = 2 * start + torch.arange(len(anchors), device=views.device)
    with torch.autocast(views.device.type, enabled=False):
        scores = anchors @ candidates.T / temperature  # (2 B, 2 N)
    scores = scores.scatter(1, own[:, None], -torch.inf)  # a view is not its own partner
    return F.cross_entropy(scores, own ^ 1, reduction="none").view(-1, 2).mean(1)


def queue_logits(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cosines of each query with its own key and with a queue of other utterances' keys (MoCo, He et al. 2020, eq. 1).

    InfoNCE is their cross entropy with class 0.

    Args:
        queries, keys: (B, D).
        queue: (K, D), of length 1.
        temperature: divides the cosine.

    Returns:
        (B, 1 + K); the first is the positive.
    """
    queries, keys = unit(queries), unit(keys)
    with torch.autocast(queries.device.type, enabled=False):
        return torch.cat(((queries * keys).sum(-1, keepdim=True), queries @ queue.T), 1) / temperature


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of the directions, 2 - 2 cos: (B, D) -> (B,) (BYOL, Grill et al. 2020, equation 2)."""
    return 2 - 2 * (unit(predictions) * unit(targets)).sum(-1)


def cross_correlation(first: Tensor, second: Tensor, *, couple: bool, eps: float = 1e-5) -> Tensor:
    """Correlation over utterances of every channel of one view with every channel of the other.

    Barlow Twins (Zbontar et al. 2021), equation 2. first, second: (B, D). Returns (D, D), entries within -1 .. 1.

    Args:
        eps: joins the variances, as in batch normalisation, so that a constant channel has correlation 0.
    """

    def standardise(x: Tensor) -> Tensor:
        mean, variance, _ = batch_moments(x, couple=couple)
        return (x.float() - mean) * torch.rsqrt(variance + eps)

    one, two = standardise(first), standardise(second)
    with torch.autocast(one.device.type, enabled=False):
        products = one.T @ two
    count = one.new_full((), len(one))
    if couple:
        products, count = all_reduce_sum(products), all_reduce_sum(count)
    return products / count.clamp(min=1.0)


def redundancy_parts(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """(D, D) -> the two sums of Barlow Twins' loss (equation 1): of (1 - C_ii)^2, and of C_ij^2 where i != j."""
    size = len(correlation)
    others = correlation.flatten()[:-1].view(size - 1, size + 1)[:, 1:]  # a view that steps over the diagonal
    return (1 - correlation.diagonal()).square().sum(), others.square().sum()


def spread(x: Tensor) -> Tensor:
    """How much directions differ: the root of the summed variances of x at length 1; (B, D) -> 0-d.

    0: all point the same way (collapse). Near 1: they point everywhere. (Per channel it is the deviation that Chen & He
    2021, section 4.1, watch, times the root of D.)
    """
    return unit(x).var(0, correction=0).sum().sqrt()


def nearest_is_own(first: Tensor, second: Tensor) -> Tensor:
    """(B,) bool: of all B second views, an utterance's own is nearest to its first, by cosine. A tie is not a hit."""
    with torch.autocast(first.device.type, enabled=False):
        scores = unit(first) @ unit(second).T
    others = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)
    return scores.diagonal() > others.amax(1)
