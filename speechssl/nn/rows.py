"""Strided convolutions of sound that lies end to end in rows, piece by piece.

Shapes: R rows (time steps of all utterances, one behind the other), C channels in, D channels out, K taps, S stride.

A convolution of stride S is a matrix product on rows of S steps each, which are a view: no window is ever copied. The
taps beyond the first S reach into the next row and are a second product, added to all rows but the last. Every row has
an output, so a stack whose input is a multiple of its hop needs no trimming in between: what the last rows of an
utterance see of the next one lies behind its valid frames, and is cut off at the end.

A piece is so short that it stays in a CPU's cache from the activation to the product, and in the backward pass from the
activation that is made again to its gradient: memory is read and written once, not five times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 2**21  # numbers that go into the convolution of a piece
Activation = Callable[..., Tensor]  # (number of the utterance, rows of it, *parameters) -> activated rows


class Piece(NamedTuple):
    """Outputs `start` to `stop` of an utterance whose first is `first`."""

    utterance: int
    first: int
    start: int
    stop: int


def pieces(outputs: Sequence[int], size: int | None) -> list[Piece]:
    """Cuts utterances of so many outputs each into pieces of at most `size`; None: leaves them whole."""
    made, first = [], 0
    for utterance, count in enumerate(outputs):
        step = max(size or count, 1)
        made += [Piece(utterance, first, first + i, first + min(i + step, count)) for i in range(0, count, step)]
        first += count
    return made


class ConvolveRows(torch.autograd.Function):
    """convolve(activate(x)) of rows (R, C) -> (R / S, D), of which the backward pass keeps x alone.

    Norm and GELU cost little beside the convolution, and their outputs are two thirds of what a stack would keep.
    `activate` sees the rows of one piece; the pieces cover all outputs, in order. weight: (D, C, K).
    """

    @staticmethod
    def forward(
        ctx, activate: Activation, cut: list[Piece], stride: int, x: Tensor, weight: Tensor, bias: Tensor | None, *more
    ):
        ctx.activate, ctx.cut, ctx.stride = activate, cut, stride
        ctx.save_for_backward(x, weight, *more)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device)
        ctx.autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device), "dtype": dtype}
        ctx.dtype = dtype if ctx.autocast["enabled"] else weight.dtype
        taps, blocks = _by_tap(weight.to(ctx.dtype)), _blocks(weight, stride)
        bias = None if bias is None else bias.to(ctx.dtype)
        y = torch.empty(len(x) // stride, len(weight), dtype=ctx.dtype, device=x.device)
        for piece in cut:
            active = activate(piece.utterance, x[piece.start * stride : piece.stop * stride], *more)
            rows = active.to(ctx.dtype).view(piece.stop - piece.start, -1)
            for block, reached, outputs in _reach(piece, blocks, rows):
                if block.shift:
                    y[outputs].addmm_(reached, taps[block.taps])
                elif bias is None:
                    torch.mm(reached, taps[block.taps], out=y[outputs])
                else:
                    torch.addmm(bias, reached, taps[block.taps], out=y[outputs])
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, *parameters = ctx.saved_tensors
        stride, gradient = ctx.stride, gradient.contiguous()
        taps, blocks = _by_tap(weight.to(ctx.dtype)), _blocks(weight, stride)
        _, _, _, needs_x, needs_weight, needs_bias, *needs_more = ctx.needs_input_grad
        to_x = torch.empty_like(x) if needs_x and len(ctx.cut) != 1 else None  # one piece has its own
        to_taps = torch.zeros(taps.t().shape, dtype=weight.dtype, device=x.device) if needs_weight else None
        to_more = [torch.zeros_like(p) if need else None for p, need in zip(parameters, needs_more, strict=True)]
        for piece in ctx.cut:
            here = slice(piece.start * stride, piece.stop * stride)
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                inputs = [x[here].detach().requires_grad_(needs_x)]
                inputs += [p.detach().requires_grad_(need) for p, need in zip(parameters, needs_more, strict=True)]
                active = ctx.activate(piece.utterance, *inputs)
            rows = active.detach().to(ctx.dtype).view(piece.stop - piece.start, -1)
            to_rows = torch.zeros_like(rows) if weight.shape[2] < stride else torch.empty_like(rows)
            for block, reached, outputs in _reach(piece, blocks, rows):
                used, part = gradient[outputs], taps[block.taps]
                if to_taps is not None:
                    _add_product(to_taps[:, block.taps], used.t(), reached)
                to_reached = to_rows[len(rows) - len(reached) :, : len(part)]
                if block.shift:
                    to_reached.addmm_(used, part.t())
                else:
                    torch.mm(used, part.t(), out=to_reached)
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            if not wanted:
                continue
            made = iter(torch.autograd.grad(active, wanted, to_rows.view_as(active).to(active.dtype)))
            if needs_x and to_x is None:
                to_x = next(made)
            elif to_x is not None:
                to_x[here] = next(made)
            for total in to_more:
                if total is not None:
                    total += next(made)
        to_weight = None if to_taps is None else to_taps.unflatten(1, (weight.shape[2], -1)).transpose(1, 2)
        to_bias = gradient.sum(0, dtype=weight.dtype) if needs_bias else None
        return None, None, None, to_x, to_weight, to_bias, *to_more


class _Block(NamedTuple):
    """S taps (the last block: what is left) that see the row `shift` rows ahead; their entries in `_by_tap`."""

    shift: int
    taps: slice


def _blocks(weight: Tensor, stride: int) -> list[_Block]:
    _, channels, kernel = weight.shape
    starts = range(0, kernel, stride)
    return [_Block(i // stride, slice(i * channels, min(i + stride, kernel) * channels)) for i in starts]


def _by_tap(weight: Tensor) -> Tensor:
    """(D, C, K) -> (K * C, D): in the order of a row's steps and channels."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0])


def _reach(piece: Piece, blocks: list[_Block], rows: Tensor) -> Iterator[tuple[_Block, Tensor, slice]]:
    """For each block of taps, the part of a piece's rows that it reads, and the outputs that this adds to.

    The outputs are `shift` rows behind; those before the utterance's first are another's, or nobody's.
    """
    for block in blocks:
        skipped = max(piece.first + block.shift - piece.start, 0)
        if skipped < len(rows):
            outputs = slice(piece.start + skipped - block.shift, piece.stop - block.shift)
            yield block, rows[skipped:, : block.taps.stop - block.taps.start], outputs


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; a sum of many pieces is kept in single precision, whatever the products are in."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(R, 1) -> (R / S, K + 1): what each output of the first convolution sees, and a one for its bias.

    One channel: the windows are so short that copying them is cheap, and with ConvolveRows the convolution's
    output need never be kept.
    """
    seen = F.pad(x.squeeze(1), (0, max(0, kernel - stride))).unfold(0, kernel, stride)
    return F.pad(seen, (0, 1), value=1.0)


def normalized_taps(
    seen: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Taps (K + 1, D) that give group norm (a channel a group, over time) of a convolution, and the mean window (K).

    The mean over time of an output is that of the windows, and its variance a form of the windows' K x K covariance: so
    nothing of size R x D is made. In double precision, since a tap may answer to what is faint in the sound.

    Args:
        seen: (N, K), the windows of an utterance's valid outputs. Their mean must be taken from them before use.
        weight: (D, 1, K). A bias of the convolution would change nothing.
    """
    exact = seen if seen.device.type == "mps" else seen.double()
    mean = exact.sum(0) / max(len(exact), 1)
    centred = exact - mean
    taps = weight.squeeze(1).to(exact.dtype)
    variance = ((taps @ (centred.t() @ centred)) * taps).sum(1) / max(len(exact), 1)
    scale = norm_weight * torch.rsqrt(variance + eps).to(norm_weight.dtype)
    return torch.cat((weight.squeeze(1).t() * scale, norm_bias[None])), mean.to(seen.dtype)
