"""A stack of unpadded convolutions with norms. Shapes: B utterances, T steps, F frames, R rows (packed), C channels.

Channels last throughout: normalisation over channels is contiguous, and products and convolutions are fast. Where
utterances are of unequal length they run end to end (`packing`), so nothing is computed on padding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.convolve import ActivateThenConvolve, convolve
from speechssl.nn.exporting import exporting
from speechssl.nn.lengths import conv_lengths, zero_padding
from speechssl.nn.norms import channel_norm, packed_norm, utterance_norm
from speechssl.nn.packing import Packing, pack, unpack


class ConvLayer(nn.Module):
    """Convolution, then normalisation and activation: (B, T, C_in) -> (B, T', C_out), or rows -> rows."""

    def __init__(self, dim_in: int, dim: int, kernel: int, stride: int, *, bias: bool, norm: str, activation: str):
        super().__init__()
        self.kernel, self.stride, self.norm = kernel, stride, norm
        self.activation = F.gelu if activation == "gelu" else F.relu
        self.weight = nn.Parameter(torch.empty(dim, dim_in, kernel))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.kaiming_normal_(self.weight)
        if norm != "none":
            self.norm_weight = nn.Parameter(torch.ones(dim))
            self.norm_bias = nn.Parameter(torch.zeros(dim))

    def norm_parameters(self) -> tuple[Tensor, ...]:
        return () if self.norm == "none" else (self.norm_weight, self.norm_bias)

    def activate(self, packing: Packing | None, lengths: Tensor | None = None):
        """Normalisation and activation as a function of what the convolution gave and of `norm_parameters`.

        packing: of rows; lengths: of padded utterances.
        """

        def function(x: Tensor, *parameters: Any) -> Tensor:
            if self.norm == "layer":
                x = F.layer_norm(x, x.shape[-1:], *parameters)
            elif self.norm != "none" and packing is not None:
                x = packed_norm(x, packing, *parameters, kind=self.norm)
            elif self.norm != "none":
                x = (channel_norm if self.norm == "group" else utterance_norm)(x, lengths, *parameters)
            return self.activation(x)

        return function


class ConvStack(nn.Module):
    """Unpadded convolutions: (B, T, C_in) -> (B, F, C).

    norm: group: first layer only, per channel over time; layer: each, over channels; utterance: each, over channels and
    time; none.
    """

    def __init__(self, dim_in, dims, kernels, strides, *, bias: bool, norm: str, activation: str = "gelu"):
        super().__init__()
        self.kernels, self.strides, self.hop = tuple(kernels), tuple(strides), math.prod(strides)
        inputs = (dim_in, *dims)[: len(dims)]
        norms = [norm if norm != "group" or i == 0 else "none" for i in range(len(dims))]
        self.layers = nn.ModuleList(
            ConvLayer(c_in, c_out, k, s, bias=bias, norm=n, activation=activation)
            for c_in, c_out, k, s, n in zip(inputs, dims, kernels, strides, norms, strict=True)
        )

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns latents, zero behind an utterance's end, and their lengths (B,), or None when nothing is padded."""
        if not self.layers:
            return x, lengths
        if exporting():
            return self._padded(x, lengths)
        if lengths is not None or _products_are_faster(x):
            return self._on_rows(x, lengths)
        return self._run(x, None), None

    @torch.compiler.disable  # one graph per set of lengths would be made, and thrown away
    def _on_rows(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, packing = pack(x, lengths, self.hop)
        rows = self._run(rows, packing)
        for layer in self._layers():
            packing = packing.convolved(layer.kernel, layer.stride)
        latents = unpack(rows, packing, conv_lengths(x.shape[1], self.kernels, self.strides))
        return latents, None if lengths is None else conv_lengths(lengths, self.kernels, self.strides)

    def _padded(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The plain way, step by step: a graph that is right for any lengths, which other programs can run."""
        for layer in self._layers():
            x = F.conv1d(x.transpose(1, 2), layer.weight, layer.bias, layer.stride).transpose(1, 2)
            lengths = None if lengths is None else conv_lengths(lengths, (layer.kernel,), (layer.stride,))
            x = layer.activate(None, lengths)(x, *layer.norm_parameters())
        return zero_padding(x, lengths), lengths

    def _layers(self) -> list[ConvLayer]:
        return cast(list[ConvLayer], list(self.layers))

    def _run(self, x: Tensor, packing: Packing | None) -> Tensor:
        layers = self._layers()
        first, last = layers[0], layers[-1]
        x = convolve(x, first.weight, first.bias, first.stride)
        for before, layer in itertools.pairwise(layers):
            packing = packing and packing.convolved(before.kernel, before.stride)
            activate, parameters = before.activate(packing), before.norm_parameters()
            if torch.compiler.is_compiling():  # the compiler chooses itself what to keep
                x = convolve(activate(x, *parameters), layer.weight, layer.bias, layer.stride)
            else:
                x = ActivateThenConvolve.apply(activate, layer.stride, x, layer.weight, layer.bias, *parameters)
        packing = packing and packing.convolved(last.kernel, last.stride)
        return last.activate(packing)(x, *last.norm_parameters())


def _products_are_faster(x: Tensor) -> bool:
    """On a CPU in single precision: oneDNN's backward convolution takes two to three times as long there."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
