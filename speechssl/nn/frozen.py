"""An encoder that never learns gives an utterance the same frames in every epoch: it is run once for each.

Shapes: B utterances, T samples, F frames, D channels, L layers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from speechssl.nn.encoder import Encoder

LIMIT = 2 * 2**30  # bytes of host memory: ten minutes of speech are 0.2 GB for 5 layers of 192, 1.2 GB for Base


class FrozenLayers:
    """The last `encoder.num_alike` layers of whole utterances, kept in host memory until `limit` bytes are full.

    Every utterance is encoded alone, so that its frames depend neither on its batch nor on whether they were kept: a
    resumed run, which keeps nothing at first, is the same to the bit. What no longer fits is encoded every time.
    """

    def __init__(self, encoder: Encoder, limit: int = LIMIT):
        self.encoder, self.limit = encoder, limit
        self.kept: dict[bytes, Tensor] = {}
        self.size = 0  # bytes

    def forget(self) -> None:
        """To be called when the encoder's weights are replaced."""
        self.kept, self.size = {}, 0

    def __call__(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """(B, T), lengths (B,) in samples or None -> L layers (B, F, D), zero after an utterance's end; frames (B,)."""
        sizes = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
        rows = [self._of(w[:size]) for w, size in zip(waveforms, sizes, strict=True)]  # each (F, L, D)
        frames = torch.tensor([len(row) for row in rows], device=waveforms.device)
        return list(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(2)), frames

    def _of(self, waveform: Tensor) -> Tensor:
        key = hashlib.blake2b(waveform.cpu().numpy().tobytes(), digest_size=16).digest()
        if key in self.kept:
            return self.kept[key].to(waveform.device)
        row = self._encode(waveform)
        if self.size + row.nbytes <= self.limit:
            self.kept[key] = row.cpu()
            self.size += row.nbytes
        return row

    @torch.no_grad()
    def _encode(self, waveform: Tensor) -> Tensor:
        count, encoder = self.encoder.num_alike, self.encoder
        if len(waveform) < encoder.feature_encoder.receptive_field:
            return waveform.new_zeros(0, count, encoder.dim)
        return torch.stack(encoder(waveform[None]).layers[-count:], 2)[0]
