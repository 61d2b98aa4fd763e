"""The convolutional context of wav2vec. Shapes: B utterances, F frames, D channels, K taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.norms import utterance_norm


@dataclass(frozen=True, kw_only=True)
class CausalConvolutionConfig:
    """The context network of wav2vec large (Schneider et al. 2019, section 2.1): 12 layers, 810 ms together."""

    name: Literal["causal_convolution"] = "causal_convolution"
    dim: int = 512
    kernels: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)  # frames, one layer each
    skip_scale: float = 0.5  # a layer's output plus its input is multiplied by the root of this; keeps their variance
    dropout: float = 0.0

    def __post_init__(self):
        if not self.kernels or min(self.kernels) < 1:
            raise ValueError("kernels must name at least one layer, each 1 frame or more")


class CausalBlock(nn.Module):
    """A convolution over this frame and the K - 1 before it, norm, ReLU, and a skip connection around them.

    The first frame is repeated before the utterance, as in wav2vec's implementation. The norm has one group over
    channels and time: its two statistics, taken over valid frames only, see the whole utterance, and nothing else does.
    """

    def __init__(self, dim_in: int, dim: int, kernel: int, *, skip_scale: float, dropout: float):
        super().__init__()
        self.kernel, self.scale = kernel, skip_scale**0.5
        self.convolution = nn.Conv1d(dim_in, dim, kernel)
        self.dropout = nn.Dropout(dropout)
        self.norm_weight = nn.Parameter(torch.ones(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        self.skip = nn.Identity() if dim_in == dim else nn.Linear(dim_in, dim, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, D_in) -> (B, F, D)."""
        before = x[:, :1].expand(-1, self.kernel - 1, -1)
        y = self.convolution(torch.cat((before, x), 1).transpose(1, 2)).transpose(1, 2)
        y = F.relu(utterance_norm(self.dropout(y), lengths, self.norm_weight, self.norm_bias))
        return (y + self.skip(x)) * self.scale


class CausalConvolution(nn.Module):
    """Causal blocks, one per kernel. Padding lies behind an utterance, so it cannot change the valid frames."""

    def __init__(self, config: CausalConvolutionConfig, dim_in: int):
        super().__init__()
        self.config, self.dim = config, config.dim
        inputs = [dim_in] + [config.dim] * (len(config.kernels) - 1)
        self.blocks = nn.ModuleList(
            CausalBlock(size, config.dim, kernel, skip_scale=config.skip_scale, dropout=config.dropout)
            for size, kernel in zip(inputs, config.kernels, strict=True)
        )

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Transformer.forward`."""
        layers = [x]
        for block in self.blocks[:num_layers]:
            x = block(x, lengths)
            layers.append(x)
        return x, layers
