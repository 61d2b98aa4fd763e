"""Barlow Twins (Zbontar et al. 2021): channels of two views agree, and say nothing about one another.

Shapes: B utterances, D hidden channels, P channels of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechssl.nn.encoder import Encoder
from speechssl.nn.view_losses import cross_correlation, redundancy_parts
from speechssl.objectives.base import Metric
from speechssl.objectives.views import Compared, TwoViews, View, ViewsConfig, perceptron


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig(ViewsConfig):
    """The paper's numbers (section 2.2 and 2.3)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    projection_dim: int = 8192  # of each of the three layers
    redundancy_weight: float = 5e-3  # lambda

    def __post_init__(self):
        super().__post_init__()
        if self.projection_dim < 2:
            raise ValueError("projection_dim must be 2 or more: the loss compares channels")


class BarlowTwins(TwoViews):
    Config = BarlowTwinsConfig
    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projection = perceptron((encoder.dim, *[config.projection_dim] * 3), norm=True)

    def chance(self) -> dict[str, float]:
        return {"diagonal": 0.0}

    def compare(self, first: View, second: View) -> Compared:
        """B times the distance of the cross-correlation, over the utterances of all processes, from the identity."""
        (pooled, one), (_, two) = self.student(first), self.student(second)
        correlation = cross_correlation(one, two, couple=self.training)
        agreement, redundancy = redundancy_parts(correlation)
        loss = (agreement + self.config.redundancy_weight * redundancy) * len(one)
        size = len(correlation)
        mean_square = redundancy.detach() / (size * (size - 1))
        metrics = {
            "diagonal": Metric.mean(correlation.detach().diagonal().mean() * len(one), len(one)),  # 1 is the aim
            "off_diagonal": Metric.mean(mean_square.sqrt() * len(one), len(one)),  # root mean square; 0 is the aim
        }
        return Compared(loss, pooled, one, two, metrics)
