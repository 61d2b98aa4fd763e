"""Gated recurrent units on a CPU, several at a time: a few large operations per frame, and a backward pass by hand.

torch runs a GRU on a CPU as some ten small operations per frame, each with a node of its own in the backward pass, and
two directions one after the other. Here the directions share every operation, and what the backward pass can compute
for all frames at once it does: its loop is left with one matrix product and three element-wise operations.

Shapes: N layers of one kind (directions), B utterances, F frames, C channels in, D channels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grus(layers: Sequence[nn.GRU], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What each layer (of one direction and depth, all of a size) makes of its input, from a state of zeros.

    (B, F, C) -> (B, F, D) each, equal to `layer(x)[0]` to rounding. Cho et al. 2014 with torch's bias inside the reset
    gate's product.
    """
    from_input, from_state, input_bias, state_bias = zip(*(layer.all_weights[0] for layer in layers), strict=True)
    gates = [F.linear(*arguments) for arguments in zip(inputs, from_input, input_bias, strict=True)]
    weight, bias = torch.stack(from_state), torch.stack(state_bias)[:, None]  # (N, 3 D, D), (N, 1, 3 D)
    outputs = _GRUs.apply(torch.stack(gates).permute(2, 0, 1, 3), weight, bias)  # (F, N, B, 3 D) -> (F, N, B, D)
    return list(outputs.permute(1, 2, 0, 3))


class _GRUs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """gates: (F, N, B, 3 D), what the input adds to the reset, update and new gates; -> states (F, N, B, D)."""
        frames, number, batch, triple = gates.shape
        dim = triple // 3
        states = gates.new_zeros(frames + 1, number, batch, dim)  # the first is the state before the first frame
        opened = gates.new_empty(frames, number, batch, 2 * dim)  # reset and update gates
        recurrent = gates.new_empty(frames, number, batch, triple)  # what the state before adds
        new = gates.new_empty(frames, number, batch, dim)
        turned = weight.transpose(1, 2).contiguous()
        steps = zip(
            gates[..., : 2 * dim].unbind(),
            gates[..., 2 * dim :].unbind(),
            states[:-1].unbind(),
            states[1:].unbind(),
            opened.unbind(),
            opened[..., :dim].unbind(),
            opened[..., dim:].unbind(),
            recurrent.unbind(),
            recurrent[..., : 2 * dim].unbind(),
            recurrent[..., 2 * dim :].unbind(),
            new.unbind(),
            strict=True,
        )
        for opens, adds, before, after, both, reset, update, product, to_both, to_new, fresh in steps:
            torch.baddbmm(bias, before, turned, out=product)
            torch.add(opens, to_both, out=both).sigmoid_()
            torch.addcmul(adds, reset, to_new, out=fresh).tanh_()
            torch.lerp(fresh, before, update, out=after)
        ctx.save_for_backward(states, opened, recurrent, new, weight)
        return states[1:]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, opened, recurrent, new, weight = ctx.saved_tensors
        frames, number, batch, dim = new.shape
        reset, update = opened.split(dim, -1)
        before = states[:-1]
        # The gradient of a state times these is that of its gates before squashing (of the new one, of its product).
        to_new = (1 - update) * (1 - new.square())
        scales = torch.stack(
            (
                to_new * recurrent[..., 2 * dim :] * reset * (1 - reset),
                (before - new) * update * (1 - update),
                to_new * reset,
            ),
            -2,
        )  # (F, N, B, 3, D)
        to_gates = torch.empty_like(scales)
        whole = gradient.new_empty(frames, number, batch, dim)  # of each state, from its own use and all later ones
        carried = gradient.new_zeros(number, batch, dim)
        flat = to_gates.view(frames, number, batch, 3 * dim)
        steps = zip(
            gradient.unbind(),
            whole.unbind(),
            whole.unsqueeze(-2).unbind(),
            update.unbind(),
            scales.unbind(),
            to_gates.unbind(),
            flat.unbind(),
            strict=True,
        )
        for own, total, beside, kept, scale, out, product in reversed(list(steps)):
            torch.add(own, carried, out=total)
            torch.mul(beside, scale, out=out)
            carried = torch.baddbmm(total * kept, product, weight)
        rows = flat.transpose(0, 1).reshape(number, frames * batch, 3 * dim)
        earlier = before.transpose(0, 1).reshape(number, frames * batch, dim)
        of_weight = rows.transpose(1, 2) @ earlier
        of_bias = rows.sum(1, keepdim=True)
        of_gates = torch.cat((flat[..., : 2 * dim], whole * to_new), -1)
        return of_gates, of_weight, of_bias
