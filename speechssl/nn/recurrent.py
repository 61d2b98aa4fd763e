"""The recurrent context. Shapes: B utterances, F frames, D channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A causal context: stacked GRU or LSTM (CPC, van den Oord et al. 2018)."""

    name: Literal["recurrent"] = "recurrent"
    kind: Literal["gru", "lstm"] = "gru"
    dim: int = 256
    num_layers: int = 1
    dropout: float = 0.0


class Recurrent(nn.Module):
    """Causal context. Padding lies behind an utterance, so it cannot change the valid frames."""

    def __init__(self, config: RecurrentConfig, dim_in: int):
        super().__init__()
        self.config, self.dim = config, config.dim if config.num_layers else dim_in
        kind = nn.GRU if config.kind == "gru" else nn.LSTM
        inputs = ([dim_in] + [config.dim] * config.num_layers)[: config.num_layers]
        self.blocks = nn.ModuleList(kind(size, config.dim, batch_first=True) for size in inputs)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Transformer.forward`."""
        layers = [x]
        for block in self.blocks[:num_layers]:
            x = block(self.dropout(x))[0]
            layers.append(x)
        return x, layers
