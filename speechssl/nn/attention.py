"""Scaled dot-product attention. Shapes: B utterances, H heads, F frames, D channels of one head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.dropout import keep_mask
from speechssl.nn.exporting import exporting


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor | None,
    dropout: float,
    causal: bool,
    bias: Tensor | None = None,
) -> Tensor:
    """(B, H, F, D) -> the same.

    keys: (B, 1, 1, F) bool, True = may be attended to; None when all may.
    bias: (B, H, F, F), added to the scores.
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    if query.device.type == "cpu" and not torch.compiler.is_compiling() and (dropout or query.dtype != torch.float32):
        return _Attention.apply(query, key, value, bias, keys, dropout, causal)
    if bias is not None and exporting():  # the fused kernel's layout would be part of the graph
        return _probabilities(query, key, bias, keys, causal) @ value
    mask = keys
    if bias is not None or (causal and keys is not None):  # the kernel takes a mask or a direction, not both
        mask = hide(query.new_zeros(*query.shape[:3], key.shape[2]) if bias is None else bias, keys, causal)
        causal = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)


def hide(scores: Tensor, keys: Tensor | None, causal: bool) -> Tensor:
    """Scores (B, H, F, F), lowest where `keys` forbids or, with `causal`, where the key lies ahead of the query.

    Lowest, not infinite: in an utterance without any frame every key is forbidden, and infinities would make NaN.
    """
    lowest = torch.finfo(scores.dtype).min
    if keys is not None:
        scores = scores.masked_fill(~keys, lowest)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, lowest)
    return scores


class _Attention(torch.autograd.Function):
    """For CPUs, whose fused kernel knows no dropout and is slow in half precision: two products and a softmax.

    Keeps neither the probabilities (made again from query and key in the backward pass) nor more of the dropout than
    its mask: a quarter of the memory of the plain formula in half precision, an eighth in single.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, keys, dropout: float, causal: bool):
        ctx.dropout, ctx.causal = dropout, causal
        probs = _probabilities(query, key, bias, keys, causal)
        mask = keep_mask(probs.shape, dropout) if dropout else None
        ctx.save_for_backward(query, key, value, bias, keys, mask)
        return _dropped(probs, mask, dropout) @ value

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, bias, keys, mask = ctx.saved_tensors
        probs = _probabilities(query, key, bias, keys, ctx.causal)
        to_value = _dropped(probs, mask, ctx.dropout).transpose(-1, -2) @ gradient
        to_probs = _dropped(gradient @ value.transpose(-1, -2), mask, ctx.dropout)
        to_scores = torch.ops.aten._softmax_backward_data(to_probs, probs, -1, probs.dtype)
        to_bias = to_scores if ctx.needs_input_grad[3] else None
        scale = query.shape[-1] ** -0.5
        return to_scores @ key * scale, to_scores.transpose(-1, -2) @ query * scale, to_value, to_bias, None, None, None


def _probabilities(query, key, bias, keys, causal) -> Tensor:
    """(B, H, F, F)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return hide(scores if bias is None else scores + bias, keys, causal).softmax(-1)


def _dropped(x: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0).mul_(1 / (1 - dropout))
