"""Reconstruction of a masked log-mel spectrogram: Mockingjay (Liu et al. 2020) in time, TERA (2021) also in frequency.

Shapes: B utterances, N log-mel frames, M mel bins, F encoder frames, S log-mel frames per encoder frame; R = F * S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import padding_mask
from speechssl.nn.masking import span_mask
from speechssl.objectives.base import LossOutput, Metric
from speechssl.objectives.log_mel import LogMelObjective


@dataclass(frozen=True, kw_only=True)
class MaskedSpectrogramConfig:
    """The published numbers, in log-mel frames of 10 ms."""

    name: Literal["masked_spectrogram"] = "masked_spectrogram"
    mask_start_prob: float = 0.15 / 7  # spans per frame: 15% of the frames where they do not overlap
    mask_length: int = 7  # log-mel frames
    zero_share: float = 0.8  # of the utterances have their masked frames set to zero
    random_share: float = 0.1  # have them replaced by random frames of theirs; the rest keep them
    channel_share: float = 0.2  # widest block of mel bins set to zero, of all bins; 0: none (Mockingjay)


@dataclass(frozen=True)
class Alteration:
    """
    chosen: (B, R) bool, the frames to reconstruct in full.
    source: (B, R) int64, which of the utterance's frames stands in each place: its own, another, or -1 for zeros.
    channels: (B, M) bool, the bins set to zero, and reconstructed, in every frame.
    """

    chosen: Tensor
    source: Tensor
    channels: Tensor


class MaskedSpectrogram(LogMelObjective):
    """The head gives, for each encoder frame, the S log-mel frames that it owns; L1 over the chosen places."""

    Config = MaskedSpectrogramConfig
    about = "masked_spectrogram"
    min_frames = 2  # something to see

    def __init__(self, config: MaskedSpectrogramConfig, encoder: Encoder):
        super().__init__(config, encoder)
        dim = encoder.dim
        self.prediction = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, self.stack * self.num_bins)
        )

    def describe(self) -> list[tuple[str, str]]:
        config = self.config
        frames = torch.full((64,), 15 * 100)
        share = span_mask(frames, 15 * 100, start_prob=config.mask_start_prob, span=config.mask_length).float().mean()
        return [("masked", f"{share:.0%} of the log-mel frames, up to {config.channel_share:.0%} of the bins")]

    def forward(self, batch: Batch, *, alteration: Alteration | None = None) -> LossOutput:
        """The sum of absolute errors over the chosen places of the spectrogram.

        Args:
            batch: waveforms only.
            alteration: drawn here if None.
        """
        mel, lengths, frames = self.log_mel(batch)
        owned = self.stacked(mel).view(len(mel), -1, self.num_bins)  # (B, R, M)
        if alteration is None:
            alteration = self.draw(frames * self.stack, owned.shape[1])
        channels = alteration.channels[:, None]  # (B, 1, M)
        heard = self.put_back(altered(owned, alteration.source), mel).masked_fill(channels, 0.0)
        latents, lengths = self.features.convolutions(heard, lengths)
        hidden, _ = self.encoder.context(self.encoder.project(latents)[0], lengths)

        inside = ~padding_mask(frames * self.stack, owned.shape[1])[..., None]
        places = (alteration.chosen[..., None] | channels) & inside  # (B, R, M)
        predictions, targets = self.prediction(hidden).float().view_as(owned)[places], owned[places]
        loss, count = (predictions - targets).abs().sum(), places.sum().float()
        metrics = {
            "l1": Metric.mean(loss, count),
            "l1_of_zeros": Metric.mean(targets.abs().sum(), count),  # what guessing each bin's mean costs
            "masked": Metric.mean(count, inside.sum() * self.num_bins),
        }
        return LossOutput(loss, count, metrics)

    def draw(self, lengths: Tensor, size: int) -> Alteration:
        """Alterations of utterances of `lengths` (B,) log-mel frames, of which the longest has `size`.

        As published, one throw of the dice decides for an utterance whether its masked frames become zeros, random
        frames or stay; and the block of zeroed bins has a width, from none to `channel_share`, and a place at random.
        """
        config, device, batch = self.config, lengths.device, len(lengths)
        chosen = span_mask(lengths, size, start_prob=config.mask_start_prob, span=config.mask_length)
        own = torch.arange(size, device=device).expand_as(chosen)
        other = (torch.rand(chosen.shape, device=device) * lengths[:, None]).long()
        dice = torch.rand((batch, 1), device=device)
        replacement = torch.where(dice < config.zero_share, -1, other)
        keeps = dice >= config.zero_share + config.random_share
        source = torch.where(chosen & ~keeps, replacement, own)

        width = torch.randint(int(config.channel_share * self.num_bins) + 1, (batch, 1), device=device)
        start = (torch.rand((batch, 1), device=device) * (self.num_bins - width + 1)).long()
        bins = torch.arange(self.num_bins, device=device)
        return Alteration(chosen, source, (bins >= start) & (bins < start + width))


def altered(frames: Tensor, source: Tensor) -> Tensor:
    """(B, R, M) -> (B, R, M): frame source[b, r] in place r, zeros where it is -1."""
    taken = frames.gather(1, source.clamp(min=0)[..., None].expand_as(frames))
    return taken.masked_fill((source < 0)[..., None], 0.0)
