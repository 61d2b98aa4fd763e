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
    if x.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)):
        # In bf16, oneDNN as of torch 2.14 computes grouped convolutions wrongly on CPUs with AMX (8 or 12 channels a
        # group and 8 taps: off by as much as the output).
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            return F.conv1d(y.float(), weight.float(), bias, groups=groups).transpose(1, 2).to(x.dtype)
    return F.conv1d(y, weight, bias, groups=groups).transpose(1, 2)


def _by_spectra(y: Tensor, weight: Tensor, bias: Tensor | None, groups: int, frames: int) -> Tensor:
    """The same sum as a product of spectra: four to twenty times as fast as oneDNN's grouped convolution of 128 taps.

    y: (B, D, F + K - 1). Computed in float32.
    """
    with torch.autocast("cpu", enabled=False):
        out = _Correlation.apply(y.float(), weight.float(), groups, frames)
        return out if bias is None else out + bias.float()


class _Correlation(torch.autograd.Function):
    """y (B, D, F + K - 1), weight (D, D/G, K) -> (B, F, D), block by block (overlap-save, Stockham 1966).

    A block of N samples has N - K + 1 outputs. Twice the taps make a block: the taps' spectra, one for each pair of
    channels, are far more than the sound's, and need not be as long as it. N is a size that a Fourier transform likes.
    """

    @staticmethod
    def forward(ctx, y: Tensor, weight: Tensor, groups: int, frames: int) -> Tensor:
        kernel = weight.shape[-1]
        size = min(-(-2 * kernel // 64), -(-y.shape[-1] // 64)) * 64  # N
        step = size - kernel + 1
        count = max(1, -(-frames // step))
        ctx.shape, ctx.groups, ctx.size, ctx.step = y.shape, groups, size, step
        blocks = F.pad(y, (0, (count - 1) * step + size - y.shape[-1])).unfold(-1, size, step)  # (B, D, blocks, N)
        sound = _by_group(torch.fft.rfft(blocks), groups)
        taps = torch.fft.rfft(weight, n=size).view(groups, -1, *weight.shape[1:-1], size // 2 + 1)
        taps = taps.permute(0, 3, 2, 1).conj().resolve_conj()  # (G, N / 2 + 1, in, out)
        ctx.save_for_backward(sound, taps)
        mixed = _back(sound @ taps, y.shape[0], size)[..., :step]
        return mixed.flatten(2)[..., :frames].transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        sound, taps = ctx.saved_tensors
        (batch, dim, length), size, step = ctx.shape, ctx.size, ctx.step
        gradient = gradient.transpose(1, 2)  # (B, D, F)
        count = max(1, -(-gradient.shape[-1] // step))
        blocks = F.pad(gradient, (0, count * step - gradient.shape[-1])).view(batch, dim, count, step)
        wanted = _by_group(torch.fft.rfft(blocks, n=size), ctx.groups).conj().resolve_conj()
        to_y = to_weight = None
        if ctx.needs_input_grad[0]:
            pieces = _back((wanted @ taps.transpose(-1, -2)).conj(), batch, size)  # (B, D, blocks, N)
            to_y = gradient.new_zeros(batch, dim, (count - 1) * step + size)
            for i in range(count):
                to_y[..., i * step : i * step + size] += pieces[:, :, i]
            to_y = to_y[..., :length]
        if ctx.needs_input_grad[1]:
            spectra = (wanted.transpose(-1, -2) @ sound).permute(0, 2, 3, 1)  # (G, out, in, N / 2 + 1)
            to_weight = torch.fft.irfft(spectra, n=size)[..., : size - step + 1].flatten(0, 1)
        return to_y, to_weight, None, None


def _by_group(spectra: Tensor, groups: int) -> Tensor:
    """(B, D, blocks, frequencies) -> (G, frequencies, B * blocks, D / G)."""
    return spectra.unflatten(1, (groups, -1)).permute(1, 4, 0, 3, 2).flatten(2, 3)


def _back(spectra: Tensor, batch: int, size: int) -> Tensor:
    """(G, frequencies, B * blocks, D / G) -> sound (B, D, blocks, N)."""
    spectra = spectra.unflatten(2, (batch, -1)).permute(2, 0, 4, 3, 1).flatten(1, 2)
    return torch.fft.irfft(spectra, n=size)


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
