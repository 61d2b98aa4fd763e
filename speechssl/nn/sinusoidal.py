"""A Transformer that knows each frame's place. Shapes: B utterances, F frames, D channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.nn.lengths import padding_mask
from speechssl.nn.transformer import Block, TransformerConfig, run_blocks


@dataclass(frozen=True, kw_only=True)
class SinusoidalConfig:
    """Transformer blocks over fixed positions, of the size of ViT-Base (Audio-MAE, Huang et al. 2022)."""

    name: Literal["sinusoidal"] = "sinusoidal"
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    norm_first: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layer_drop: float = 0.0
    checkpoint_every: int = 0  # as a Transformer's

    def __post_init__(self):
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError("dim must be even and a multiple of num_heads")


def sinusoids(places: Tensor, dim: int) -> Tensor:
    """(B, F) places -> (B, F, D) float32: sines, then cosines, of D / 2 wavelengths from 2 pi to 10,000 * 2 pi.

    Vaswani et al. 2017, section 3.5, with the sines and cosines side by side instead of interleaved.
    """
    steps = torch.arange(dim // 2, device=places.device) * (-2 * math.log(10_000) / dim)
    angles = places[..., None] * steps.exp()
    return torch.cat((angles.sin(), angles.cos()), -1)


class Sinusoidal(nn.Module):
    """Fixed sinusoidal positions, then blocks.

    A frame's position does not depend on its neighbours, as it does where positions come from a convolution: so frames
    may be left out, and the rest keep their places (masked autoencoders).
    """

    def __init__(self, config: SinusoidalConfig, dim_in: int):
        super().__init__()
        if dim_in != config.dim:
            raise ValueError(f"a Transformer of dim {config.dim} cannot read {dim_in} channels; set encoder.project")
        self.config, self.dim = config, config.dim
        shared = {k: v for k, v in vars(config).items() if k != "name"}
        block = TransformerConfig(**shared, position_groups=1)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.num_layers))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as ViT and masked autoencoders do
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        num_layers: int | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Transformer.forward`; places: (B, F), which frame of the utterance each is, if some were left out."""
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        # An utterance of no frames attends to one of its padding: a softmax over nothing would be NaN.
        keys = None if lengths is None else ~padding_mask(lengths.clamp(min=1), x.shape[1])[:, None, None]
        x = x + sinusoids(places, self.dim).to(x.dtype)
        x = self.dropout(x if self.config.norm_first else self.norm(x))
        layers = run_blocks(self, x, num_layers, keys)
        x = layers[-1]
        if self.config.norm_first and len(layers) > len(self.blocks):
            x = self.norm(x)
        return x, layers
