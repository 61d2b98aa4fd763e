"""Uniform negatives, without a loop over utterances. Shapes: N rows, P places in a pool, K negatives."""

from __future__ import annotations

import torch
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
