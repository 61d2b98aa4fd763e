"""The Transformer context. Shapes: B utterances, F frames, D channels, H heads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.nn.attention import attend
from speechssl.nn.dropout import Dropout
from speechssl.nn.exporting import exporting
from speechssl.nn.lengths import padding_mask, zero_padding
from speechssl.nn.positions import PositionalConvolution, PositionalStack, PositionGate, RelativePositions
from speechssl.nn.rows import ConvolveRows, pieces


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The context network of wav2vec 2.0; the defaults are its Base."""

    name: Literal["transformer"] = "transformer"
    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    norm_first: bool = False
    position_kernel: int = 128  # frames that a positional convolution sees
    position_groups: int = 16
    position_layers: int = 1  # positional convolutions in a row; more than one: data2vec's, with norms between them
    relative_buckets: int = 0  # of the gated relative position bias (WavLM: 320); 0: none
    relative_distance: int = 800  # frames, from which on all share a bucket
    causal: bool = False  # a frame sees none that lie ahead
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layer_drop: float = 0.05
    checkpoint_every: int = 0  # only what enters every so many blocks is kept for the backward pass; 0: everything

    def __post_init__(self):
        if self.checkpoint_every < 0:
            raise ValueError("checkpoint_every must be 0 or more")
        if self.dim % self.num_heads or self.dim % self.position_groups:
            raise ValueError("dim must be a multiple of num_heads and of position_groups")
        if self.position_layers < 1:
            raise ValueError("position_layers must be 1 or more")
        if self.relative_buckets and not 4 <= self.relative_buckets < 4 * self.relative_distance:
            raise ValueError("relative_buckets must be 0, or from 4 to less than four times relative_distance")


class Attention(nn.Module):
    """Multi-head self-attention (B, F, D) -> (B, F, D)."""

    def __init__(self, dim: int, num_heads: int, dropout: float, *, gated: bool = False):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        if gated:
            self.position_gate = PositionGate(dim, num_heads)

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None,
        causal: bool = False,
        positions: Tensor | None = None,
        packed: list[int] | None = None,
    ) -> Tensor:
        """keys: (B, 1, 1, F) bool, True = may be attended to; None when nothing is padded (the fast path).

        positions: (H, F, F), the relative bias before gating, or None.
        packed: x is (1, N, D), and these are the lengths of the utterances in it, each of which sees itself alone.
        """
        heads = self.qkv(x)  # (B, F, 3 D)
        if packed is None:
            return self.out(self._mix(x, heads, keys, causal, positions))
        own = [None if positions is None else positions[:, :n, :n] for n in packed]
        parts = zip(x.split(packed, 1), heads.split(packed, 1), own, strict=True)
        mixed = [self._mix(x, heads, None, causal, positions) for x, heads, positions in parts]
        return self.out(torch.cat(mixed, 1))

    def _mix(self, x: Tensor, heads: Tensor, keys, causal: bool, positions: Tensor | None) -> Tensor:
        batch, frames, dim = x.shape
        heads = heads.view(batch, frames, 3, self.num_heads, dim // self.num_heads)
        bias = None if positions is None else self.position_gate(x, positions)
        return attend(heads, keys, self.dropout if self.training else 0.0, causal, bias)


class GeluLinear(nn.Linear):
    """Linear map of a GELU: (..., dim_in) before the GELU -> (..., dim_out). dropout: of what the GELU gives.

    On a CPU the GELU is made again in the backward pass: its output is the widest tensor of a block.
    """

    def __init__(self, dim_in: int, dim_out: int, dropout: float):
        super().__init__(dim_in, dim_out)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        drops = self.training and self.dropout.p > 0
        if x.device.type != "cpu" or drops or torch.compiler.is_compiling() or exporting():
            return super().forward(self.dropout(F.gelu(x)))
        rows = x.flatten(0, -2)  # a convolution of one tap
        cut = pieces([len(rows)], None)
        out = ConvolveRows.apply(lambda _, rows: F.gelu(rows), cut, 1, rows, self.weight.unsqueeze(2), self.bias)
        return out.view(*x.shape[:-1], -1)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual; layer norm before (norm_first) or after."""

    def __init__(self, config: TransformerConfig, *, causal: bool = False):
        super().__init__()
        self.norm_first, self.causal = config.norm_first, causal
        gated = config.relative_buckets > 0
        self.attention = Attention(config.dim, config.num_heads, config.attention_dropout, gated=gated)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.ffn_in = nn.Linear(config.dim, config.ffn_dim)
        self.ffn_out = GeluLinear(config.ffn_dim, config.dim, config.activation_dropout)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def _ffn(self, x: Tensor) -> Tensor:
        return self.dropout(self.ffn_out(self.ffn_in(x)))

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        positions: Tensor | None = None,
        packed: list[int] | None = None,
    ) -> Tensor:
        """keys, positions, packed: as `Attention.forward`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), keys, self.causal, positions, packed))
            return x + self._ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self.dropout(self.attention(x, keys, self.causal, positions, packed)))
        return self.ffn_norm(x + self._ffn(x))


class Transformer(nn.Module):
    """Convolutional positions (and a relative bias, computed once and gated in every block), then blocks."""

    def __init__(self, config: TransformerConfig, dim_in: int):
        super().__init__()
        if dim_in != config.dim:
            raise ValueError(f"a Transformer of dim {config.dim} cannot read {dim_in} channels; set encoder.project")
        self.config, self.dim = config, config.dim
        sizes = (config.dim, config.position_kernel, config.position_groups)
        self.positions = (
            PositionalConvolution(*sizes, causal=config.causal)
            if config.position_layers == 1
            else PositionalStack(*sizes, config.position_layers, causal=config.causal)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, causal=config.causal) for _ in range(config.num_layers))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as BERT and fairseq do
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.relative = (
            RelativePositions(config.num_heads, config.relative_buckets, config.relative_distance)
            if config.relative_buckets
            else None
        )

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, F, D) -> hidden (B, F, D) and layers: layers[0] enters the first block, layers[i] leaves block i.

        num_layers: stop after that many blocks; `hidden` is then what leaves the last one run.
        """
        x = zero_padding(x, lengths)
        x = x + self.positions(x, lengths)
        if not self.config.norm_first:
            x = self.norm(x)
        keys, packed, size = None, None, x.shape[1]
        if lengths is not None and x.device.type == "cpu" and not exporting():  # end to end: nothing on padding
            packed = lengths.tolist()
            x = torch.cat([row[:n] for row, n in zip(x, packed, strict=True)])[None]  # (1, N, D)
        elif lengths is not None and not self.config.causal:  # no causal frame looks at the padding behind it
            # An utterance of no frames attends to one of its padding: a softmax over nothing would be NaN.
            keys = ~padding_mask(lengths.clamp(min=1), size)[:, None, None]
        relative = None if self.relative is None else self.relative(size)
        x = self.dropout(x)
        layers = run_blocks(self, x, num_layers, keys, relative, packed)
        x = layers[-1]
        if self.config.norm_first and len(layers) > len(self.blocks):
            x = self.norm(x)
        if packed is not None:
            x, *layers = (unpack_frames(frames[0], packed, size) for frames in (x, *layers))
        return x, layers


def unpack_frames(frames: Tensor, lengths: list[int], size: int) -> Tensor:
    """(N, D) -> (B, size, D), zero behind each utterance's end."""
    return torch.stack([F.pad(part, (0, 0, 0, size - len(part))) for part in frames.split(lengths)])


def run_blocks(network, x: Tensor, num_layers: int | None, *args) -> list[Tensor]:
    """What enters the first of the network's blocks, and what leaves each of the first `num_layers` (None: all).

    args: `keys`, `positions`, `packed` of `Block.forward`. With `checkpoint_every` N in the network's config, N blocks
    after another keep nothing but what enters them, and run again in the backward pass, with the same dropout.
    """
    layers, blocks, config = [x], list(network.blocks[:num_layers]), network.config
    every = config.checkpoint_every if torch.is_grad_enabled() else 0
    for start in range(0, len(blocks), every or len(blocks) or 1):
        some = blocks[start : start + every] if every else blocks
        left_out = [drops(network, config.layer_drop) for _ in some]  # once: Python's generator is not put back
        if every:
            layers += checkpoint(_run, some, left_out, layers[-1], *args, use_reentrant=False)
        else:
            layers += _run(some, left_out, x, *args)
    return layers


def _run(blocks: list[nn.Module], left_out: list[bool], x: Tensor, keys=None, positions=None, packed=None):
    made = []
    for block, skipped in zip(blocks, left_out, strict=True):
        x = drop_block(block, x, positions) if skipped else block(x, keys, positions, packed)
        made.append(x)
    return made


def drops(network: nn.Module, share: float) -> bool:
    """Whether a training network leaves out its next block (LayerDrop, Fan et al. 2020)."""
    # Python's generator is seeded by the step alone: every rank drops the same layers, and no device is asked.
    return network.training and share > 0 and random.random() < share


def drop_block(block: nn.Module, x: Tensor, relative: Tensor | None = None) -> Tensor:
    """x, past a block that is left out, whose parameters keep a zero gradient, which DDP waits for."""
    unused = [p for p in block.parameters() if p.requires_grad] + ([] if relative is None else [relative])
    return x + sum(p.sum() * 0.0 for p in unused)
