"""Where a frame is, for the Transformer: positional convolutions, and WavLM's relative bias of the attention scores.

Shapes: B utterances, F frames, D channels, H heads, G groups, K taps.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.lengths import zero_padding


class PositionalConvolution(nn.Module):
    """Relative positions by a grouped convolution with weight norm over its taps (wav2vec 2.0, section 2).

    The weight is direction `weight_v` (D, D/G, K) scaled to length `weight_g` (1, 1, K), as released models store it.
    """

    def __init__(self, dim: int, kernel: int, groups: int, *, causal: bool = False):
        super().__init__()
        self.groups, self.kernel, self.causal = groups, kernel, causal
        self.weight_v = nn.Parameter(torch.randn(dim, dim // groups, kernel) * (4.0 / (kernel * dim)) ** 0.5)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, D), zero on padding -> (B, F, D)."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        return F.gelu(same_convolution(x, weight, self.bias, self.groups, self.causal))


class PositionalStack(nn.Module):
    """Several short ones in a row, each convolution -> layer norm without weights -> GELU (data2vec, section 4.2)."""

    def __init__(self, dim: int, kernel: int, groups: int, num_layers: int, *, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, kernel, groups=groups) for _ in range(num_layers))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, D), zero on padding -> (B, F, D)."""
        for layer in cast(list[nn.Conv1d], list(self.layers)):
            y = same_convolution(zero_padding(x, lengths), layer.weight, layer.bias, layer.groups, self.causal)
            x = F.gelu(F.layer_norm(y, y.shape[-1:]))
        return x


def same_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, causal: bool) -> Tensor:
    """(B, F, D) -> (B, F, D): centred taps, or with `causal` only taps that lie behind. weight: (D, D/G, K)."""
    kernel, frames = weight.shape[-1], x.shape[1]
    behind = kernel - 1 if causal else kernel // 2
    y = F.pad(x.transpose(1, 2), (behind, kernel - 1 - behind))
    if x.device.type == "cpu" and kernel >= 32 and not torch.compiler.is_compiling():
        return _by_spectra(y, weight, bias, groups, frames).to(x.dtype)
    return F.conv1d(y, weight, bias, groups=groups).transpose(1, 2)


def _by_spectra(y: Tensor, weight: Tensor, bias: Tensor | None, groups: int, frames: int) -> Tensor:
    """The same sum as a product of spectra: four to twenty times as fast as oneDNN's grouped convolution of 128 taps.

    y: (B, D, F + K - 1). Computed in float32. Lengths are rounded up to ones that a Fourier transform likes.
    """
    batch, dim, size = y.shape
    size = -(-size // 64) * 64
    with torch.autocast("cpu", enabled=False):
        sound = torch.fft.rfft(y.float(), n=size).view(batch, groups, dim // groups, -1)
        taps = torch.fft.rfft(weight.float(), n=size).view(groups, dim // groups, dim // groups, -1)
        mixed = torch.einsum("bgif,goif->bgof", sound, taps.conj()).reshape(batch, dim, -1)
        out = torch.fft.irfft(mixed, n=size)[..., :frames].transpose(1, 2)
        return out if bias is None else out + bias.float()


class RelativePositions(nn.Module):
    """A learned number per head and bucket of distances (WavLM, section III-A; buckets as in T5, in both directions).

    Half of the buckets are for frames behind, half for those ahead; of each half, the first half holds one distance
    each, and the rest grows logarithmically up to `max_distance`, beyond which all share the last.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int):
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.embedding = nn.Embedding(num_buckets, num_heads)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def buckets(self, distances: Tensor) -> Tensor:
        """int64 distances (key minus query) -> buckets of the same shape."""
        half = self.num_buckets // 2
        exact = half // 2
        away = distances.abs()
        growth = torch.log(away.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + growth * (half - exact)).long().clamp(max=half - 1)
        return (distances > 0).long() * half + torch.where(away < exact, away, far)

    def forward(self, frames: int) -> Tensor:
        """The bias of every pair of frames, before gating: (H, F, F), [query, key]."""
        place = torch.arange(frames, device=self.embedding.weight.device)
        distances = torch.arange(1 - frames, frames, device=place.device)
        values = self.embedding(self.buckets(distances)).t()  # (H, 2 F - 1)
        return values[:, place - place[:, None] + frames - 1]


class PositionGate(nn.Module):
    """How much each frame and head listens to the relative bias, from the attention's input (WavLM, section III-A)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.linear = nn.Linear(dim // num_heads, 8)  # two gates, each the sum of four outputs
        self.scale = nn.Parameter(torch.ones(num_heads, 1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, F, D) and bias (H, F, F) -> gated bias (B, H, F, F)."""
        heads = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, F, D/H)
        update, reset = self.linear(heads).unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)  # each (B, H, F)
        gate = update * (reset * self.scale - 1.0) + 2.0
        return gate[..., None] * bias
