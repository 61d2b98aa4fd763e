"""CTC fine-tuning of an encoder (Graves et al. 2006; wav2vec 2.0, section 3.2 and appendix B).

Shapes: B utterances, F frames, D channels, V tokens with the blank at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.augment import Augment, AugmentConfig
from speechssl.nn.encoder import Encoder
from speechssl.nn.heads import TokenHead
from speechssl.nn.lengths import full_lengths
from speechssl.nn.masking import channel_mask, span_mask
from speechssl.objectives.transcription import Transcription


@dataclass(frozen=True, kw_only=True)
class CTCConfig:
    """The defaults are Base on 10 minutes. vocab_size and word_boundary are filled in from the vocabulary."""

    name: Literal["ctc"] = "ctc"
    vocab_size: int = 0  # with the blank
    word_boundary: int = -1  # token between words, for WER in validation; -1: none
    symbols_per_frame: int = 1  # tokens that one encoder frame may spell
    time_mask_start_prob: float = 0.065
    time_mask_length: int = 10  # frames
    channel_mask_start_prob: float = 0.0039
    channel_mask_length: int = 64  # channels
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # while training; as published, all is off
    head_dropout: float = 0.0
    freeze_feature_encoder: bool = True
    freeze_encoder_updates: int = 10_000  # at first only the head learns

    def __post_init__(self):
        if self.vocab_size < 2:
            raise ValueError("vocab_size is not set; a vocabulary is needed (data.vocabulary, `speechssl vocab`)")


class CTC(Transcription):
    Config = CTCConfig

    def __init__(self, config: CTCConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.augment = Augment(config.augment)
        self.mask_embedding = nn.Parameter(torch.rand(encoder.projected_dim))
        self.head = TokenHead(encoder.dim, config.vocab_size, config.symbols_per_frame, config.head_dropout)
        self.encoder_is_frozen = False
        if config.freeze_feature_encoder:
            encoder.feature_encoder.requires_grad_(False)

    def before_step(self, step: int) -> None:
        self.encoder_is_frozen = step < self.config.freeze_encoder_updates

    def frozen(self):
        return self.encoder.parameters() if self.encoder_is_frozen else ()

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, F * symbols_per_frame, V) and their lengths (B,); masked while training."""
        waveforms, lengths = batch.waveforms, batch.lengths_or_none
        if self.training and self.config.augment != AugmentConfig():
            waveforms, lengths = self.augment(waveforms, batch.lengths)
        latents, lengths = self.encoder.feature_encoder(waveforms, lengths)
        if self.config.freeze_feature_encoder:
            latents = latents.detach()
        projected, _ = self.encoder.project(latents)
        frames = full_lengths(projected, lengths)
        if self.training:
            projected = self._mask(self.augment.frames(projected, lengths), frames)
        hidden, _ = self.encoder.context(projected, lengths)
        return self.head(hidden, frames)

    def _mask(self, projected: Tensor, frames: Tensor) -> Tensor:
        """Time masks (by the mask embedding) and channel masks (by zero), as in wav2vec 2.0's fine-tuning."""
        config, (batch, size, dim) = self.config, projected.shape
        mask = span_mask(
            frames, size, start_prob=config.time_mask_start_prob, span=config.time_mask_length, min_spans=0
        )
        projected = torch.where(mask[..., None], self.mask_embedding.to(projected.dtype), projected)
        channels = channel_mask(
            batch,
            dim,
            start_prob=config.channel_mask_start_prob,
            span=config.channel_mask_length,
            device=projected.device,
        )
        return projected.masked_fill(channels[:, None], 0.0)

    @property
    def fastest(self) -> int:
        return self.config.augment.speed_percents[1]
