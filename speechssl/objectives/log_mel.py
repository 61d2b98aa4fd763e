"""What objectives on the log-mel spectrogram share: which of its frames an encoder frame stands for.

Shapes: B utterances, N log-mel frames, M mel bins, F encoder frames, S log-mel frames per encoder frame.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.frontend import LogMelEncoder
from speechssl.nn.lengths import conv_lengths, full_lengths, receptive_field
from speechssl.objectives.base import Objective


class LogMelObjective(Objective):
    """An encoder frame stands for the S log-mel frames in the middle of its window, S the product of the strides.

    So the frames of the spectrogram are shared out: each (but a few at the ends of an utterance) belongs to exactly
    one encoder frame, and encoder frame f owns those from `first + f S` to `first + (f + 1) S - 1`.
    """

    about: ClassVar[str]  # for messages: "BEST-RQ"

    def __init__(self, config, encoder: Encoder):
        super().__init__(config, encoder)
        features = encoder.feature_encoder
        if not isinstance(features, LogMelEncoder):
            raise UserError(f"{self.about} reads log-mel frames: set encoder.feature_encoder.name=logmel.")
        if any(k < s for k, s in zip(features.config.kernels, features.config.strides, strict=True)):
            raise UserError(f"{self.about} needs kernels at least as wide as their strides (encoder.feature_encoder).")
        self.num_bins = features.config.num_bins
        self.window = receptive_field(features.config.kernels, features.config.strides)  # log-mel frames
        self.stack = math.prod(features.config.strides)
        self.first = (self.window - self.stack) // 2

    @property
    def features(self) -> LogMelEncoder:
        features = self.encoder.feature_encoder
        assert isinstance(features, LogMelEncoder)
        return features

    def log_mel(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """The normalised spectrogram (B, N, M), its lengths (B,) or None, and lengths (B,) in encoder frames."""
        mel, lengths = self.features.log_mel(batch.waveforms, batch.lengths_or_none)
        frames = conv_lengths(full_lengths(mel, lengths), (self.window,), (self.stack,))
        return mel, lengths, frames

    def stacked(self, mel: Tensor) -> Tensor:
        """(B, N, M) -> (B, F, S * M): the log-mel frames of each encoder frame, one after the other."""
        size = conv_lengths(mel.shape[1], (self.window,), (self.stack,))
        return mel[:, self.first : self.first + size * self.stack].reshape(len(mel), size, self.stack * self.num_bins)

    def put_back(self, owned: Tensor, mel: Tensor) -> Tensor:
        """`mel` (B, N, M) with the frames that encoder frames own replaced by `owned` (B, F * S, M)."""
        return torch.cat((mel[:, : self.first], owned, mel[:, self.first + owned.shape[1] :]), 1)
