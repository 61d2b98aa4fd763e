"""A convolutional autoencoder of the waveform: plain reconstruction, the baseline of all the others.

Shapes: B utterances, T samples, F frames, D hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import full_lengths, padding_mask, zero_padding
from speechssl.nn.variation import variation
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The decoder mirrors the kernels and strides of the feature encoder."""

    name: Literal["autoencoder"] = "autoencoder"
    dims: tuple[int, ...] = (512, 512, 512, 512, 512, 512)  # of the decoder's layers but the last, slowest rate first


class Decoder(nn.Module):
    """Transposed convolutions with GELU between them: (B, F, D) -> waveforms.

    Frame f gives the samples that it has seen, f * hop .. f * hop + receptive field - 1, and overlaps add, so F frames
    give exactly the samples that all of them saw together.
    """

    def __init__(self, dim: int, dims: Sequence[int], kernels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        widths = (dim, *dims, 1)
        self.layers = nn.ModuleList(
            nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, stride)
            for i, (kernel, stride) in enumerate(zip(reversed(kernels), reversed(strides), strict=True))
        )

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns waveforms (B, T') and their lengths (B,) in samples. Padding never reaches what lies before it."""
        x = hidden
        for i, layer in enumerate(cast(list[nn.ConvTranspose1d], list(self.layers))):
            x = zero_padding(x if i == 0 else F.gelu(x), lengths)
            x = layer(x.transpose(1, 2)).transpose(1, 2)
            if lengths is not None:
                kernel, stride = layer.kernel_size[0], layer.stride[0]
                lengths = torch.where(lengths > 0, (lengths - 1) * stride + kernel, 0)
        return x.squeeze(-1), lengths


class Autoencoder(Objective):
    Config = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, encoder: Encoder):
        super().__init__(config, encoder)
        features = encoder.feature_encoder
        if len(config.dims) != len(features.kernels) - 1:
            raise UserError(
                f"objective.dims names {len(config.dims)} layers of the decoder; its encoder has "
                f"{len(features.kernels)}, so name {len(features.kernels) - 1}."
            )
        self.decoder = Decoder(encoder.dim, config.dims, features.kernels, features.strides)

    def chance(self) -> dict[str, float]:
        """Silence: the error is the signal."""
        return {"snr_db": 0.0, "relative_error": 1.0}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if numbers.get("variation", 1.0) < 1e-4:
            return (
                "the encoder gives every frame the same vector, from which no waveform can be rebuilt; start again "
                "with a lower optim.lr or a longer optim.warmup"
            )
        return ""

    def forward(self, batch: Batch) -> LossOutput:
        """The sum over samples of the squared error.

        Samples behind the last frame's window, fewer than a hop, are not rebuilt and do not count.
        """
        output = self.encoder(batch.waveforms, batch.lengths_or_none)
        rebuilt, lengths = self.decoder(output.hidden, output.lengths)
        rebuilt = rebuilt.float()
        samples = full_lengths(rebuilt, lengths)  # (B,)
        outside = padding_mask(samples, rebuilt.shape[1])
        true = batch.waveforms[:, : rebuilt.shape[1]].float().masked_fill(outside, 0.0)
        error = (rebuilt.masked_fill(outside, 0.0) - true).square().sum(1)  # (B,)
        power = true.square().sum(1)
        heard = (power > 0).float()
        metrics = {
            "snr_db": Metric.mean((signal_to_noise(power, error) * heard).sum(), heard.sum()),
            "relative_error": Metric.mean(error.sum(), power.sum()),
            "variation": Metric.mean(*variation(output.hidden, output.lengths)),
        }
        return LossOutput(error.sum(), samples.sum().float(), metrics)


def signal_to_noise(power: Tensor, error: Tensor) -> Tensor:
    """Of two energies, in dB; 0 where the error is as loud as the signal. A perfect copy counts as 100 dB."""
    return 10 * torch.log10((power / error.clamp(min=1e-30)).clamp(min=1e-10, max=1e10))
