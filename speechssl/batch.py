"""`Batch`: the only type that the data layer and the objectives share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Utterances as the model sees them.

    B utterances, T samples of the longest, F frames, L tokens of the longest transcript.

    Attributes:
        ids: the utterances' names, for messages.
        waveforms: (B, T) float32, zero after each utterance's end; (B, T, C) of series with C > 1 channels.
        lengths: (B,) int64, in samples.
        padded: whether any utterance is shorter than T. Known on the host, so that nobody has to
            ask the device (`lengths_or_none`).
        units: (B, F) int64 or None; -1 = ignore.
        tokens: (B, L) int64 or None; zero after each transcript's end.
        token_lengths: (B,) int64, or None without tokens.
        speakers: (B,) int64 or None.
    """

    ids: tuple[str, ...]
    waveforms: Tensor
    lengths: Tensor
    padded: bool = True
    units: Tensor | None = None
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None
    speakers: Tensor | None = None

    @property
    def lengths_or_none(self) -> Tensor | None:
        """`lengths`, or None when nothing is padded: the fast path of every encoder."""
        return self.lengths if self.padded else None

    def to(self, device: torch.device | str) -> Batch:
        """A copy with every tensor on `device` (asynchronous from pinned memory)."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when the device is a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in tensors.items() if isinstance(v, Tensor)})
