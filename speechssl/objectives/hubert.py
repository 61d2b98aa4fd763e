"""HuBERT (Hsu et al. 2021): say which unit lies behind a mask. Units are clusters made offline (`speechssl units`).

Shapes: B utterances, T samples, F frames, R units per frame, N scored frames, D hidden channels, V different units.
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
from speechssl.nn.lengths import full_lengths, padding_mask
from speechssl.nn.masking import span_mask
from speechssl.nn.unit_prediction import mean_square, unit_logits, units_of_frames
from speechssl.objectives.base import LossOutput, MaskedFrames, Metric, Objective, scale_gradient


@dataclass(frozen=True, kw_only=True)
class HuBERTConfig:
    """The defaults are Base, iteration 2 (iteration 1: 100 units)."""

    name: Literal["hubert"] = "hubert"
    num_units: int = 500
    targets_per_frame: int = 1  # unit hops in an encoder hop: 2 for units every 20 ms under frames of 40 ms
    mask_start_prob: float = 0.08
    mask_length: int = 10  # frames
    final_dim: int = 256
    logit_temperature: float = 0.1
    unmasked_weight: float = 0.0  # of the loss on frames that are seen; 0: they are not scored
    feature_penalty: float = 10.0  # on the mean square of the latents
    feature_gradient: float = 0.1  # scale of the gradient into the feature encoder; 0: it stays as it is

    def __post_init__(self):
        if self.num_units < 2 or self.targets_per_frame < 1:
            raise ValueError("num_units must be 2 or more, and targets_per_frame 1 or more")


class HuBERT(Objective):
    Config = HuBERTConfig
    needs = frozenset({"units"})
    min_frames = 3  # two spans of one frame, and something to see

    def __init__(self, config: HuBERTConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if config.feature_gradient == 0:  # DDP would wait for gradients that never come
            encoder.feature_encoder.requires_grad_(False)
        self.mask_embedding = nn.Parameter(torch.rand(encoder.projected_dim))
        self.prediction = nn.Linear(encoder.dim, config.targets_per_frame * config.final_dim)
        self.unit_embeddings = nn.Parameter(torch.rand(config.num_units, config.final_dim))

    def chance(self) -> dict[str, float]:
        units = self.config.num_units
        return {"cross_entropy": math.log(units), "accuracy": 1 / units}

    def describe(self) -> list[tuple[str, str]]:
        frames = torch.full((64,), 15 * 50)
        share = span_mask(frames, 750, start_prob=self.config.mask_start_prob, span=self.config.mask_length)
        units = f"{self.config.num_units}, {self.config.targets_per_frame} to a frame"
        return [("masked", f"{share.float().mean():.0%} of the frames"), ("units", units)]

    def wrong_units(self, hop: int, num_units: int) -> str:
        config, wanted = self.config, self.encoder.hop / self.config.targets_per_frame
        if hop != wanted:
            fits = f"set objective.targets_per_frame={self.encoder.hop // hop}"
            advice = "make units with another hop" if self.encoder.hop % hop else fits
            return (
                f"one comes every {hop} samples, and a frame of {self.encoder.hop} samples with "
                f"{config.targets_per_frame} targets wants one every {wanted:g}; {advice}"
            )
        if num_units != config.num_units:
            return f"there are {num_units} of them, and not {config.num_units}; set objective.num_units={num_units}"
        return ""

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        """Names units that say nothing, and a network that has learnt no more than how frequent each unit is."""
        known, used = numbers.get("unit_perplexity", math.inf), numbers.get("predicted_perplexity", math.inf)
        if known < 2:
            return (
                f"the units themselves have collapsed: their perplexity is {known:.2f} of {self.config.num_units}, so "
                "nearly every frame has the same one; cluster other features, or more frames."
            )
        if used < min(2.0, known / 2) and numbers.get("cross_entropy", 0.0) > 0.95 * math.log(known):
            return (
                f"the predictions have collapsed to one unit whatever is heard (perplexity {used:.2f}, the units' is "
                f"{known:.1f}), and the loss is that of guessing by frequency; lower optim.lr, lengthen optim.warmup, "
                "or set optim.clip=10."
            )
        return ""

    def forward(self, batch: Batch, *, mask: Tensor | None = None) -> LossOutput:
        """The sum over masked frames of cross-entropy + feature_penalty * penalty (paper, equation 1).

        Args:
            batch: waveforms and units, one for every `hop / targets_per_frame` samples.
            mask: (B, F) bool, drawn here if None.
        """
        assert batch.units is not None  # `needs` was checked
        config = self.config
        latents, lengths = self.encoder.feature_encoder(self.heard(batch), batch.lengths_or_none)
        frames = full_lengths(latents, lengths)
        latents = scale_gradient(latents, config.feature_gradient)
        penalty = mean_square(latents, lengths)
        projected, _ = self.encoder.project(latents)
        if mask is None:
            mask = self.draw_mask(frames, latents.shape[1])
        masked = torch.where(mask[..., None], self.mask_embedding.to(projected.dtype), projected)
        hidden, _ = self.encoder.context(masked, lengths)

        targets = units_of_frames(batch.units, frames, latents.shape[1], config.targets_per_frame)  # (B, F, R)
        loss, count, metrics, right = self._score(hidden, targets, mask)
        if config.unmasked_weight:
            seen, seen_count, seen_metrics, _ = self._score(hidden, targets, ~mask)
            loss, count = loss + config.unmasked_weight * seen, count + seen_count
            metrics |= {f"unmasked_{name}": seen_metrics[name] for name in ("cross_entropy", "accuracy")}
        loss = loss + count * config.feature_penalty * penalty
        inside = (mask & ~padding_mask(frames, mask.shape[1])).sum()
        metrics |= {
            "feature_penalty": Metric.mean(penalty * count, count),
            "masked": Metric.mean(inside, frames.sum()),
        }
        return LossOutput(loss, count, metrics, MaskedFrames(mask, right))

    def heard(self, batch: Batch) -> Tensor:
        """The waveforms (B, T) that the encoder hears; the units stay those of the batch."""
        return batch.waveforms

    def draw_mask(self, frames: Tensor, size: int) -> Tensor:
        """(B, size) bool; at least two spans, as in its implementation."""
        config = self.config
        return span_mask(frames, size, start_prob=config.mask_start_prob, span=config.mask_length, min_spans=2)

    def _score(
        self, hidden: Tensor, targets: Tensor, where: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Metric], Tensor]:
        """Cross-entropy summed over the units of the frames in `where` (B, F), how many they are, and metrics.

        Last, (N,) bool: of which of these frames every known unit was right.
        """
        wanted = targets[where]  # (N, R)
        predictions = self.prediction(hidden[where]).unflatten(-1, (self.config.targets_per_frame, -1))  # (N, R, E)
        known = wanted >= 0
        logits = unit_logits(predictions[known], self.unit_embeddings, self.config.logit_temperature)
        wanted = wanted[known]
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        count = torch.tensor(float(len(wanted)), device=loss.device)
        best = logits.detach().argmax(-1)
        metrics = {
            "cross_entropy": Metric.mean(loss, count),
            "accuracy": Metric.mean((best == wanted).sum(), count),
            "unit_perplexity": Metric(self._histogram(wanted), "perplexity"),
            "predicted_perplexity": Metric(self._histogram(best), "perplexity"),
        }
        right = torch.ones_like(known).masked_scatter(known, best == wanted).all(1)
        return loss, count, metrics, right

    def _histogram(self, units: Tensor) -> Tensor:
        return torch.bincount(units, minlength=self.config.num_units).float()[None]  # (1, V)
