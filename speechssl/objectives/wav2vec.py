"""wav2vec (Schneider et al. 2019): a causal context tells, for each of K steps, the latent ahead from other ones.

Shapes: B utterances, F frames, C latent and D context channels, K steps, N negatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.ahead import binary_nce, predicted_frames, scores_ahead
from speechssl.nn.context import is_causal
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import full_lengths
from speechssl.nn.losses import first_is_right
from speechssl.nn.negatives import nearest_negatives, sample_negatives
from speechssl.nn.variation import variation
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class Wav2VecConfig:
    """The defaults are the published ones."""

    name: Literal["wav2vec"] = "wav2vec"
    num_steps: int = 12
    first_step: int = 3  # frames ahead; 3 x 10 ms is the first whose window shares no sample with the present one
    num_negatives: int = 10
    hard_pool: int = 0  # 0: uniform; n: the num_negatives nearest to the target of n times as many uniform ones

    def __post_init__(self):
        if min(self.num_steps, self.first_step, self.num_negatives) < 1 or self.hard_pool < 0:
            raise ValueError("num_steps, first_step and num_negatives must be 1 or more, hard_pool 0 or more")


class Wav2Vec(Objective):
    Config = Wav2VecConfig

    def __init__(self, config: Wav2VecConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if not is_causal(encoder.config.context):
            raise UserError(
                "wav2vec predicts what comes next: choose a context that does not see it, "
                "encoder.context.name=causal_convolution or recurrent."
            )
        self.heads = nn.Linear(encoder.dim, encoder.latent_dim * config.num_steps)  # h_k(c) = W_k c + b_k, all in one
        self.steps = range(config.first_step, config.first_step + config.num_steps)
        self.min_frames = config.first_step + 1

    def chance(self) -> dict[str, float]:
        """bce: that of the best score that is the same for all, log 1/N."""
        negatives = self.config.num_negatives
        bce = math.log(negatives + 1) + negatives * math.log(1 + 1 / negatives)
        return {"bce": bce, "accuracy": 1 / (negatives + 1)}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if numbers.get("variation", 1.0) < 1e-4:
            return (
                "the latents have become the same vector in every frame, so right and wrong answers cannot be told "
                "apart; start again with a lower optim.lr or a longer optim.warmup"
            )
        return ""

    def describe(self) -> list[tuple[str, str]]:
        return [("predicts", f"{self.steps[0]} to {self.steps[-1]} frames ahead")]

    def forward(self, batch: Batch, *, negatives: Tensor | None = None) -> LossOutput:
        """The sum over frames and steps of the binary cross-entropy of one positive and N negatives (equation 2).

        Args:
            batch: waveforms only.
            negatives: (B, F, N) frames of the same utterance for each predicted frame, drawn here if None.

        Raises:
            ValueError: every utterance is too short for the first step.
        """
        latents, lengths = self.encoder.feature_encoder(batch.waveforms, batch.lengths_or_none)
        context, _ = self.encoder.context(self.encoder.project(latents)[0], lengths)
        frames, size = full_lengths(latents, lengths), latents.shape[1]
        if size < self.min_frames:
            raise ValueError(f"utterances of {size} frames are too short to predict {self.steps[0]} frames ahead")
        if negatives is None:
            negatives = self._draw(latents, frames)
        predictions = self.heads(context).unflatten(-1, (len(self.steps), -1))  # (B, F, K, C)
        scores = scores_ahead(predictions, latents, negatives, self.steps)  # (B, F, K, N + 1)
        valid = predicted_frames(frames, size, self.steps)  # (B, F, K)

        losses = binary_nce(scores) * valid
        hits = first_is_right(scores.detach()) & valid
        counts = valid.sum((0, 1)).float()  # (K,)
        metrics = {
            "bce": Metric.mean(losses.sum(), counts.sum()),
            "accuracy": Metric.mean(hits.sum(), counts.sum()),
            "variation": Metric.mean(*variation(latents, lengths)),
        }
        for k, step in enumerate(self.steps):
            metrics[f"bce/{step}"] = Metric.mean(losses[..., k].sum(), counts[k])
            metrics[f"accuracy/{step}"] = Metric.mean(hits[..., k].sum(), counts[k])
        return LossOutput(losses.sum(), counts.sum(), metrics)

    def _draw(self, latents: Tensor, frames: Tensor) -> Tensor:
        """(B, F, N) valid frames of the same utterance, other than the frame itself."""
        size, config = latents.shape[1], self.config
        own = torch.arange(size, device=frames.device).expand(len(frames), -1)  # (B, F)
        negatives = sample_negatives(frames[:, None], own, config.num_negatives * max(config.hard_pool, 1))
        negatives = negatives.clamp(max=size - 1)  # only of frames that are not predicted
        if config.hard_pool:
            negatives = nearest_negatives(latents, own, negatives, config.num_negatives)
        return negatives
