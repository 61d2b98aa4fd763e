"""Span masks, drawn on the device for the whole batch at once. Shapes: B utterances, F frames, S spans."""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(
    lengths: Tensor, size: int, *, start_prob: float, span: int, min_spans: int = 1, generator=None
) -> Tensor:
    """Overlapping spans of `span` frames, as wav2vec 2.0 masks (Baevski et al. 2020, section 3.1).

    Count law: an utterance of F frames gets floor(start_prob * F + u) spans, u uniform in [0, 1), and at least
    `min_spans`; starts are drawn without replacement from every place where a whole span fits, so spans are
    unbroken, may overlap, and never touch padding. In an utterance too short for them, spans are so much shorter that
    `min_spans` of them find places; together they may still hide all of it, as in the published code, which cuts them
    at its end instead. What is then learnt is only what positions tell; utterances of `data.min_seconds` are longer.

    Args:
        lengths: (B,) in frames.
        size: F, frames of the longest.
        start_prob: expected starts per frame (0.065 x 10 masks about half of a 15 s utterance).
        span: frames per span.

    Returns:
        (B, F) bool, True = masked.
    """
    device = lengths.device
    lengths = lengths[:, None]
    spans = (start_prob * lengths + torch.rand(lengths.shape, device=device, generator=generator)).long()
    width = (lengths - max(min_spans, 1)).clamp(min=1, max=span).minimum((lengths - 1).clamp(min=0))
    places = (lengths - width + 1).clamp(min=0)  # where a span may start
    spans = torch.minimum(spans.clamp(min=min_spans), places)
    frame = torch.arange(size, device=device)
    draw = torch.rand((len(lengths), size), device=device, generator=generator)
    draw = draw.masked_fill(frame >= places, 2.0)  # behind every valid place
    starts = draw.argsort(dim=1).argsort(dim=1) < spans  # rank of each place's draw
    begun = starts.long().cumsum(1)
    ended = torch.cat((torch.zeros_like(begun[:, :1]), begun), 1).gather(1, (frame + 1 - width).clamp(min=0))
    return begun > ended


def channel_mask(batch: int, dim: int, *, start_prob: float, span: int, device, generator=None) -> Tensor:
    """(B, D) bool, True = masked: spans of channels, the same for all frames of an utterance (SpecAugment)."""
    lengths = torch.full((batch,), dim, dtype=torch.long, device=device)
    return span_mask(lengths, dim, start_prob=start_prob, span=span, min_spans=0, generator=generator)
