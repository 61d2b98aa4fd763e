"""Additive angular margin. Shapes: B utterances, D channels, N classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-7  # keeps the root of 1 - cos^2 away from 0, where its gradient is infinite


def aam_logits(cosines: Tensor, targets: Tensor, *, margin: float, scale: float) -> Tensor:
    """scale * cos(angle + margin) for the target and scale * cos(angle) for the others (Deng et al. 2019, eq. 3).

    Where angle + margin would pass pi, the target's is cos(angle) - margin * sin(margin): still falling, as in the
    authors' implementation.

    Args:
        cosines: (B, N) in -1 .. 1.
        targets: (B,) classes.
        margin: in radians.
        scale: multiplies every cosine.

    Returns:
        (B, N).
    """
    cosine = cosines.gather(1, targets[:, None])
    sine = (1 - cosine.square()).clamp(min=EPSILON).sqrt()
    wider = cosine * math.cos(margin) - sine * math.sin(margin)
    wider = torch.where(cosine > -math.cos(margin), wider, cosine - margin * math.sin(margin))
    return scale * cosines.scatter(1, targets[:, None], wider)


class CosineHead(nn.Module):
    """Cosines with one learned direction per class: (B, D) -> (B, N), float32."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.weight.float(), dim=-1))
