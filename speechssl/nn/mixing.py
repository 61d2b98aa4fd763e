"""Utterance mixing of WavLM (Chen et al. 2022, algorithm 1), without a loop over utterances.

Shapes: B utterances, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.nn.lengths import padding_mask


@dataclass(frozen=True)
class Mixture:
    """What is laid over what; every field is (B,).

    mixed: bool, whether the utterance is mixed at all.
    noise: bool, by noise and not by another utterance.
    other: int64, which utterance of the batch (its own number is possible, as in the paper).
    ratio: dB, energy of the utterance over that of what is mixed in.
    length: int64, samples that are mixed.
    start, other_start: int64, where they begin in the utterance and in the other one.
    """

    mixed: Tensor
    noise: Tensor
    other: Tensor
    ratio: Tensor
    length: Tensor
    start: Tensor
    other_start: Tensor


def draw_mixture(
    lengths: Tensor,
    *,
    prob: float,
    noise_prob: float,
    speech_ratio: tuple[float, float],
    noise_ratio: tuple[float, float],
) -> Mixture:
    """Draws from torch's generator, uniformly: another utterance, at most half of the utterance's length, two places.

    Args:
        lengths: (B,) in samples.
        prob: share of the utterances that are mixed; noise_prob: share of these that get noise.
        speech_ratio, noise_ratio: dB, lowest and highest.
    """
    draws = torch.rand(7, len(lengths), device=lengths.device, dtype=torch.float64)
    noise = draws[1] < noise_prob
    other = (draws[2] * len(lengths)).long()
    low, high = (torch.where(noise, n, s) for n, s in zip(noise_ratio, speech_ratio, strict=True))
    length = 1 + (draws[4] * (lengths // 2)).long()  # 1 .. T / 2
    length = torch.minimum(length, torch.where(noise, lengths, torch.minimum(lengths, lengths[other])))
    start = (draws[5] * (lengths - length + 1)).long()
    room = torch.where(noise, lengths, lengths[other]) - length
    other_start = (draws[6] * (room + 1)).long()
    return Mixture(draws[0] < prob, noise, other, low + draws[3] * (high - low), length, start, other_start)


def coloured_noise(size: int, batch: int, device: torch.device | str) -> Tensor:
    """(batch, size): Gaussian noise with power ~ 1 / frequency ** slope, slope uniform in 0 (white) to 2 (brown)."""
    slope = 2 * torch.rand(batch, 1, device=device)
    spectrum = torch.fft.rfft(torch.randn(batch, size, device=device))
    frequency = torch.arange(spectrum.shape[1], device=device).clamp(min=1)
    return torch.fft.irfft(spectrum * frequency ** (-slope / 2), n=size)


def mix(waveforms: Tensor, lengths: Tensor, mixture: Mixture, noise: Tensor) -> Tensor:
    """Adds scaled pieces of other utterances, or of noise: the energies are means over whole utterances.

    Args:
        waveforms: (B, T), zero behind each end.
        lengths: (B,) in samples.
        noise: (B, T).

    Returns:
        (B, T), zero behind each end; utterances that are not mixed are as they were.
    """
    padding = padding_mask(lengths, waveforms.shape[1])
    noise = noise.masked_fill(padding, 0.0)
    others = torch.where(mixture.noise[:, None], noise, waveforms[mixture.other])
    count = torch.where(mixture.noise, lengths, lengths[mixture.other]).clamp(min=1)
    energy, other_energy = waveforms.square().sum(1) / lengths.clamp(min=1), others.square().sum(1) / count
    scale = (energy / (10 ** (mixture.ratio / 10) * other_energy.clamp(min=1e-12))).sqrt()
    offset = torch.arange(waveforms.shape[1], device=waveforms.device) - mixture.start[:, None]
    covered = (offset >= 0) & (offset < mixture.length[:, None]) & mixture.mixed[:, None] & ~padding
    place = (offset + mixture.other_start[:, None]).clamp(0, waveforms.shape[1] - 1)
    piece = others.gather(1, place) * scale[:, None].to(waveforms.dtype)
    return waveforms + piece.masked_fill(~covered, 0.0)
