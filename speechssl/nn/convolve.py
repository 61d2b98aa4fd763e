"""Strided convolutions of a batch without padding, channels last; `rows` has those of utterances that lie end to end.

Shapes: B utterances, T steps, C channels in, D channels out, K taps.
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
        to_active, to_weight = _convolve_backward(gradient, active.detach(), weight, ctx.stride)
        to_inputs = torch.autograd.grad(active, inputs, to_active.to(active.dtype))
        to_bias = gradient.flatten(0, -2).sum(0).to(weight.dtype) if ctx.has_bias else None
        return None, None, to_inputs[0], to_weight.to(weight.dtype), to_bias, *to_inputs[1:]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """(B, T, C) -> (B, T', D). weight: (D, C, K). Runs in the precision of autocast, where that is on."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if x.shape[-1] == 1:  # one channel: the windows are so short that copying them is cheap
        y = F.linear(x.squeeze(-1).unfold(1, weight.shape[2], stride), weight.squeeze(1))
        return y if bias is None else y + bias
    y = F.conv2d(_image(x), weight.unsqueeze(2), bias, stride=(1, stride))
    return y.squeeze(2).transpose(1, 2)


def _convolve_backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Gradients of `convolve` with respect to x and weight, in the precision of `gradient`."""
    image, weight = _image(x.to(gradient.dtype)), weight.to(gradient.dtype).unsqueeze(2)
    settings = ([1, stride], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(_image(gradient), image, weight, None, *settings)
    return to_x.squeeze(2).transpose(1, 2), to_weight.squeeze(2)


def _image(x: Tensor) -> Tensor:
    """(B, T, C) -> (B, C, 1, T), physically channels last."""
    return x.transpose(1, 2).unsqueeze(2)
