"""Context networks by their configuration: (B, F, D) -> hidden (B, F, D) and layers.

Each has `dim`, `blocks`, and `forward(x, lengths, num_layers)`, where layers[0] enters the first block and layers[i]
leaves block i. Padding must not change the valid frames.
"""

from __future__ import annotations

from speechssl.nn.recurrent import Recurrent, RecurrentConfig
from speechssl.nn.transformer import Transformer, TransformerConfig

ContextConfig = TransformerConfig | RecurrentConfig


def build_context(config: ContextConfig, dim_in: int) -> Transformer | Recurrent:
    return Transformer(config, dim_in) if isinstance(config, TransformerConfig) else Recurrent(config, dim_in)
