"""A stack of unpadded convolutions with norms. Shapes: B utterances, T steps, F frames, R rows (packed), C channels.

Channels last throughout: normalisation over channels is contiguous, and products and convolutions are fast. Where
utterances are of unequal length they run end to end (`packing`), so nothing is computed on padding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.convolve import ActivateThenConvolve, convolve
from speechssl.nn.exporting import exporting
from speechssl.nn.lengths import conv_lengths, zero_padding
from speechssl.nn.norms import channel_norm, utterance_norm
from speechssl.nn.packing import Packing, pack, unpack
from speechssl.nn.rows import PIECE, Activation, ConvolveRows, normalized_taps, pieces, windows


class RowActivation(NamedTuple):
    """What comes between two convolutions, as a function of (number of the utterance, rows of it, *parameters).

    apart: it differs between utterances; whole: it must see all of an utterance's rows at once.
    """

    function: Activation
    parameters: tuple[Tensor, ...]
    apart: bool = False
    whole: bool = False

    def then_convolve(self, rows: Tensor, layer: ConvLayer, packing: Packing) -> Tensor:
        """packing: of the output."""
        outputs = packing.rows if self.apart else [sum(packing.rows)]
        size = None
        if rows.device.type == "cpu" and not self.whole:  # elsewhere a launch costs more than the memory's traffic
            size = PIECE // (layer.weight.shape[1] * layer.stride)
        cut = pieces(outputs, size)
        return ConvolveRows.apply(self.function, cut, layer.stride, rows, layer.weight, layer.bias, *self.parameters)


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

    def activate(self, x: Tensor, *parameters: Any, lengths: Tensor | None = None) -> Tensor:
        """Norm and activation of what the convolution gave, (B, T, C) or, unless the norm is over time, rows (R, C).

        parameters: `norm_parameters`, or stand-ins of theirs.
        """
        if self.norm == "layer":
            x = F.layer_norm(x, x.shape[-1:], *parameters)
        elif self.norm != "none":
            x = (channel_norm if self.norm == "group" else utterance_norm)(x, lengths, *parameters)
        return self.activation(x)

    def on_rows(self, packing: Packing) -> RowActivation:
        """`activate` for pieces of the rows that the convolution gave."""
        if self.norm in ("none", "layer"):
            return RowActivation(lambda _, rows, *more: self.activate(rows, *more), self.norm_parameters())
        return RowActivation(self._over_time(packing), self.norm_parameters(), apart=True, whole=True)

    def convolved_on_rows(self, x: Tensor, packing: Packing) -> tuple[Tensor, RowActivation]:
        """Of the waveform (R, 1): what stands for the convolution's output, and its `activate`, convolution included.

        packing: of the output. The output itself, the largest tensor of the stack, is made piece by piece, twice.
        """
        seen = windows(x, self.kernel, self.stride)
        offset = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        if self.norm == "group":
            parts, taps = [], []
            for part, valid in zip(seen.split(packing.rows), packing.valid, strict=True):
                # The norm takes the bias away; times zero, it has the gradient that DDP waits for.
                made, mean = normalized_taps(
                    part[:valid, :-1], self.weight, self.norm_weight, self.norm_bias + 0.0 * offset
                )
                parts.append(part - F.pad(mean, (0, 1)))
                taps.append(made)

            def normalized(utterance: int, rows: Tensor, taps: Tensor) -> Tensor:
                return self.activation(rows @ taps[utterance])

            return torch.cat(parts), RowActivation(normalized, (torch.stack(taps),), apart=True)
        activation = self.on_rows(packing)
        shared = torch.cat((self.weight.squeeze(1).t(), offset[None]))

        def convolved(utterance: int, rows: Tensor, taps: Tensor, *more: Tensor) -> Tensor:
            return activation.function(utterance, rows @ taps, *more)

        return seen, activation._replace(function=convolved, parameters=(shared, *activation.parameters))

    def _over_time(self, packing: Packing):
        def function(utterance: int, rows: Tensor, *parameters: Tensor) -> Tensor:
            lengths = torch.tensor([packing.valid[utterance]], device=rows.device)
            return self.activate(rows[None], *parameters, lengths=lengths)[0]

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
        if lengths is not None or (x.device.type == "cpu" and not torch.compiler.is_compiling()):
            return self._on_rows(x, lengths)
        return self._whole(x), None

    @torch.compiler.disable  # one graph per set of lengths would be made, and thrown away
    def _on_rows(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, packing = pack(x, lengths, self.hop)
        first, *others = self._layers()
        packing = packing.convolved(first.kernel, first.stride)
        if x.shape[2] == 1:
            rows, activation = first.convolved_on_rows(rows, packing)
        else:
            as_it_is = RowActivation(lambda _, rows: rows, ())
            rows = as_it_is.then_convolve(rows, first, packing)
            activation = first.on_rows(packing)
        for layer in others:
            packing = packing.convolved(layer.kernel, layer.stride)
            rows = activation.then_convolve(rows, layer, packing)
            activation = layer.on_rows(packing)
        parts = rows.split(packing.rows) if activation.apart else [rows]
        rows = torch.cat([activation.function(i, part, *activation.parameters) for i, part in enumerate(parts)])
        latents = unpack(rows, packing, conv_lengths(x.shape[1], self.kernels, self.strides))
        return latents, None if lengths is None else conv_lengths(lengths, self.kernels, self.strides)

    def _padded(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The plain way, step by step: a graph that is right for any lengths, which other programs can run."""
        for layer in self._layers():
            x = F.conv1d(x.transpose(1, 2), layer.weight, layer.bias, layer.stride).transpose(1, 2)
            lengths = None if lengths is None else conv_lengths(lengths, (layer.kernel,), (layer.stride,))
            x = layer.activate(x, *layer.norm_parameters(), lengths=lengths)
        return zero_padding(x, lengths), lengths

    def _layers(self) -> list[ConvLayer]:
        return cast(list[ConvLayer], list(self.layers))

    def _whole(self, x: Tensor) -> Tensor:
        """A batch without padding, where convolutions like batches."""
        layers = self._layers()
        first, last = layers[0], layers[-1]
        x = convolve(x, first.weight, first.bias, first.stride)
        for before, layer in itertools.pairwise(layers):
            parameters = before.norm_parameters()
            if torch.compiler.is_compiling():  # the compiler chooses itself what to keep
                x = convolve(before.activate(x, *parameters), layer.weight, layer.bias, layer.stride)
            else:
                x = ActivateThenConvolve.apply(before.activate, layer.stride, x, layer.weight, layer.bias, *parameters)
        return last.activate(x, *last.norm_parameters())
