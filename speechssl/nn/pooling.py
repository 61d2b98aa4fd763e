"""One vector per utterance from its frames. Shapes: B utterances, F frames, D channels.

Padding never changes the answer, and an utterance without a frame gives zeros. Everything is done in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.nn.lengths import padding_mask

EPSILON = 1e-6  # smallest variance whose root is taken: its gradient stays finite on a constant


def mean_pool(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the valid frames: (B, F, D) -> (B, D)."""
    return _moments(x.float(), _uniform(x, lengths))[0]


def statistics_pool(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean and standard deviation over the valid frames: (B, F, D) -> (B, 2 D) (Snyder et al. 2018, x-vectors)."""
    return torch.cat(_moments(x.float(), _uniform(x, lengths)), -1)


class AttentivePool(nn.Module):
    """Mean and deviation with learned weights of the frames: (B, F, D) -> (B, 2 D) (Okabe et al. 2018, eqs. 1-6)."""

    def __init__(self, dim: int, hidden: int = 128):
        super().__init__()
        self.inner = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # the paper's bias would cancel in the softmax

    def weights(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, F), adding up to 1 over each utterance's valid frames; zero behind them."""
        scores = self.score(self.inner(x).tanh()).squeeze(-1).float()
        if lengths is None:
            return scores.softmax(-1)
        padding = padding_mask(lengths, x.shape[1])
        lowest = torch.finfo(scores.dtype).min  # and not -inf: a row of padding alone must not become NaN
        return scores.masked_fill(padding, lowest).softmax(-1).masked_fill(padding, 0.0)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return torch.cat(_moments(x.float(), self.weights(x, lengths)), -1)


PoolingName = Literal["mean", "statistics", "attentive"]


class Pooling(nn.Module):
    """One of the three by its name; `dim` is what it gives for `dim_in` channels."""

    def __init__(self, name: PoolingName, dim_in: int):
        super().__init__()
        self.name = name
        self.dim = dim_in if name == "mean" else 2 * dim_in
        self.attention = AttentivePool(dim_in) if name == "attentive" else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, F, D) -> (B, dim)."""
        if self.attention is not None:
            return self.attention(x, lengths)
        return mean_pool(x, lengths) if self.name == "mean" else statistics_pool(x, lengths)


def _uniform(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, F): equal weights of the valid frames, zero behind them."""
    if lengths is None:
        return x.new_full(x.shape[:2], 1 / max(x.shape[1], 1), dtype=torch.float32)
    inside = ~padding_mask(lengths, x.shape[1])
    return inside.float() / lengths.clamp(min=1)[:, None]


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over frames, (B, D) each."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.masked_fill(weights[..., None] == 0, 0.0)  # what lies in the padding may be anything
        mean = torch.einsum("bf,bfd->bd", weights, x)
        variance = torch.einsum("bf,bfd->bd", weights, (x - mean[:, None]).square())
    seen = (weights.sum(-1, keepdim=True) > 0).float()
    return mean, variance.clamp(min=EPSILON).sqrt() * seen
