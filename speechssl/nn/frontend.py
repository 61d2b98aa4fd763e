"""Feature encoders: waveforms -> latents. Shapes: B utterances, T samples, M inputs a step, F frames, C channels.

Convolutions are not padded, so a frame exists only where its whole receptive field is inside the utterance: what
lies behind an utterance's end never reaches its frames.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.conv_stack import ConvStack
from speechssl.nn.exporting import exporting
from speechssl.nn.lengths import conv_lengths, receptive_field
from speechssl.nn.norms import channel_norm

TYPICAL_LOG_MEL = (-9.0, 4.8)  # mean and deviation over all bins of some speech (windows of 25 ms, full scale 1)


def _check_stack(dims, kernels, strides) -> None:
    if not len(dims) == len(kernels) == len(strides):
        raise ValueError("dims, kernels and strides must have the same number of entries")


@dataclass(frozen=True, kw_only=True)
class WaveformConfig:
    """Raw-waveform convolutions of wav2vec 2.0 (Baevski et al. 2020, section 2); the defaults are its Base.

    norm: group: first layer only, per channel over time; layer: each, over channels; utterance: each, over channels and
    time (wav2vec, Schneider et al. 2019); none.
    compression: log: the latents become log(1 + |x|) (wav2vec).
    channels: of what is read: 1 for sound, more for series (sensors).
    """

    name: Literal["waveform"] = "waveform"
    dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    bias: bool = False
    norm: Literal["group", "layer", "utterance", "none"] = "group"
    activation: Literal["gelu", "relu"] = "gelu"
    compression: Literal["none", "log"] = "none"
    channels: int = 1

    def __post_init__(self):
        if self.channels < 1:
            raise ValueError("channels must be 1 or more")
        _check_stack(self.dims, self.kernels, self.strides)


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Log-mel filterbank, then convolutions with layer norm.

    normalize: utterance: zero mean and unit variance per utterance and bin, which takes its level and colour away,
    and with them much of who speaks; fixed: the same shift and scale for all, which keeps these (as COLA does,
    Saeed et al. 2021) and needs no look at the whole utterance.
    """

    name: Literal["logmel"] = "logmel"
    sample_rate: int = 16_000  # Hz, for the mel scale
    num_bins: int = 80
    window: int = 400  # samples
    hop: int = 160  # samples
    normalize: Literal["utterance", "fixed"] = "utterance"
    dims: tuple[int, ...] = (192, 192)
    kernels: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (2, 2)

    def __post_init__(self):
        _check_stack(self.dims, self.kernels, self.strides)


class FeatureEncoder(nn.Module):
    """(B, T) waveforms or (B, T, channels) series -> (B, F, C) latents, by unpadded windows of `kernels` and `strides`.

    Its convolutions read `num_inputs` (M) numbers a step: log-mel bins, or the channels themselves.
    """

    convolutions: ConvStack

    def __init__(
        self, dim: int, kernels: tuple[int, ...], strides: tuple[int, ...], *, num_inputs: int, channels: int = 1
    ):
        super().__init__()
        self.num_inputs, self.channels = num_inputs, channels
        self.dim, self.kernels, self.strides = dim, kernels, strides
        self.hop = math.prod(strides)  # samples per frame
        self.receptive_field = receptive_field(kernels, strides)  # samples that one frame sees

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns latents (B, F, C) and their lengths (B,) in frames, or None when nothing is padded."""
        return self.convolve(*self.inputs(waveforms, lengths))

    def inputs(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the convolutions read, (B, N, M), and its lengths (B,) in steps, or None."""
        raise NotImplementedError

    def convolve(self, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`inputs` -> latents (B, F, C) and their lengths (B,) in frames, or None."""
        return self.convolutions(inputs, lengths)

    def frame_lengths(self, lengths):
        """Frames of an utterance of `lengths` samples: an int, or (B,)."""
        return conv_lengths(lengths, self.kernels, self.strides)


class WaveformEncoder(FeatureEncoder):
    """Convolutions on the waveform itself, or on the channels of a series."""

    def __init__(self, config: WaveformConfig):
        channels = config.channels
        super().__init__(config.dims[-1], config.kernels, config.strides, num_inputs=channels, channels=channels)
        self.log = config.compression == "log"
        self.convolutions = ConvStack(
            channels,
            config.dims,
            config.kernels,
            config.strides,
            bias=config.bias,
            norm=config.norm,
            activation=config.activation,
        )

    def inputs(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The samples, (B, T, channels), and their lengths."""
        return (waveforms.unsqueeze(-1) if self.channels == 1 else waveforms), lengths

    def convolve(self, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        latents, lengths = super().convolve(inputs, lengths)
        return (latents.float().abs().log1p() if self.log else latents), lengths


class LogMelEncoder(FeatureEncoder):
    """Log-mel filterbank, then convolutions."""

    bank: Tensor  # (window / 2 + 1, num_bins)
    taper: Tensor  # (window,)

    def __init__(self, config: LogMelConfig):
        kernels, strides = (config.window, *config.kernels), (config.hop, *config.strides)
        super().__init__((config.num_bins, *config.dims)[-1], kernels, strides, num_inputs=config.num_bins)
        from torchaudio.functional import melscale_fbanks

        self.config = config
        bank = melscale_fbanks(
            config.window // 2 + 1, 0.0, config.sample_rate / 2, config.num_bins, config.sample_rate, mel_scale="htk"
        )
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("taper", torch.hann_window(config.window), persistent=False)
        self.convolutions = ConvStack(
            config.num_bins, config.dims, config.kernels, config.strides, bias=True, norm="layer"
        )

    def log_mel(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T) -> (B, N, num_bins), normalised as the config says; `utterance`: over an utterance's valid windows."""
        # A graph is made outside autocast, and cannot be read again with this inside.
        single = contextlib.nullcontext() if exporting() else torch.autocast(waveforms.device.type, enabled=False)
        with single, torch.no_grad():
            power = self._convolved_power(waveforms) if exporting() else self._power(waveforms.float())
            mel = (power @ self.bank + 1e-6).log()
            lengths = None if lengths is None else conv_lengths(lengths, self.kernels[:1], self.strides[:1])
            if self.config.normalize == "fixed":
                mean, deviation = TYPICAL_LOG_MEL
                return (mel - mean) / deviation, lengths
            ones = torch.ones_like(mel[0, 0])
            return channel_norm(mel, lengths, ones, torch.zeros_like(ones)), lengths

    def _power(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, N, window / 2 + 1), the power of every frequency in every window."""
        windows = waveforms.unfold(1, self.config.window, self.config.hop) * self.taper
        return torch.view_as_real(torch.fft.rfft(windows)).square().sum(-1)

    def _convolved_power(self, waveforms: Tensor) -> Tensor:
        """`_power` by one convolution with sines and cosines: other programs' Fourier transforms are less exact."""
        size = self.config.window
        turns = torch.arange(size // 2 + 1)[:, None] * torch.arange(size) % size
        angles = turns.double() * (2 * math.pi / size)
        kernels = torch.cat((angles.cos(), angles.sin())).to(self.taper) * self.taper  # (window + 2, window)
        real, imaginary = F.conv1d(waveforms[:, None], kernels[:, None], stride=self.config.hop).chunk(2, 1)
        return (real.square() + imaginary.square()).transpose(1, 2)

    def inputs(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`log_mel`."""
        return self.log_mel(waveforms, lengths)


def build_feature_encoder(config: WaveformConfig | LogMelConfig) -> FeatureEncoder:
    return WaveformEncoder(config) if isinstance(config, WaveformConfig) else LogMelEncoder(config)
