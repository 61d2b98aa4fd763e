"""MoCo (He et al. 2020): tell what a slow teacher makes of the other view from its answers to earlier utterances.

Shapes: B utterances, N of all processes and micro-batches, D hidden channels, P channels of the projection, K queued.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.distributed import all_gather
from speechssl.nn.ema import Teacher
from speechssl.nn.encoder import Encoder
from speechssl.nn.losses import first_is_right
from speechssl.nn.view_losses import queue_logits, unit
from speechssl.objectives.base import Metric
from speechssl.objectives.views import Compared, TwoViews, View, ViewsConfig, perceptron


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(ViewsConfig):
    """The paper's numbers, and the two-layer projection of version 2 (Chen, Fan et al. 2020)."""

    name: Literal["moco"] = "moco"
    hidden_dim: int = 2048  # of the projection
    projection_dim: int = 128
    queue_size: int = 65_536
    temperature: float = 0.07
    teacher_decay: float = 0.999  # the paper's momentum


class MoCo(TwoViews):
    """Nothing here is normalised over the batch, so batches need not be shuffled between processes as in the paper.

    The queue starts as random directions. The keys of an update enter it once, after the update, those of all processes
    in the order of the micro-batches: every process holds the same queue, the one that a single process would hold.
    """

    Config = MoCoConfig
    config: MoCoConfig
    queue: Tensor  # (K, P), of length 1
    place: Tensor  # 0-d, where the next key goes

    def __init__(self, config: MoCoConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.projection = perceptron((encoder.dim, config.hidden_dim, config.projection_dim), norm=False)
        self.teacher = Teacher(self.student)
        self.register_buffer("queue", unit(torch.randn(config.queue_size, config.projection_dim)))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.keys: list[Tensor] = []  # of this update's micro-batches on this process

    def initialized(self, taken: Collection[str]) -> None:
        self.teacher.start(self.student, taken)

    def before_step(self, step: int) -> None:
        self.keys.clear()

    def after_step(self, step: int) -> None:
        self.teacher.update(self.student, self.config.teacher_decay)
        if self.keys:
            self.enqueue(torch.cat([all_gather(keys)[0] for keys in self.keys]))
            self.keys.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Writes keys (N, P), of length 1, over the oldest ones; of more than K, the last K stay."""
        size = len(self.queue)
        places = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:]
        self.place.copy_((self.place + len(keys)) % size)

    def chance(self) -> dict[str, float]:
        candidates = self.config.queue_size + 1
        return {"infonce": math.log(candidates), "queue_accuracy": 1 / candidates}

    def compare(self, first: View, second: View) -> Compared:
        """The sum over utterances of InfoNCE: the student's first view against the teacher's second."""
        pooled, queries = self.student(first)
        keys = unit(self.teacher(second)[1])
        if self.training:
            self.keys.append(keys)
        logits = queue_logits(queries, keys, self.queue, self.config.temperature)
        loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")
        metrics = {
            "infonce": Metric.mean(loss, len(logits)),
            "queue_accuracy": Metric.mean(first_is_right(logits.detach()).sum(), len(logits)),
        }
        return Compared(loss, pooled, queries, keys, metrics)
