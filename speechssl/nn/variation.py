"""How much frames differ over time. Shapes: B utterances, F frames, D channels."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssl.nn.lengths import full_lengths, zero_padding


@torch.no_grad()
def variation(frames: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energy of the frames around their utterance's mean, and their whole energy; each a 0-d sum over valid frames.

    Their ratio is 0 when every frame of an utterance is the same vector, and at most 1. frames: (B, F, D).
    """
    wide = zero_padding(frames.float(), lengths)
    counts = full_lengths(frames, lengths).clamp(min=1)
    mean = wide.sum(1, keepdim=True) / counts[:, None, None]
    return zero_padding(wide - mean, lengths).square().sum(), wide.square().sum()
