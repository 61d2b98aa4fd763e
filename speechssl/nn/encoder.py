"""`Encoder`: waveforms -> latents -> hidden.

Shapes: B utterances, T samples, F frames, C latent channels, D hidden channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from speechssl.nn.context import ContextConfig, build_context
from speechssl.nn.frontend import LogMelConfig, WaveformConfig, build_feature_encoder
from speechssl.nn.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Its two halves by name, and what lies between them."""

    feature_encoder: WaveformConfig | LogMelConfig = field(default_factory=WaveformConfig)
    context: ContextConfig = field(default_factory=TransformerConfig)
    latent_norm: bool = True  # layer norm of the latents before the projection
    project: bool = True  # linear map C -> D; without it the context reads the latents themselves
    dropout: float = 0.1  # of the projected latents


@dataclass(frozen=True)
class EncoderOutput:
    """
    hidden: (B, F, D), the context network's output.
    lengths: (B,) in frames, or None when nothing is padded.
    latents: (B, F, C), what the feature encoder gave.
    layers: layers[0] = input of the context network's first block, layers[i] = output of block i after residual and
        norm; each (B, F, D).
    """

    hidden: Tensor
    lengths: Tensor | None
    latents: Tensor
    layers: list[Tensor]


class Encoder(nn.Module):
    """What pretraining is for, and what is exported.

    Objectives call its parts (`feature_encoder`, `project`, `context`); everybody else calls it whole.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.feature_encoder = build_feature_encoder(config.feature_encoder)
        channels = self.feature_encoder.dim
        self.latent_norm = nn.LayerNorm(channels) if config.latent_norm else nn.Identity()
        self.projection = nn.Linear(channels, config.context.dim) if config.project else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.projected_dim = config.context.dim if config.project else channels  # what the context reads, and is masked
        self.context = build_context(config.context, self.projected_dim)
        self.dim, self.latent_dim = self.context.dim, channels
        self.num_layers = len(self.context.blocks)
        # How many of `layers`, from the last one back, have `dim` channels: all, unless the context reads the latents
        # themselves and they have more or fewer.
        self.num_alike = self.num_layers + int(self.projected_dim == self.dim)
        self.hop = self.feature_encoder.hop  # samples per frame
        self.channels = self.feature_encoder.channels  # of what it reads: 1 for sound

    def frame_lengths(self, lengths):
        """Frames of an utterance of `lengths` samples: an int, or (B,)."""
        return self.feature_encoder.frame_lengths(lengths)

    def project(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, C) -> (projected (B, F, D), normalised latents (B, F, C))."""
        normed = self.latent_norm(latents)
        return self.dropout(self.projection(normed)), normed

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None, *, num_layers: int | None = None):
        """Encodes a batch.

        Args:
            waveforms: (B, T) at the encoder's sample rate, normalised as it was trained; (B, T, channels) where it
                reads several channels.
            lengths: (B,) in samples, or None when nothing is padded. Padding never changes the answer.
            num_layers: run only so many blocks of the context network.

        Returns:
            EncoderOutput.

        Raises:
            ValueError: no utterance is as long as one frame's receptive field.
        """
        least = self.feature_encoder.receptive_field
        if waveforms.shape[1] < least:
            raise ValueError(f"{waveforms.shape[1]} samples are fewer than the {least} that one frame sees; leave out")
        latents, frames = self.feature_encoder(waveforms, lengths)
        hidden, layers = self.context(self.project(latents)[0], frames, num_layers)
        return EncoderOutput(hidden=hidden, lengths=frames, latents=latents, layers=layers)
