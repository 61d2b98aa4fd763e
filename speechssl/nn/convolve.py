"""Strided convolutions over channels-last sound, as matrix products on rows where that is faster.

Shapes: R rows (time steps of all utterances, one behind the other), C channels in, D channels out, K taps, S stride.

A convolution of stride S is a matrix product on rows of S steps each, which are a view: no window is ever copied. The
taps beyond the first S reach into the next row and are a second product, added to all rows but the last. Every row has
an output, so a stack whose input is a multiple of its hop needs no trimming in between: what the last rows of an
utterance see of the next one lies behind its valid frames, and is cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class ActivateThenConvolve(torch.autograd.Function):
    """convolve(activate(x)), of which the backward pass keeps x alone and makes the activation again.

    Norm and GELU cost little beside the convolution, and their outputs are two thirds of what a stack would keep.
    """

    @staticmethod
    def forward(ctx, activate: Callable, stride: int, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters):
        ctx.activate, ctx.stride, ctx.has_bias = activate, stride, bias is not None
        ctx.save_for_backward(x, weight, *parameters)
        device = x.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        return convolve(activate(x, *parameters), weight, bias, stride)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, *parameters = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, *parameters)]
            active = ctx.activate(*inputs)
        to_active, to_weight = convolve_backward(gradient, active.detach(), weight, ctx.stride)
        to_inputs = torch.autograd.grad(active, inputs, to_active.to(active.dtype))
        to_bias = gradient.flatten(0, -2).sum(0).to(weight.dtype) if ctx.has_bias else None
        return None, None, to_inputs[0], to_weight.to(weight.dtype), to_bias, *to_inputs[1:]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Unpadded for (B, T, C) -> (B, T', D); one output for every S rows of (R, C), R a multiple of S -> (R / S, D).

    weight: (D, C, K). Runs in the precision of autocast, where that is on.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if x.shape[-1] == 1:  # one channel: the windows are so short that copying them is cheap
        taps = weight.squeeze(1)
        x = x.squeeze(-1)
        if x.dim() == 1:
            x = F.pad(x, (0, max(0, taps.shape[1] - stride)))
        y = _FewTaps.apply(x.unfold(-1, taps.shape[1], stride), taps)
        return y if bias is None else y + bias
    if x.dim() == 3:
        image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), physically channels last
        y = F.conv2d(image, weight.unsqueeze(2), bias, stride=(1, stride))
        return y.squeeze(2).transpose(1, 2)
    rows = x.view(-1, stride * x.shape[1])  # (R / S, S * C)
    taps = _by_tap(weight)
    y = None
    for shift, start, stop in _blocks(weight, stride):
        part, reached = taps[start:stop], rows[shift:, : stop - start]
        if y is None:
            y = reached @ part if bias is None else torch.addmm(bias, reached, part)
        else:
            y[: len(reached)].addmm_(reached, part)
    assert y is not None
    return y


def convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Gradients of `convolve` with respect to x and weight, in the precision of `gradient`."""
    x, weight = x.to(gradient.dtype), weight.to(gradient.dtype)
    if x.dim() == 3:
        image, flat = x.transpose(1, 2).unsqueeze(2), gradient.transpose(1, 2).unsqueeze(2)
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            flat, image, weight.unsqueeze(2), None, [1, stride], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return to_x.squeeze(2).transpose(1, 2), to_weight.squeeze(2)
    rows = x.view(-1, stride * x.shape[1])
    taps = _by_tap(weight)
    to_taps, to_rows = torch.empty_like(taps), torch.zeros_like(rows) if weight.shape[2] < stride else None
    for shift, start, stop in _blocks(weight, stride):
        used = gradient[: max(len(gradient) - shift, 0)]
        torch.mm(rows[shift:, : stop - start].t(), used, out=to_taps[start:stop])
        if to_rows is None:
            to_rows = used @ taps[start:stop].t()
        else:
            to_rows[shift:, : stop - start].addmm_(used, taps[start:stop].t())
    assert to_rows is not None
    dim, channels, kernel = weight.shape
    return to_rows.view_as(x), to_taps.view(kernel, channels, dim).permute(2, 1, 0)


class _FewTaps(torch.autograd.Function):
    """windows (..., K) @ taps (D, K)^T. The order of its backward product is five times as fast for so small a K."""

    @staticmethod
    def forward(ctx, windows: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(windows, taps)
        return F.linear(windows, taps)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        windows, taps = ctx.saved_tensors
        to_windows = gradient @ taps if ctx.needs_input_grad[0] else None
        return to_windows, (windows.flatten(0, -2).t() @ gradient.flatten(0, -2)).t()


def _by_tap(weight: Tensor) -> Tensor:
    """(D, C, K) -> (K * C, D): in the order of a row's steps and channels."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0])


def _blocks(weight: Tensor, stride: int) -> list[tuple[int, int, int]]:
    """(how many rows ahead, first and last entry of its taps) for every S taps."""
    _, channels, kernel = weight.shape
    return [(i // stride, i * channels, min(i + stride, kernel) * channels) for i in range(0, kernel, stride)]
