"""Masked autoencoder (He et al. 2022; on spectrograms Huang et al. 2022, Baade et al. 2022): rebuild the unseen 75%.

Shapes: B utterances, N log-mel frames (or steps of a series), M mel bins (or channels), F patches (= encoder frames), S
log-mel frames (or steps) per patch, P = S * M numbers in a patch, W visible patches of the utterance that has most, D
hidden and E decoder channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.lengths import full_lengths, padding_mask, receptive_field
from speechssl.nn.regression import normalize_patches
from speechssl.nn.sinusoidal import Sinusoidal, SinusoidalConfig
from speechssl.objectives.base import LossOutput, MaskedFrames, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig:
    """Targets as in MAE-AST. Normalised ones learn slowly where there are pauses: they blow up the noise in them."""

    name: Literal["masked_autoencoder"] = "masked_autoencoder"
    mask_ratio: float = 0.75
    normalize_targets: bool = False  # true: each patch to zero mean and unit variance (He et al., Huang et al.)
    decoder_dim: int = 512
    decoder_layers: int = 2
    decoder_heads: int = 8

    def __post_init__(self):
        if not 0 < self.mask_ratio < 1:
            raise ValueError("mask_ratio must be between 0 and 1")


class MaskedAutoencoder(Objective):
    """Patches are as high as the spectrogram and S frames wide, so that a patch is an encoder frame.

    This is the frame variant of MAE-AST (Baade et al. 2022), which there serves speech better than the squares of
    16 x 16 of Audio-MAE; positions are then places in time alone. The feature encoder is the patch embedding, hence
    one convolution whose kernel is its stride, and the exported encoder is one like any other.

    A feature encoder that reads the samples themselves makes patches of all channels x S steps: series of sensors.
    """

    Config = MaskedAutoencoderConfig
    takes_channels = True
    min_frames = 2  # one behind the mask, one to see

    def __init__(self, config: MaskedAutoencoderConfig, encoder: Encoder):
        super().__init__(config, encoder)
        features = encoder.feature_encoder
        own = encoder.config.feature_encoder  # of log-mel: without its window
        self.stack = math.prod(own.strides)
        if receptive_field(own.kernels, own.strides) != self.stack:
            raise UserError(
                "masked_autoencoder needs patches that do not overlap: set the kernels of encoder.feature_encoder to "
                "its strides, for example kernels=[4] strides=[4]."
            )
        if not isinstance(encoder.context, Sinusoidal):
            raise UserError(
                "masked_autoencoder leaves patches out, and only positions that do not depend on neighbours allow it: "
                "set encoder.context.name=sinusoidal."
            )
        if isinstance(own, WaveformConfig) and own.norm not in ("layer", "none"):
            raise UserError(
                f"masked_autoencoder would see hidden patches through encoder.feature_encoder.norm={own.norm}, whose "
                "statistics are over time; set it to layer or none."
            )
        decoder = SinusoidalConfig(
            dim=config.decoder_dim,
            num_layers=config.decoder_layers,
            num_heads=config.decoder_heads,
            ffn_dim=4 * config.decoder_dim,
        )
        self.bridge = nn.Linear(encoder.dim, config.decoder_dim)
        self.mask_embedding = nn.Parameter(torch.randn(config.decoder_dim) * 0.02)
        self.decoder = Sinusoidal(decoder, config.decoder_dim)
        self.prediction = nn.Linear(config.decoder_dim, self.stack * features.num_inputs)

    def chance(self) -> dict[str, float]:
        return {"explained": 0.0}

    def describe(self) -> list[tuple[str, str]]:
        features = self.encoder.feature_encoder
        what = "channels" if features.num_inputs == features.channels else "log-mel"
        return [
            ("masked", f"{self.config.mask_ratio:.0%} of the patches of {self.stack} x {features.num_inputs} {what}")
        ]

    def forward(self, batch: Batch, *, mask: Tensor | None = None) -> LossOutput:
        """The sum over masked patches of the mean squared error.

        Args:
            batch: waveforms only.
            mask: (B, F) bool, drawn here if None.
        """
        encoder, context = self.encoder, self.encoder.context
        assert isinstance(context, Sinusoidal)
        inputs, lengths = encoder.feature_encoder.inputs(batch.waveforms, batch.lengths_or_none)  # (B, N, M)
        latents, lengths = encoder.feature_encoder.convolve(inputs, lengths)
        frames = full_lengths(latents, lengths)
        projected, _ = encoder.project(latents)  # (B, F, D)
        if mask is None:
            mask = self.draw_mask(frames, projected.shape[1])
        seen = ~mask & ~padding_mask(frames, mask.shape[1])
        counts = seen.sum(1)
        fewest, most = counts.aminmax()
        where = seen.long().argsort(dim=1, descending=True, stable=True)[:, : int(most)]  # (B, W), in order of time
        visible = projected.gather(1, where[..., None].expand(-1, -1, projected.shape[-1]))
        hidden, _ = context(visible, None if bool(fewest == most) else counts, places=where)

        embedded = self.bridge(hidden)[~padding_mask(counts, where.shape[1])]  # one row per visible patch
        tokens = self.mask_embedding.to(embedded.dtype).expand(*mask.shape, -1)
        decoded, _ = self.decoder(tokens.masked_scatter(seen[..., None], embedded), lengths)
        predictions, targets = self.prediction(decoded[mask]).float(), self.patches(inputs)[mask]
        if self.config.normalize_targets:
            targets = normalize_patches(targets)
        error = (predictions - targets).square().mean(-1)
        loss, count = error.sum(), mask.sum().float()
        energy = targets.square().mean(-1).sum()
        metrics = {
            "explained": Metric.mean(energy - loss.detach(), energy),  # share of the squares; 0: as good as zeros
            "masked": Metric.mean(count, frames.sum()),
        }
        share = error.detach() / targets.square().mean(-1).clamp(min=1e-12)
        return LossOutput(loss, count, metrics, MaskedFrames(mask, share))

    def patches(self, inputs: Tensor) -> Tensor:
        """(B, N, M) -> (B, F, P); what is left behind the last whole patch is no part of any."""
        size = inputs.shape[1] // self.stack
        return inputs[:, : size * self.stack].reshape(len(inputs), size, -1)

    def draw_mask(self, frames: Tensor, size: int) -> Tensor:
        """(B, size) bool: floor(mask_ratio * F) patches of each utterance, at least one, any of them."""
        masked = (self.config.mask_ratio * frames).long().clamp(min=1).minimum((frames - 1).clamp(min=0))
        draw = torch.rand((len(frames), size), device=frames.device)
        draw = draw.masked_fill(padding_mask(frames, size), 2.0)  # behind every patch
        return draw.argsort(dim=1).argsort(dim=1) < masked[:, None]
