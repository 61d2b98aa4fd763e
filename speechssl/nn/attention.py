"""Scaled dot-product attention. Shapes: B utterances, H heads, F frames, D channels of one head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.dropout import as_numbers, keep_mask
from speechssl.nn.exporting import exporting

PIECE = 2**20  # scores of a piece: so few that they stay in a CPU's cache from the first product to the second
COPIED = 1500  # frames from which on a CPU's fused kernel reads keys so often that copying them end to end pays


def attend(heads: Tensor, keys: Tensor | None, dropout: float, causal: bool, bias: Tensor | None = None) -> Tensor:
    """(B, F, 3, H, D), query, key and value of every frame, -> (B, F, H * D).

    keys: (B, 1, 1, F) bool, True = may be attended to; None when all may.
    bias: (B, H, F, F), added to the scores.
    """
    if bias is not None:
        bias = bias.to(heads.dtype)
    if heads.device.type == "cpu" and not torch.compiler.is_compiling() and (dropout or heads.dtype != torch.float32):
        return _Attention.apply(heads, bias, keys, dropout, causal).flatten(2)
    heads = heads.permute(2, 0, 3, 1, 4)
    graph = exporting() or torch.compiler.is_compiling()  # which must not depend on a length
    if not graph and heads.device.type == "cpu" and heads.shape[3] >= COPIED:
        heads = heads.contiguous()
    query, key, value = heads.unbind(0)  # each (B, H, F, D)
    if bias is not None and exporting():  # the fused kernel's layout would be part of the graph
        mixed = _probabilities(query, key, bias, keys, causal) @ value
    else:
        mask = keys
        if bias is not None or (causal and keys is not None):  # the kernel takes a mask or a direction, not both
            mask = hide(query.new_zeros(*query.shape[:3], key.shape[2]) if bias is None else bias, keys, causal)
            causal = False
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


def hide(scores: Tensor, keys: Tensor | None, causal: bool) -> Tensor:
    """Scores (..., F, F), lowest where `keys` forbids or, with `causal`, where the key lies ahead of the query.

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
    """For CPUs, whose fused kernel knows no dropout and is slow in half precision: a few heads at a time.

    Keeps neither the probabilities (made again from query and key in the backward pass) nor more of the dropout than
    its mask: a quarter of the memory of the plain formula in half precision, an eighth in single.
    """

    @staticmethod
    def forward(ctx, heads, bias, keys, dropout: float, causal: bool):
        """-> (B, F, H, D)."""
        batch, frames, _, count, dim = heads.shape
        ctx.dropout, ctx.causal = dropout, causal
        mask = keep_mask((batch, count, frames, frames), dropout) if dropout else None
        ctx.save_for_backward(heads, bias, keys, mask)
        mixed = heads.new_empty(batch, frames, count, dim)
        for b, h in _pieces(heads):
            query, key, value = heads[b, :, :, h].permute(1, 2, 0, 3)  # each (h, F, D)
            probs = _piece_of_probabilities(query, key, bias, keys, causal, b, h)
            if mask is not None:
                probs.mul_(as_numbers(mask[b, h], probs.dtype))
            mixed[b, :, h] = torch.bmm(probs, value * (1 / (1 - dropout))).transpose(0, 1)
        return mixed

    @staticmethod
    def backward(ctx, gradient):
        heads, bias, keys, mask = ctx.saved_tensors
        to_heads, scale = torch.empty_like(heads), heads.shape[-1] ** -0.5
        to_bias = torch.empty_like(bias) if ctx.needs_input_grad[1] else None
        for b, h in _pieces(heads):
            query, key, value = heads[b, :, :, h].permute(1, 2, 0, 3)
            probs = _piece_of_probabilities(query, key, bias, keys, ctx.causal, b, h)
            to_mixed = gradient[b, :, h].transpose(0, 1) * (1 / (1 - ctx.dropout))  # (h, F, D)
            to_probs = torch.bmm(to_mixed, value.transpose(1, 2))
            kept = None if mask is None else as_numbers(mask[b, h], probs.dtype)
            if kept is not None:
                to_probs.mul_(kept)
            to_scores = torch.ops.aten._softmax_backward_data(to_probs, probs, -1, probs.dtype)
            if kept is not None:
                probs.mul_(kept)
            to_heads[b, :, 0, h] = (torch.bmm(to_scores, key) * scale).transpose(0, 1)
            to_heads[b, :, 1, h] = torch.bmm(to_scores.transpose(1, 2), query * scale).transpose(0, 1)
            to_heads[b, :, 2, h] = torch.bmm(probs.transpose(1, 2), to_mixed).transpose(0, 1)
            if to_bias is not None:
                to_bias[b, h] = to_scores
        return to_heads, to_bias, None, None, None


def _pieces(heads: Tensor) -> Iterator[tuple[int, slice]]:
    """(utterance, some of its heads)."""
    batch, frames, _, count, _ = heads.shape
    step = max(1, PIECE // max(frames * frames, 1))
    return ((b, slice(i, i + step)) for b in range(batch) for i in range(0, count, step))


def _piece_of_probabilities(query, key, bias, keys, causal: bool, b: int, h: slice) -> Tensor:
    """(h, F, F)."""
    bias, keys = None if bias is None else bias[b, h], None if keys is None else keys[b]
    return _probabilities(query, key, bias, keys, causal)


def _probabilities(query, key, bias, keys, causal) -> Tensor:
    """(..., F, F)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return hide(scores if bias is None else scores + bias, keys, causal).softmax(-1)
