"""Uniform and hard negatives, without a loop over utterances.

Shapes: B utterances, F frames, C channels, N rows, P places in a pool, K negatives, n draws for each negative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_negatives(pool_sizes: Tensor, own: Tensor, num_negatives: int, *, generator=None) -> Tensor:
    """Uniform over a row's pool without its own place, with replacement.

    Draw from one place fewer and step over the own one: never the positive, never outside the pool.

    Args:
        pool_sizes: (...,) how many places each row's pool has, own place included; at least 2.
        own: (...,) the row's own place in its pool, or -1 where it is not in it.
        num_negatives: K.

    Returns:
        (..., K) int64 places in 0 .. pool_size - 1.
    """
    inside = (own >= 0).long()
    count = (pool_sizes - inside).unsqueeze(-1)
    draw = torch.rand((*own.shape, num_negatives), device=own.device, generator=generator, dtype=torch.float64)
    place = torch.minimum((draw * count).long(), (count - 1).clamp(min=0))
    return place + ((place >= own.unsqueeze(-1)) & (own.unsqueeze(-1) >= 0)).long()


@torch.no_grad()
def nearest_negatives(
    vectors: Tensor, own: Tensor, drawn: Tensor, num_negatives: int, *, excluded: Tensor | None = None
) -> Tensor:
    """Hard negatives: of those drawn, the K that resemble the right answer most, by cosine.

    Negatives like the positive teach most (FaceNet, Schroff et al. 2015; Robinson et al. 2021), but in speech the
    nearest of all frames are the positive's neighbours, which hold the same sound. So these are the nearest of a random
    pool, and n, the draws for each that is kept, says how hard they are; 1 is uniform.
    The draws decide what can be a negative (`sample_negatives`: not the positive, no padding); they may repeat a place.

    Args:
        vectors: (B, F, C), what is told apart.
        own: (B, N) the place of each row's right answer in 0 .. F - 1.
        drawn: (B, N, n K) places.
        num_negatives: K.
        excluded: (B, N, n K) bool, draws to take only when nothing else is left.

    Returns:
        (B, N, K) int64 places, the nearest first.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.float(), dim=-1)
        cosines = unit @ unit.transpose(1, 2)  # (B, F, F)
    place = own[..., None] * vectors.shape[1] + drawn
    likeness = cosines.flatten(1).gather(1, place.flatten(1)).view_as(drawn)
    if excluded is not None:
        likeness = likeness.masked_fill(excluded, -torch.inf)
    return drawn.gather(-1, likeness.topk(num_negatives, dim=-1).indices)


def pools_by_group(groups: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which frames of the batch may be negatives for which utterance: all valid frames of the same group.

    Args:
        groups: (B,) int; utterances with equal numbers share a pool (a speaker, the batch, or each its own).
        lengths: (B,) in frames.
        size: F, frames of the longest.

    Returns:
        pools: (B, P) flattened frame indices (utterance * F + frame), the valid ones first; P = B * F.
        pool_sizes: (B,) how many are valid.
        place: (B, F) the place of each own frame in its own pool.
    """
    batch = len(groups)
    valid = torch.arange(size, device=lengths.device) < lengths[:, None]  # (B, F)
    allowed = ((groups[:, None] == groups[None])[:, :, None] & valid[None]).reshape(batch, -1)  # (B, B * F)
    pools = allowed.long().argsort(dim=1, descending=True, stable=True)
    rank = (allowed.long().cumsum(1) - 1).view(batch, batch, size)
    place = rank[torch.arange(batch), torch.arange(batch)]
    return pools, allowed.sum(1), place
