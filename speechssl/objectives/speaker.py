"""Who speaks: an encoder, pooling over time, an embedding, and a classifier over the speakers of the training set.

With the softmax classifier as in SUPERB's speaker identification (Yang et al. 2021); with the additive angular margin
(Deng et al. 2019) as in fine-tuning for verification (Vaessen & van Leeuwen 2022). Any other label works
as well, a genre for example, where the manifest has it as `speaker`.

Shapes: B utterances, F frames, D channels, E channels of the embedding, N speakers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.distributed import BatchNorm
from speechssl.nn.encoder import Encoder
from speechssl.nn.heads import LayerSum
from speechssl.nn.lengths import full_lengths
from speechssl.nn.margin import CosineHead, aam_logits
from speechssl.nn.pooling import Pooling, PoolingName
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class SpeakerConfig:
    """`speakers` is filled in from the training manifest; margin and scale are those of Vaessen & van Leeuwen."""

    name: Literal["speaker"] = "speaker"
    speakers: tuple[str, ...] = ()  # names of the classes; the place of a name is its number
    features: Literal["last", "sum"] = "last"  # of the encoder: its output, or a learned sum of its layers
    pooling: PoolingName = "mean"
    # Pooled features of all utterances are nearly the same vector; taking that out lets a head learn many times faster.
    pooled_norm: Literal["none", "batch"] = "none"
    embedding_dim: int = 256  # linear map of the pooled features; 0: they are the embedding themselves
    dropout: float = 0.0  # of the embedding, before the classifier
    classifier: Literal["softmax", "aam"] = "softmax"
    margin: float = 0.2  # radians; of aam
    scale: float = 30.0  # of aam
    freeze: Literal["nothing", "feature_encoder", "encoder"] = "nothing"  # what never learns
    freeze_encoder_updates: int = 0  # at first only the rest learns

    def __post_init__(self):
        if len(self.speakers) < 2:
            raise ValueError("speakers must name two or more; `speechssl finetune` takes them from --train")
        if len(set(self.speakers)) < len(self.speakers):
            raise ValueError("speakers names one twice")
        if not 0 <= self.margin < math.pi / 2:
            raise ValueError("margin must be at least 0 and less than pi / 2")


class Speaker(Objective):
    Config = SpeakerConfig
    needs = frozenset({"speakers"})
    takes_channels = True

    def __init__(self, config: SpeakerConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.layer_sum = LayerSum(encoder.num_alike) if config.features == "sum" else None
        self.pooling = Pooling(config.pooling, encoder.dim)
        self.pooled_norm = BatchNorm(self.pooling.dim) if config.pooled_norm == "batch" else nn.Identity()
        self.couples_ranks = config.pooled_norm == "batch"
        self.size = size = config.embedding_dim or self.pooling.dim
        self.embedding = nn.Linear(self.pooling.dim, size) if config.embedding_dim else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        head = nn.Linear if config.classifier == "softmax" else CosineHead
        self.head = head(size, len(config.speakers))
        self.encoder_is_frozen = False
        frozen = {"feature_encoder": encoder.feature_encoder, "encoder": encoder}.get(config.freeze)
        if frozen is not None:
            frozen.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze == "encoder":
            self.encoder.eval()  # no dropout in what does not learn
        return self

    def before_step(self, step: int) -> None:
        self.encoder_is_frozen = step < self.config.freeze_encoder_updates

    def frozen(self):
        return self.encoder.parameters() if self.encoder_is_frozen else ()

    def chance(self) -> dict[str, float]:
        numbers = {"accuracy": 1 / len(self.config.speakers)}
        if self.config.classifier == "softmax":
            numbers["cross_entropy"] = math.log(len(self.config.speakers))
        return numbers

    def embed(self, batch: Batch) -> Tensor:
        """One vector per utterance, (B, E): what verification compares, and what `head` scores the speakers by."""
        return self._embed(batch)[0]

    def forward(self, batch: Batch) -> LossOutput:
        """The sum of cross-entropies over the utterances that have a frame; num_targets counts these."""
        assert batch.speakers is not None, "`needs` is checked before training"
        embeddings, frames = self._embed(batch)
        scores = self.head(self.dropout(embeddings)).float()
        logits = scores
        if self.config.classifier == "aam":
            logits = aam_logits(scores, batch.speakers, margin=self.config.margin, scale=self.config.scale)
        heard = frames > 0
        losses = F.cross_entropy(logits, batch.speakers, reduction="none").masked_fill(~heard, 0.0)
        loss, count = losses.sum(), heard.sum().float()
        right = (scores.detach().argmax(-1) == batch.speakers) & heard
        metrics = {"cross_entropy": Metric.mean(loss, count), "accuracy": Metric.mean(right.sum(), count)}
        return LossOutput(loss, count, metrics)

    def describe(self) -> list[tuple[str, str]]:
        return [("an embedding", f"{self.size} numbers, for {len(self.config.speakers)} speakers")]

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E) and the utterances' lengths (B,) in frames."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.freeze != "encoder"):
            output = self.encoder(batch.waveforms, batch.lengths_or_none)
        layers = output.layers[-self.encoder.num_alike :]
        frames = output.hidden if self.layer_sum is None else self.layer_sum(layers)
        lengths = full_lengths(frames, output.lengths)
        pooled = self.pooled_norm(self.pooling(frames, lengths))
        return self.embedding(pooled.to(frames.dtype)), lengths
