"""The Transformer context. Shapes: B utterances, F frames, D channels, H heads, G groups, K taps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.lengths import padding_mask, zero_padding


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The context network of wav2vec 2.0; the defaults are its Base."""

    name: Literal["transformer"] = "transformer"
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    norm_first: bool = False
    position_kernel: int = 128  # frames that the positional convolution sees
    position_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layer_drop: float = 0.05

    def __post_init__(self):
        if self.dim % self.num_heads or self.dim % self.position_groups:
            raise ValueError("dim must be a multiple of num_heads and of position_groups")


class PositionalConvolution(nn.Module):
    """Relative positions by a grouped convolution with weight norm over its taps (wav2vec 2.0, section 2).

    The weight is direction `weight_v` (D, D/G, K) scaled to length `weight_g` (1, 1, K), as released models store it.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.groups, self.padding = groups, kernel // 2
        self.even = kernel % 2 == 0
        self.weight_v = nn.Parameter(torch.randn(dim, dim // groups, kernel) * (4.0 / (kernel * dim)) ** 0.5)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, D), zero on padding -> (B, F, D)."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.padding, groups=self.groups)
        if self.even:  # one frame too many at the end
            y = y[:, :, :-1]
        return F.gelu(y).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, dropout: float, causal: bool) -> Tensor:
    """Scaled dot-product attention (B, H, F, D/H) -> the same; keys: (B, 1, 1, F) bool, True = may be attended to."""
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropout, is_causal=causal)
    # In half precision on a CPU, two products and a softmax take a half to a third of the fused kernel's time.
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ value


class Attention(nn.Module):
    """Multi-head self-attention (B, F, D) -> (B, F, D)."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor | None, causal: bool = False) -> Tensor:
        """keys: (B, 1, 1, F) bool, True = may be attended to; None when nothing is padded (the fast path)."""
        batch, frames, dim = x.shape
        heads = self.qkv(x).view(batch, frames, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)  # each (B, H, F, D/H)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, keys, dropout, causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, frames, dim))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual; layer norm before (norm_first) or after."""

    def __init__(self, config: TransformerConfig, *, causal: bool = False):
        super().__init__()
        self.norm_first, self.causal = config.norm_first, causal
        self.attention = Attention(config.dim, config.num_heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.ffn_in = nn.Linear(config.dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, config.dim)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def _ffn(self, x: Tensor) -> Tensor:
        return self.dropout(self.ffn_out(self.activation_dropout(F.gelu(self.ffn_in(x)))))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), keys, self.causal))
            return x + self._ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self.dropout(self.attention(x, keys, self.causal)))
        return self.ffn_norm(x + self._ffn(x))


class Transformer(nn.Module):
    """Convolutional positions, then blocks; norm first or last."""

    def __init__(self, config: TransformerConfig, dim_in: int):
        super().__init__()
        if dim_in != config.dim:
            raise ValueError(f"a Transformer of dim {config.dim} cannot read {dim_in} channels; set encoder.project")
        self.config, self.dim = config, config.dim
        self.positions = PositionalConvolution(config.dim, config.position_kernel, config.position_groups)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as BERT and fairseq do
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, F, D) -> hidden (B, F, D) and layers: layers[0] enters the first block, layers[i] leaves block i.

        num_layers: stop after that many blocks; `hidden` is then what leaves the last one run.
        """
        x = zero_padding(x, lengths)
        keys = None if lengths is None else ~padding_mask(lengths, x.shape[1])[:, None, None]
        x = x + self.positions(x)
        if not self.config.norm_first:
            x = self.norm(x)
        x = self.dropout(x)
        layers = [x]
        for block in self.blocks[:num_layers]:
            x = self._drop(block, x) if self._drops() else block(x, keys)
            layers.append(x)
        if self.config.norm_first and len(layers) > len(self.blocks):
            x = self.norm(x)
        return x, layers

    def _drops(self) -> bool:
        # Python's generator is seeded by the step alone: every rank drops the same layers, and no device is asked.
        return self.training and self.config.layer_drop > 0 and random.random() < self.config.layer_drop

    @staticmethod
    def _drop(block: nn.Module, x: Tensor) -> Tensor:
        """A dropped layer (LayerDrop, Fan et al. 2020) whose parameters keep a zero gradient, which DDP waits for."""
        return x + sum(p.sum() * 0.0 for p in block.parameters() if p.requires_grad)
