"""Autoregressive predictive coding (Chung et al. 2019): from the past, the log-mel frame n ahead.

With a quantizer in the recurrent context it is VQ-APC (Chung et al. 2020); the loss is the same.
Shapes: B utterances, F frames, D hidden channels, M mel bins, n frames ahead, G codebooks of V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.context import is_causal
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import full_lengths, padding_mask
from speechssl.nn.quantize import GumbelQuantizer
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class APCConfig:
    """The published number."""

    name: Literal["apc"] = "apc"
    ahead: int = 5  # frames (n)

    def __post_init__(self):
        if self.ahead < 1:
            raise ValueError("ahead must be 1 frame or more")


class APC(Objective):
    Config = APCConfig

    def __init__(self, config: APCConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if any(True for _ in encoder.feature_encoder.parameters()):
            raise UserError(
                "APC predicts the frames that its encoder reads, and learnt ones could all become equal: set "
                "encoder.feature_encoder to {name: logmel, dims: [], kernels: [], strides: []}."
            )
        if not is_causal(encoder.config.context):
            raise UserError(
                "APC predicts what comes next: choose a context that does not see it, encoder.context.name=recurrent."
            )
        self.head = nn.Linear(encoder.dim, encoder.latent_dim)
        self.min_frames = config.ahead + 1

    @property
    def quantizer(self) -> GumbelQuantizer | None:
        return getattr(self.encoder.context, "quantizer", None)

    def chance(self) -> dict[str, float]:
        """Nothing is gained over predicting the utterance's mean, or copying the present frame."""
        return {"gain_over_mean": 0.0, "gain_over_copy": 0.0}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if self.quantizer is not None and numbers.get("code_perplexity", 1e9) < 1.1 * self.quantizer.num_codebooks:
            return (
                "the quantizer gives every frame the same code (code_perplexity is at its floor, "
                f"{self.quantizer.num_codebooks}): raise encoder.context.quantizer_temperature, or lower optim.lr"
            )
        return ""

    def forward(self, batch: Batch) -> LossOutput:
        """The sum over frames of |predicted - true log-mel|, each the mean over its bins (paper, equation 2).

        Raises:
            ValueError: every utterance is too short to predict that far ahead.
        """
        output, ahead = self.encoder(batch.waveforms, batch.lengths_or_none), self.config.ahead
        mel, size = output.latents.float(), output.latents.shape[1] - ahead
        if size < 1:
            raise ValueError(f"utterances of {size + ahead} frames are too short to predict {ahead} frames ahead")
        frames = full_lengths(mel, output.lengths)
        valid = ~padding_mask(frames - ahead, size)  # (B, F - n)
        predicted, true = self.head(output.hidden[:, :size]).float(), mel[:, ahead:]
        error, of_mean, of_copy = (
            (F.l1_loss(guess, true, reduction="none").mean(-1) * valid).sum()
            for guess in (predicted, torch.zeros_like(true), mel[:, :size])  # a bin's mean over the utterance is zero
        )
        count = valid.sum().float()
        metrics = {
            "l1": Metric.mean(error, count),
            "gain_over_mean": Metric.mean(of_mean - error, of_mean),
            "gain_over_copy": Metric.mean(of_copy - error, of_copy),
            **self._codes(output.layers, frames),
        }
        return LossOutput(error, count, metrics)

    @torch.no_grad()
    def _codes(self, layers: list[Tensor], frames: Tensor) -> dict[str, Metric]:
        """How many codes are used, by what is most probable without noise."""
        if self.quantizer is None:
            return {}
        context: Any = self.encoder.context.config
        layer = layers[context.quantize_after]
        logits = self.quantizer.logits(layer[~padding_mask(frames, layer.shape[1])]).float()
        logits = logits.unflatten(-1, (self.quantizer.num_codebooks, -1))  # (valid frames, G, V)
        codes = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0).float()
        return {
            "code_perplexity": Metric(codes, "perplexity"),
            "prob_perplexity": Metric(logits.softmax(-1).sum(0), "perplexity"),
        }
