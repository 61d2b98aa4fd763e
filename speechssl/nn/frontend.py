"""Feature encoders: waveforms -> latents. Shapes: B utterances, T samples, F frames, C channels.

Everything runs with channels last, (B, T, C): normalisation over channels is then contiguous, and the convolutions
reach oneDNN's and cuDNN's channels-last kernels (twice as fast here as channels first).
Convolutions are not padded, so a frame exists only where its whole receptive field is inside the utterance: what
lies behind an utterance's end never reaches its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.lengths import conv_lengths, padding_mask, receptive_field


def _check_stack(dims, kernels, strides) -> None:
    if not len(dims) == len(kernels) == len(strides):
        raise ValueError("dims, kernels and strides must have the same number of entries")


@dataclass(frozen=True, kw_only=True)
class WaveformConfig:
    """Raw-waveform convolutions of wav2vec 2.0 (Baevski et al. 2020, section 2); the defaults are its Base."""

    name: Literal["waveform"] = "waveform"
    dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    bias: bool = False
    norm: Literal["group", "layer", "none"] = "group"  # group: first layer only, per channel over time; layer: each

    def __post_init__(self):
        _check_stack(self.dims, self.kernels, self.strides)


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Log-mel filterbank, normalised per utterance and bin, then convolutions with layer norm."""

    name: Literal["logmel"] = "logmel"
    sample_rate: int = 16_000  # Hz, for the mel scale
    num_bins: int = 80
    window: int = 400  # samples
    hop: int = 160  # samples
    dims: tuple[int, ...] = (192, 192)
    kernels: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (2, 2)

    def __post_init__(self):
        _check_stack(self.dims, self.kernels, self.strides)


class ConvLayer(nn.Module):
    """Convolution, normalisation, GELU over (B, T, C_in) -> (B, T', C_out)."""

    def __init__(self, dim_in: int, dim: int, kernel: int, stride: int, *, bias: bool, norm: str):
        super().__init__()
        self.stride, self.norm = stride, norm
        self.weight = nn.Parameter(torch.empty(dim, dim_in, kernel))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.kaiming_normal_(self.weight)
        if norm != "none":
            self.norm_weight = nn.Parameter(torch.ones(dim))
            self.norm_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if x.shape[-1] == 1:  # one input channel: windows are a view, and a matrix product beats a convolution
            windows = x.squeeze(-1).unfold(1, self.weight.shape[-1], self.stride)
            x = F.linear(windows, self.weight.squeeze(1), self.bias)
        else:
            image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), physically channels last
            x = F.conv2d(image, self.weight.unsqueeze(2), self.bias, stride=(1, self.stride))
            x = x.squeeze(2).transpose(1, 2)
        if self.norm == "layer":
            x = F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias)
        elif self.norm == "group":
            x = channel_norm(x, lengths, self.norm_weight, self.norm_bias)
        return F.gelu(x)


def channel_norm(x: Tensor, lengths: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Group norm with one channel per group, over valid frames only: padding does not change the answer.

    Args:
        x: (B, T, C).
        lengths: (B,) valid frames, or None when all are.
        weight, bias: (C,).
    """
    wide = x.float()
    if lengths is None:
        variance, mean = torch.var_mean(wide, dim=1, correction=0)  # (B, C)
    else:
        count = lengths.clamp(min=1)[:, None].float()
        padding = padding_mask(lengths, x.shape[1])[:, :, None]
        mean = wide.masked_fill(padding, 0.0).sum(1) / count
        variance = (wide - mean[:, None]).masked_fill(padding, 0.0).square().sum(1) / count
    scale = weight * torch.rsqrt(variance + eps)
    shift = bias - mean * scale
    return x * scale[:, None].to(x.dtype) + shift[:, None].to(x.dtype)


class ConvStack(nn.Module):
    """Unpadded convolutions: (B, T, C_in) -> (B, F, C)."""

    def __init__(self, dim_in, dims, kernels, strides, *, bias: bool, norm: str):
        super().__init__()
        self.kernels, self.strides = tuple(kernels), tuple(strides)
        inputs = (dim_in, *dims)[: len(dims)]
        norms = [norm if norm == "layer" or i == 0 else "none" for i in range(len(dims))]
        self.layers = nn.ModuleList(
            ConvLayer(c_in, c_out, k, s, bias=bias, norm=n)
            for c_in, c_out, k, s, n in zip(inputs, dims, kernels, strides, norms, strict=True)
        )

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for layer, kernel, stride in zip(self.layers, self.kernels, self.strides, strict=True):
            lengths = None if lengths is None else conv_lengths(lengths, (kernel,), (stride,))
            x = layer(x, lengths)
        return x, lengths


class FeatureEncoder(nn.Module):
    """(B, T) waveforms -> (B, F, C) latents, by unpadded windows of `kernels` and `strides`."""

    def __init__(self, dim: int, kernels: tuple[int, ...], strides: tuple[int, ...]):
        super().__init__()
        self.dim, self.kernels, self.strides = dim, kernels, strides
        self.hop = math.prod(strides)  # samples per frame
        self.receptive_field = receptive_field(kernels, strides)  # samples that one frame sees

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns latents (B, F, C) and their lengths (B,) in frames, or None when nothing is padded."""
        raise NotImplementedError

    def frame_lengths(self, lengths):
        """Frames of an utterance of `lengths` samples: an int, or (B,)."""
        return conv_lengths(lengths, self.kernels, self.strides)


class WaveformEncoder(FeatureEncoder):
    """Convolutions on the waveform itself."""

    def __init__(self, config: WaveformConfig):
        super().__init__(config.dims[-1], config.kernels, config.strides)
        self.convolutions = ConvStack(
            1, config.dims, config.kernels, config.strides, bias=config.bias, norm=config.norm
        )

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns latents (B, F, C) and their lengths (B,) in frames, or None when nothing is padded."""
        return self.convolutions(waveforms.unsqueeze(-1), lengths)


class LogMelEncoder(FeatureEncoder):
    """Log-mel filterbank, then convolutions."""

    bank: Tensor  # (window / 2 + 1, num_bins)
    taper: Tensor  # (window,)

    def __init__(self, config: LogMelConfig):
        kernels, strides = (config.window, *config.kernels), (config.hop, *config.strides)
        super().__init__((config.num_bins, *config.dims)[-1], kernels, strides)
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
        """(B, T) -> (B, N, num_bins), zero mean and unit variance per utterance and bin over its valid windows."""
        with torch.autocast(waveforms.device.type, enabled=False), torch.no_grad():
            windows = waveforms.float().unfold(1, self.config.window, self.config.hop) * self.taper
            power = torch.view_as_real(torch.fft.rfft(windows)).square().sum(-1)  # (B, N, window / 2 + 1)
            mel = (power @ self.bank + 1e-6).log()
            lengths = None if lengths is None else conv_lengths(lengths, self.kernels[:1], self.strides[:1])
            ones = torch.ones_like(mel[0, 0])
            return channel_norm(mel, lengths, ones, torch.zeros_like(ones)), lengths

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns latents (B, F, C) and their lengths (B,) in frames, or None when nothing is padded."""
        return self.convolutions(*self.log_mel(waveforms, lengths))


def build_feature_encoder(config: WaveformConfig | LogMelConfig) -> FeatureEncoder:
    return WaveformEncoder(config) if isinstance(config, WaveformConfig) else LogMelEncoder(config)


__all__ = [
    "ConvStack",
    "FeatureEncoder",
    "LogMelConfig",
    "LogMelEncoder",
    "WaveformConfig",
    "WaveformEncoder",
    "build_feature_encoder",
    "channel_norm",
]
