"""An objective that lives outside the package: behind a mask, say how loud each frame was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.nn.lengths import full_lengths
from speechssl.nn.masking import span_mask
from speechssl.objectives import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    mask_start_prob: float = 0.065
    mask_length: int = 10  # frames


class Energy(Objective):
    Config = EnergyConfig
    min_frames = 2  # one behind the mask, one to see

    def __init__(self, config, encoder):
        super().__init__(config, encoder)
        self.mask_embedding = nn.Parameter(torch.rand(encoder.dim))
        self.head = nn.Linear(encoder.dim, 1)

    def forward(self, batch) -> LossOutput:
        encoder, config = self.encoder, self.config
        latents, lengths = encoder.feature_encoder(batch.waveforms, batch.lengths_or_none)
        frames = full_lengths(latents, lengths)
        projected, _ = encoder.project(latents)
        mask = span_mask(frames, latents.shape[1], start_prob=config.mask_start_prob, span=config.mask_length)
        hidden, _ = encoder.context(torch.where(mask[..., None], self.mask_embedding, projected), lengths)

        targets = self.loudness(batch.waveforms, latents.shape[1])[mask]
        errors = (self.head(hidden[mask]).squeeze(-1).float() - targets).square()
        count = mask.sum().float()
        return LossOutput(errors.sum(), count, {"error": Metric.mean(errors.sum(), count)})

    def loudness(self, waveforms: Tensor, frames: int) -> Tensor:
        """(B, F): log energy of each frame's hop."""
        hop = self.encoder.hop
        return waveforms[:, : frames * hop].unfold(1, hop, hop).square().mean(-1).add(1e-6).log()
