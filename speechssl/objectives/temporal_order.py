"""Temporal order: segments of an utterance in a wrong order, and maybe backwards; which order was it, which direction?

Solving a jigsaw (Noroozi & Favaro 2016), here of sound (Carr et al. 2021), and the arrow of time (Wei et al. 2018).
Shapes: B utterances, T samples, n segments of S samples, P permutations, F frames, D channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.variation import variation
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class TemporalOrderConfig:
    """Our numbers; the two losses have a weight each."""

    name: Literal["temporal_order"] = "temporal_order"
    num_segments: int = 4
    num_permutations: int = 24  # of all those of the segments, as unlike each other as can be
    segment: int = 6400  # samples
    gap: int = 1600  # samples; from half as many to all of them are left out between two segments
    order_weight: float = 1.0
    arrow_weight: float = 1.0
    head_dim: int = 256

    def __post_init__(self):
        if not 2 <= self.num_segments <= 6:
            raise ValueError("num_segments must be 2 to 6")
        if not 2 <= self.num_permutations <= math.factorial(self.num_segments):
            raise ValueError(
                f"num_permutations must be 2 to {math.factorial(self.num_segments)}, of {self.num_segments} segments"
            )
        if self.segment < 1 or self.gap < 0:
            raise ValueError("segment must be 1 sample or more, gap 0 or more")


class TemporalOrder(Objective):
    Config = TemporalOrderConfig
    permutations: Tensor  # (P, n): place i of the p-th order holds segment permutations[p, i]

    def __init__(self, config: TemporalOrderConfig, encoder: Encoder):
        super().__init__(config, encoder)
        n, features = config.num_segments, encoder.feature_encoder
        if encoder.frame_lengths(n * config.segment) < n:
            raise UserError(
                f"objective.segment: {n} segments of {config.segment} samples give fewer than {n} frames; raise it."
            )
        self.samples = n * config.segment + (n - 1) * config.gap  # what an utterance must have
        self.min_frames = 1 + max(0, -(-(self.samples - features.receptive_field) // features.hop))
        self.order_head = _classifier(n * encoder.dim, config.head_dim, config.num_permutations)
        self.arrow_head = _classifier(encoder.dim, config.head_dim, 2)
        orders = torch.tensor(unlike_permutations(n, config.num_permutations))
        self.register_buffer("permutations", orders, persistent=False)

    def chance(self) -> dict[str, float]:
        orders = self.config.num_permutations
        return {
            "order": math.log(orders),
            "order_accuracy": 1 / orders,
            "arrow": math.log(2),
            "arrow_accuracy": 0.5,
        }

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if numbers.get("variation", 1.0) < 1e-4:
            return (
                "the encoder gives every frame the same vector, which tells nothing of an order; start again with a "
                "lower optim.lr or a longer optim.warmup"
            )
        return ""

    def describe(self) -> list[tuple[str, str]]:
        orders, segments = self.config.num_permutations, self.config.num_segments
        return [("orders", f"{orders} of {segments} segments; {self.samples} samples are needed")]

    def forward(self, batch: Batch, *, draws: tuple[Tensor, Tensor, Tensor] | None = None) -> LossOutput:
        """The sum over utterances of order_weight * cross-entropy of the order + arrow_weight * that of the direction.

        Args:
            batch: waveforms only. Utterances too short for the segments and the widest gaps are left out.
            draws: starts (B, n) of the segments in samples, orders (B,) in 0 .. P - 1, and directions (B,), 1 =
                backwards; `draw` gives them if None.
        """
        starts, orders, backwards = self.draw(batch.lengths) if draws is None else draws
        shuffled = self.shuffle(batch.waveforms, starts, orders, backwards)  # (B, n * S), nothing padded
        output = self.encoder(shuffled)
        parts = F.adaptive_avg_pool1d(output.hidden.float().transpose(1, 2), self.config.num_segments)  # (B, D, n)
        used = (batch.lengths >= self.samples).float()
        order, order_hits = _score(self.order_head(parts.flatten(1)), orders, used)
        arrow, arrow_hits = _score(self.arrow_head(parts.mean(-1)), backwards, used)
        count = used.sum()
        metrics = {
            "order": Metric.mean(order, count),
            "order_accuracy": Metric.mean(order_hits, count),
            "arrow": Metric.mean(arrow, count),
            "arrow_accuracy": Metric.mean(arrow_hits, count),
            "used": Metric.mean(count, len(used)),
            "variation": Metric.mean(*variation(output.hidden[used > 0], None)),
        }
        return LossOutput(self.config.order_weight * order + self.config.arrow_weight * arrow, count, metrics)

    def draw(self, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Starts (B, n) in samples, orders (B,) and directions (B,); lengths: (B,) in samples.

        The segments lie inside the utterance, one behind the other. Gaps of random width between them make sure that a
        joint is never smooth, so that whether it is says nothing about the order (Noroozi & Favaro 2016, section 3.3).
        """
        config, device, size = self.config, lengths.device, len(lengths)
        least = config.gap // 2
        gaps = least + (torch.rand(size, config.num_segments - 1, device=device) * (config.gap - least + 1)).long()
        starts = F.pad(gaps.cumsum(1), (1, 0)) + config.segment * torch.arange(config.num_segments, device=device)
        spare = (lengths - starts[:, -1] - config.segment).clamp(min=0)
        first = (torch.rand(size, device=device, dtype=torch.float64) * (spare + 1)).long()
        orders = torch.randint(config.num_permutations, (size,), device=device)
        return starts + first[:, None], orders, torch.randint(2, (size,), device=device)

    def shuffle(self, waveforms: Tensor, starts: Tensor, orders: Tensor, backwards: Tensor) -> Tensor:
        """(B, T) -> (B, n * S): the segments in their new order, each played backwards where the utterance is.

        Direction and order are independent: backwards, a segment is reversed in its place.
        """
        size = self.config.segment
        place = starts[..., None] + torch.arange(size, device=waveforms.device)  # (B, n, S)
        place = place.clamp(max=waveforms.shape[1] - 1)  # only of utterances that are left out
        segments = waveforms.gather(1, place.flatten(1)).view_as(place)
        segments = torch.where(backwards[:, None, None] > 0, segments.flip(-1), segments)
        return segments.gather(1, self.permutations[orders][..., None].expand(-1, -1, size)).flatten(1)


def unlike_permutations(n: int, count: int) -> list[tuple[int, ...]]:
    """`count` orders of n things. The first is the right one, and each next the one farthest from the nearest taken.

    Far: in how many places they differ (Noroozi & Favaro 2016, section 3.3: a large Hamming distance keeps the task
    from being ambiguous). The first in the order of the dictionary wins a tie.
    """
    rest = list(itertools.permutations(range(n)))
    chosen = [rest.pop(0)]
    distance = [n] * len(rest)  # of each to the nearest taken
    while len(chosen) < count:
        distance = [min(d, sum(map(int.__ne__, order, chosen[-1]))) for d, order in zip(distance, rest, strict=True)]
        best = max(range(len(rest)), key=distance.__getitem__)
        chosen.append(rest.pop(best))
        distance.pop(best)
    return chosen


def _classifier(dim_in: int, dim: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim), nn.GELU(), nn.Linear(dim, classes))


def _score(logits: Tensor, answers: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the used utterances of the cross-entropy and of the right answers; 0-d."""
    loss = F.cross_entropy(logits.float(), answers, reduction="none")
    return (loss * used).sum(), ((logits.argmax(-1) == answers) * used).sum()
