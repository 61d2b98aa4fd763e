"""wav2vec 2.0 (Baevski et al. 2020): tell the quantized latent behind a mask from others of the same utterance.

Shapes: B utterances, F frames, M masked frames of the most masked utterance, N masked frames of the batch,
C latent and D hidden channels, G codebooks of V codes, K negatives.
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
from speechssl.nn.losses import contrastive_logits, diversity_loss, first_is_right
from speechssl.nn.masking import span_mask
from speechssl.nn.negatives import nearest_negatives, sample_negatives
from speechssl.nn.quantize import GumbelQuantizer
from speechssl.nn.variation import variation
from speechssl.objectives.base import LossOutput, MaskedFrames, Metric, Objective, scale_gradient


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """The defaults are Base, LibriSpeech 960 h."""

    name: Literal["wav2vec2"] = "wav2vec2"
    mask_start_prob: float = 0.065
    mask_length: int = 10  # frames
    num_codebooks: int = 2
    codebook_size: int = 320
    code_dim: int = 256
    final_dim: int = 256
    num_negatives: int = 100
    hard_pool: int = 0  # 0: uniform; n: the num_negatives nearest to the target of n times as many uniform ones
    logit_temperature: float = 0.1
    gumbel_start: float = 2.0  # temperature = max(start * decay ** step, end)
    gumbel_end: float = 0.5
    gumbel_decay: float = 0.999995
    diversity_weight: float = 0.1
    feature_penalty: float = 10.0  # on the mean square of the latents
    feature_gradient: float = 0.1  # scale of the gradient into the feature encoder; 0: it stays as it is
    quantizer_dropout: float = 0.1  # of the latents that are quantized

    def __post_init__(self):
        if self.hard_pool < 0:
            raise ValueError("hard_pool must be 0 or more")


class Wav2Vec2(Objective):
    Config = Wav2Vec2Config
    min_frames = 3  # two spans of one frame, and something to see

    def __init__(self, config: Wav2Vec2Config, encoder: Encoder):
        super().__init__(config, encoder)
        if config.feature_gradient == 0:  # DDP would wait for gradients that never come
            encoder.feature_encoder.requires_grad_(False)
        self.mask_embedding = nn.Parameter(torch.rand(encoder.projected_dim))
        self.quantizer = GumbelQuantizer(
            encoder.latent_dim,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            code_dim=config.code_dim,
        )
        self.quantizer_dropout = nn.Dropout(config.quantizer_dropout)
        self.target_projection = nn.Linear(config.code_dim, config.final_dim)
        self.prediction = nn.Linear(encoder.dim, config.final_dim)

    def before_step(self, step: int) -> None:
        config = self.config
        self.quantizer.temperature = max(config.gumbel_start * config.gumbel_decay**step, config.gumbel_end)

    def chance(self) -> dict[str, float]:
        negatives = self.config.num_negatives
        return {"contrastive": math.log(negatives + 1), "accuracy": 1 / (negatives + 1)}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        floor = self.config.num_codebooks
        if numbers.get("code_perplexity", math.inf) < 1.1 * floor:
            return (
                f"the quantizer gives every frame the same code (code_perplexity is at its floor, {floor}), so nothing "
                "is left to tell apart; raise objective.diversity_weight or objective.gumbel_end, or lower optim.lr"
            )
        if numbers.get("equal_codes", 0.0) > 0.9:
            return (
                f"{numbers['equal_codes']:.0%} of the negatives have the codes of the right answer and do not count: "
                "accuracy means nothing; raise objective.diversity_weight, or lower optim.lr"
            )
        if numbers.get("variation", 1.0) < 1e-4:
            return (
                "the latents have become the same vector in every frame, so the loss stays at chance; start again with "
                "a lower optim.lr or a longer optim.warmup"
            )
        return ""

    def describe(self) -> list[tuple[str, str]]:
        frames = torch.full((64,), 15 * 50)
        share = span_mask(frames, 750, start_prob=self.config.mask_start_prob, span=self.config.mask_length)
        codes = f"{self.config.num_codebooks} x {self.config.codebook_size}"
        return [("masked", f"{share.float().mean():.0%} of the frames"), ("codes", codes)]

    def forward(
        self, batch: Batch, *, mask: Tensor | None = None, negatives: Tensor | None = None, noise: Tensor | None = None
    ) -> LossOutput:
        """The sum over masked frames of contrastive + diversity_weight * diversity + feature_penalty * penalty.

        Args:
            batch: waveforms only.
            mask: (B, F) bool, drawn here if None.
            negatives: (B, M, K), places among an utterance's masked frames, drawn here if None.
            noise: (N, G, V) Gumbel noise, drawn here if None. (These three are given by parity tests.)
        """
        latents, lengths = self.encoder.feature_encoder(batch.waveforms, batch.lengths_or_none)
        frames = full_lengths(latents, lengths)
        latents = scale_gradient(latents, self.config.feature_gradient)  # the penalty's too, as published
        penalty = self._feature_penalty(latents, lengths)
        projected, normed = self.encoder.project(latents)
        if mask is None:
            mask = self.draw_mask(frames, latents.shape[1])
        masked = torch.where(mask[..., None], self.mask_embedding.to(projected.dtype), projected)
        hidden, _ = self.encoder.context(masked, lengths)

        # Everything from here on sees masked frames only, gathered to the front of each row.
        counts = mask.sum(1)  # (B,)
        where = mask.long().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]  # (B, M)
        valid = ~padding_mask(counts, where.shape[1])
        predictions = self.prediction(_take(hidden, where))
        quantized = self.quantizer(self.quantizer_dropout(_take(normed, where)[valid]), noise)
        vectors = self.target_projection(quantized.vectors)
        targets = vectors.new_zeros(*where.shape, vectors.shape[-1]).masked_scatter(valid[..., None], vectors)
        codes = self._code_numbers(quantized.codes, valid)
        if negatives is None:
            negatives = self._draw(targets, codes, counts)
        logits = contrastive_logits(predictions, targets, negatives, self.config.logit_temperature)
        equal = _equal(codes, negatives)
        logits = torch.cat((logits[..., :1], logits[..., 1:].masked_fill(equal, -torch.inf)), -1)
        scored = valid & (counts > 1)[:, None]  # a lone masked frame has no negatives
        logits = logits[scored]  # (N, K + 1)

        contrastive = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")
        count = torch.tensor(float(len(logits)), device=logits.device)
        diversity = diversity_loss(quantized.probs)
        loss = contrastive + count * (self.config.diversity_weight * diversity + self.config.feature_penalty * penalty)
        right = first_is_right(logits.detach())
        metrics = {
            "contrastive": Metric.mean(contrastive, count),
            "accuracy": Metric.mean(right.sum(), count),
            "diversity": Metric.mean(diversity * count, count),
            "code_perplexity": Metric(self._histogram(quantized.codes), "perplexity"),
            "prob_perplexity": Metric(quantized.probs.detach().sum(0), "perplexity"),
            "feature_penalty": Metric.mean(penalty * count, count),
            "equal_codes": Metric.mean(equal[scored].float().mean(-1).sum(), count),
            "variation": Metric.mean(*variation(latents, lengths)),
            "masked": Metric.mean(counts.sum(), frames.sum()),
            "temperature": Metric.mean(count * self.quantizer.temperature, count),
        }
        return LossOutput(loss, count, metrics, MaskedFrames(mask, right))

    def draw_mask(self, frames: Tensor, size: int) -> Tensor:
        """(B, size) bool; at least two spans, so that every frame has a negative."""
        config = self.config
        return span_mask(frames, size, start_prob=config.mask_start_prob, span=config.mask_length, min_spans=2)

    def _draw(self, targets: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
        """(B, M, K) places among an utterance's masked frames, not a frame's own: uniform, or the nearest drawn."""
        own = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        negatives = sample_negatives(counts[:, None], own, self.config.num_negatives * max(self.config.hard_pool, 1))
        negatives = negatives.clamp(max=codes.shape[1] - 1)  # only rows with a lone masked frame, which do not count
        if not self.config.hard_pool:
            return negatives
        equal = _equal(codes, negatives)  # not a negative at all, though nearest
        return nearest_negatives(targets, own, negatives, self.config.num_negatives, excluded=equal)

    def _feature_penalty(self, latents: Tensor, lengths: Tensor | None) -> Tensor:
        """Mean square of the latents, before their norm; 0-d."""
        if lengths is None:
            return latents.float().square().mean()
        padding = padding_mask(lengths, latents.shape[1])[..., None]
        total = latents.float().masked_fill(padding, 0.0).square().sum()
        return total / (lengths.sum() * latents.shape[-1])

    def _code_numbers(self, codes: Tensor, valid: Tensor) -> Tensor:
        """(N, G) codes -> (B, M) int64, one number per combination of codes; -1 where nothing is masked."""
        base = self.config.codebook_size ** torch.arange(codes.shape[1], device=codes.device)
        numbers = torch.full(valid.shape, -1, device=codes.device)
        return numbers.masked_scatter(valid, (codes * base).sum(1))

    def _histogram(self, codes: Tensor) -> Tensor:
        return F.one_hot(codes, self.config.codebook_size).sum(0).float()  # (G, V)


def _equal(codes: Tensor, negatives: Tensor) -> Tensor:
    """(B, M), (B, M, K) -> (B, M, K) bool: whether a negative has the very codes of the right answer."""
    return _take(codes[..., None], negatives.flatten(1)).view_as(negatives) == codes[..., None]


def _take(x: Tensor, where: Tensor) -> Tensor:
    """(B, F, D) at (B, M) -> (B, M, D)."""
    return x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))
