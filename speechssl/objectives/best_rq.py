"""BEST-RQ (Chiu et al. 2022): name the random code of log-mel frames that were replaced by noise.

Shapes: B utterances, N log-mel frames, M mel bins, F encoder frames, S log-mel frames per encoder frame, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder
from speechssl.nn.masking import span_mask
from speechssl.nn.random_projection import RandomProjection
from speechssl.objectives.base import LossOutput, MaskedFrames, Metric
from speechssl.objectives.log_mel import LogMelObjective


@dataclass(frozen=True, kw_only=True)
class BestRQConfig:
    """The paper's numbers for LibriSpeech, for encoder frames of 40 ms.

    There a span of 400 ms starts at a log-mel frame of 10 ms with probability 0.01: 10 encoder frames, at 0.04.
    """

    name: Literal["best_rq"] = "best_rq"
    mask_start_prob: float = 0.04
    mask_length: int = 10  # encoder frames
    noise_std: float = 0.1  # of what stands in place of masked log-mel frames
    code_dim: int = 16
    codebook_size: int = 8192


class BestRQ(LogMelObjective):
    """A masked encoder frame has all S log-mel frames that it owns replaced by noise, before the convolutions.

    Its target is the code of these S frames, stacked, as they were: normalised per utterance and bin (the paper
    normalises over the corpus), without which few codes would be used.
    """

    Config = BestRQConfig
    about = "BEST-RQ"
    min_frames = 2  # one behind the mask, one to see

    def __init__(self, config: BestRQConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.quantizer = RandomProjection(
            self.stack * self.num_bins, code_dim=config.code_dim, codebook_size=config.codebook_size
        )
        self.prediction = nn.Linear(encoder.dim, config.codebook_size)

    def chance(self) -> dict[str, float]:
        return {"cross_entropy": math.log(self.config.codebook_size), "accuracy": 1 / self.config.codebook_size}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        used = numbers.get("code_perplexity", math.inf)
        if used < 2:
            return (
                f"nearly all targets are the same code (code_perplexity {used:.2f} of {self.config.codebook_size}), so "
                "there is nothing to learn; look for silent or constant audio in the manifest"
            )
        return ""

    def describe(self) -> list[tuple[str, str]]:
        config, frames = self.config, torch.full((64,), 15 * 25)
        share = span_mask(frames, 15 * 25, start_prob=config.mask_start_prob, span=config.mask_length)
        target = f"{self.stack} x {self.num_bins} log-mel -> {config.code_dim} -> one of {config.codebook_size} codes"
        return [("masked", f"{share.float().mean():.0%} of the frames"), ("target", target)]

    def forward(self, batch: Batch, *, mask: Tensor | None = None, noise: Tensor | None = None) -> LossOutput:
        """The sum of cross-entropies over masked frames.

        Args:
            batch: waveforms only.
            mask: (B, F) bool, drawn here if None.
            noise: (B, N, M) standard normal, drawn here if None.
        """
        config, encoder = self.config, self.encoder
        mel, lengths, frames = self.log_mel(batch)
        stacked = self.stacked(mel)  # (B, F, S * M)
        if mask is None:
            mask = span_mask(frames, stacked.shape[1], start_prob=config.mask_start_prob, span=config.mask_length)
        if noise is None:
            noise = torch.randn_like(mel)
        hidden_mel = mask.repeat_interleave(self.stack, dim=1)[..., None]  # (B, F * S, 1)
        hidden_mel = self.put_back(hidden_mel, torch.zeros_like(mel[..., :1], dtype=torch.bool))
        heard = torch.where(hidden_mel, config.noise_std * noise, mel)
        latents, lengths = self.features.convolutions(heard, lengths)
        hidden, _ = encoder.context(encoder.project(latents)[0], lengths)

        logits = self.prediction(hidden[mask]).float()  # (masked, V)
        codes = self.quantizer(stacked[mask])
        loss, count = F.cross_entropy(logits, codes, reduction="sum"), mask.sum().float()
        right = logits.argmax(-1) == codes
        metrics = {
            "cross_entropy": Metric.mean(loss, count),
            "accuracy": Metric.mean(right.sum(), count),
            "code_perplexity": Metric(
                torch.bincount(codes, minlength=config.codebook_size)[None].float(), "perplexity"
            ),
            "masked": Metric.mean(count, frames.sum()),
        }
        return LossOutput(loss, count, metrics, MaskedFrames(mask, right))
