"""BYOL (Grill et al. 2020): predict what a moving average of the model makes of the other view; no negatives.

Shapes: B utterances, D hidden channels, P channels of the projection.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from speechssl.nn.distributed import BatchNorm
from speechssl.nn.ema import Teacher
from speechssl.nn.encoder import Encoder
from speechssl.nn.view_losses import byol_loss
from speechssl.objectives.base import Metric
from speechssl.objectives.views import Compared, TwoViews, View, ViewsConfig, perceptron


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(ViewsConfig):
    """The paper's numbers; its decay starts at 0.996 in 1000 epochs and at 0.99 in 300 (section 3.2, appendix F)."""

    name: Literal["byol"] = "byol"
    hidden_dim: int = 4096  # of the projection and of the prediction
    projection_dim: int = 256
    teacher_decay: float = 0.99  # at the start; it rises to 1
    decay_updates: int = 100_000  # in which it rises: train.updates


class BYOL(TwoViews):
    Config = BYOLConfig
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projection = perceptron((encoder.dim, config.hidden_dim, config.projection_dim), norm=True)
        self.prediction = perceptron((config.projection_dim, config.hidden_dim, config.projection_dim), norm=True)
        self.teacher = Teacher(self.student)

    def train(self, mode: bool = True) -> BYOL:
        """As in the paper, the teacher's batch norms take a batch's own statistics while the student's do."""
        super().train(mode)
        for module in self.teacher.modules():
            if isinstance(module, BatchNorm):
                module.train(mode)
        return self

    def initialized(self, taken: Collection[str]) -> None:
        self.teacher.start(self.student, taken)

    def after_step(self, step: int) -> None:
        decay = cosine_decay(step - 1, start=self.config.teacher_decay, updates=self.config.decay_updates)
        self.teacher.update(self.student, decay)

    def chance(self) -> dict[str, float]:
        return {"distance": 2.0}

    def compare(self, first: View, second: View) -> Compared:
        """The sum over utterances of the loss, each view once the student's and once the teacher's (section 3.1)."""
        (pooled, one), (_, two) = self.student(first), self.student(second)
        (_, target_one), (_, target_two) = self.teacher(first), self.teacher(second)
        loss = (byol_loss(self.prediction(one), target_two) + byol_loss(self.prediction(two), target_one)).sum()
        # Squared, of a prediction and the other view's target: 0 is the aim, 2 that of unrelated directions.
        metrics = {"distance": Metric.mean(loss / 2, len(one))}
        return Compared(loss, pooled, one, two, metrics)


def cosine_decay(step: int, *, start: float, updates: int) -> float:
    """The teacher's decay in update `step` (from 0): `start` to 1 by half a cosine over `updates` (section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * min(step / updates, 1.0)) + 1) / 2
