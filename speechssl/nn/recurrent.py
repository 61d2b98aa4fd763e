"""The recurrent context. Shapes: B utterances, F frames, D channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from speechssl.nn.quantize import GumbelQuantizer
from speechssl.nn.steps import recurrent


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A causal context: stacked GRU or LSTM (CPC, van den Oord et al. 2018; APC, Chung et al. 2019)."""

    name: Literal["recurrent"] = "recurrent"
    kind: Literal["gru", "lstm"] = "gru"
    dim: int = 256
    num_layers: int = 1
    dropout: float = 0.0  # of what leaves each layer but the last
    residual: bool = False  # a layer's input is added to its output where they are equally wide (APC)
    quantize_after: int = 0  # a quantizer behind this layer, counted from 1 (VQ-APC, Chung et al. 2020); 0: none
    num_codebooks: int = 1  # of the quantizer, and so on
    codebook_size: int = 512
    quantizer_temperature: float = 0.5

    def __post_init__(self):
        if not 0 <= self.quantize_after <= self.num_layers:
            raise ValueError(f"quantize_after must be 0 or a layer, 1 to {self.num_layers}")
        if self.quantize_after and self.dim % self.num_codebooks:
            raise ValueError("dim must be a multiple of num_codebooks")


class Recurrent(nn.Module):
    """Causal context. Padding lies behind an utterance, so it cannot change the valid frames.

    A quantizer sits between two layers, or behind the last: `layers` hold what a layer itself gives; the next layer, or
    `hidden` behind the last, gets the vector of its code alone.
    """

    def __init__(self, config: RecurrentConfig, dim_in: int):
        super().__init__()
        self.config, self.dim = config, config.dim if config.num_layers else dim_in
        kind = nn.GRU if config.kind == "gru" else nn.LSTM
        inputs = ([dim_in] + [config.dim] * config.num_layers)[: config.num_layers]
        self.blocks = nn.ModuleList(kind(size, config.dim, batch_first=True) for size in inputs)
        self.dropout = nn.Dropout(config.dropout)
        self.quantizer: GumbelQuantizer | None = None
        if config.quantize_after:
            self.quantizer = GumbelQuantizer(
                config.dim,
                num_codebooks=config.num_codebooks,
                codebook_size=config.codebook_size,
                code_dim=config.dim,
            )
            self.quantizer.temperature = config.quantizer_temperature

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Transformer.forward`."""
        layers = [x]
        for number, block in enumerate(self.blocks[:num_layers]):
            x = self._quantized(x, number)
            y = recurrent(cast(nn.GRU | nn.LSTM, block), x)
            if number + 1 < len(self.blocks):
                y = self.dropout(y)
            x = x + y if self.config.residual and x.shape == y.shape else y
            layers.append(x)
        if len(layers) > len(self.blocks):
            x = self._quantized(x, len(self.blocks))
        return x, layers

    def _quantized(self, x: Tensor, number: int) -> Tensor:
        """What leaves layer `number` as the next one sees it: (B, F, D) -> (B, F, D)."""
        if self.quantizer is None or number != self.config.quantize_after:
            return x
        return self.quantizer(x.flatten(0, 1)).vectors.view_as(x)
