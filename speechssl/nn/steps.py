"""Recurrent layers: by torch, by hand on a CPU, or as a graph that holds for any number of frames.

Shapes: B utterances, F frames, C channels in, D channels out.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.exporting import exporting
from speechssl.nn.gru import grus


def recurrent(layer: nn.GRU | nn.LSTM, x: Tensor) -> Tensor:
    """(B, F, C) -> (B, F, D) by a layer of one direction, from a state of zeros."""
    if isinstance(layer, nn.GRU) and _by_hand(x):
        return grus([layer], [x])[0]
    return _step_by_step(layer, x) if exporting() else layer(x)[0]


def recurrent_pair(layers: tuple[nn.GRU, nn.GRU], inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Two layers of one size, each with its own input, at once where that is quicker."""
    if _by_hand(inputs[0]):
        return grus(layers, inputs)
    return [recurrent(layer, x) for layer, x in zip(layers, inputs, strict=True)]


def _by_hand(x: Tensor) -> bool:
    """What is narrow under autocast is left to torch, and a graph cannot hold a loop over frames."""
    narrow = torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64)
    return x.device.type == "cpu" and not narrow and not torch.compiler.is_compiling() and not exporting()


def _step_by_step(layer: nn.GRU | nn.LSTM, x: Tensor) -> Tensor:
    # torch would write a layer out frame by frame, for as many frames as the example has.
    from torch._higher_order_ops.scan import scan

    to_gates = cast(Tensor, layer.weight_ih_l0), cast(Tensor, layer.bias_ih_l0)
    forwards = F.linear(x, *to_gates).transpose(0, 1)  # (F, B, 3 D or 4 D)
    zeros = x.new_zeros(x.shape[0], layer.hidden_size)
    step, start = (_gru_step, zeros) if isinstance(layer, nn.GRU) else (_lstm_step, (zeros, zeros.clone()))
    weight, bias = cast(Tensor, layer.weight_hh_l0), cast(Tensor, layer.bias_hh_l0)
    _, outputs = scan(lambda state, gates: step(state, gates, weight, bias), start, forwards)
    return outputs.transpose(0, 1)


def _gru_step(state: Tensor, gates: Tensor, weight: Tensor, bias: Tensor):
    """Cho et al. 2014, with torch's bias inside the reset gate's product: state (B, D), gates (B, 3 D) of the input."""
    reset, update, new = gates.chunk(3, -1)
    from_reset, from_update, from_new = F.linear(state, weight, bias).chunk(3, -1)
    update = (update + from_update).sigmoid()
    new = (new + (reset + from_reset).sigmoid() * from_new).tanh()
    state = new + update * (state - new)
    return state, state.clone()


def _lstm_step(state: tuple[Tensor, Tensor], gates: Tensor, weight: Tensor, bias: Tensor):
    """Hochreiter & Schmidhuber 1997, with forget gates: state (B, D) and cell (B, D), gates (B, 4 D) of the input."""
    hidden, cell = state
    let_in, forget, new, let_out = (gates + F.linear(hidden, weight, bias)).chunk(4, -1)
    cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
    hidden = let_out.sigmoid() * cell.tanh()
    return (hidden, cell), hidden.clone()
