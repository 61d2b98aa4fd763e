"""Context networks by their configuration: (B, F, D) -> hidden (B, F, D) and layers.

Each has `dim`, `blocks`, and `forward(x, lengths, num_layers)`, where layers[0] enters the first block and layers[i]
leaves block i. Padding must not change the valid frames.
"""

from __future__ import annotations

from speechssl.nn.causal import CausalConvolution, CausalConvolutionConfig
from speechssl.nn.recurrent import Recurrent, RecurrentConfig
from speechssl.nn.sinusoidal import Sinusoidal, SinusoidalConfig
from speechssl.nn.transformer import Transformer, TransformerConfig

ContextConfig = TransformerConfig | RecurrentConfig | CausalConvolutionConfig | SinusoidalConfig


def build_context(config: ContextConfig, dim_in: int) -> Transformer | Recurrent | CausalConvolution | Sinusoidal:
    if isinstance(config, TransformerConfig):
        return Transformer(config, dim_in)
    if isinstance(config, CausalConvolutionConfig):
        return CausalConvolution(config, dim_in)
    if isinstance(config, SinusoidalConfig):
        return Sinusoidal(config, dim_in)
    return Recurrent(config, dim_in)


def is_causal(config: ContextConfig) -> bool:
    """Whether no frame of the context's output sees a frame that lies ahead of it."""
    return isinstance(config, RecurrentConfig | CausalConvolutionConfig) or getattr(config, "causal", False)
