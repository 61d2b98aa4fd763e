"""What a frozen encoder knows about letters: a learned sum of its layers, a small BiGRU and CTC (as in SUPERB).

The encoder never learns, so the score says what pretraining put there and nothing else. A GRU soon knows minutes of
labels by heart; played at a few speeds (Ko et al. 2015) they are more, and still every utterance is encoded only once
for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.augment import change_speed
from speechssl.nn.encoder import Encoder
from speechssl.nn.frozen import FrozenLayers
from speechssl.nn.heads import BiGRU, LayerSum, TokenHead
from speechssl.nn.lengths import full_lengths
from speechssl.objectives.transcription import Transcription


@dataclass(frozen=True, kw_only=True)
class CTCProbeConfig:
    """vocab_size and word_boundary are filled in from the vocabulary."""

    name: Literal["ctc_probe"] = "ctc_probe"
    vocab_size: int = 0  # with the blank
    word_boundary: int = -1  # token between words, for WER in validation; -1: none
    symbols_per_frame: int = 1  # tokens that one encoder frame may spell
    dim: int = 128  # of the GRU, each direction
    dropout: float = 0.15  # of the GRU's input and output
    speeds: tuple[int, ...] = ()  # while training an utterance is played at one of these, percent; () leaves it alone

    def __post_init__(self):
        if self.speeds and not 50 <= min(self.speeds) <= max(self.speeds) <= 200:
            raise ValueError("speeds must be within 50 and 200 (percent)")
        if self.vocab_size < 2:
            raise ValueError("vocab_size is not set; a vocabulary is needed (data.vocabulary, `speechssl vocab`)")


class CTCProbe(Transcription):
    Config = CTCProbeConfig

    def __init__(self, config: CTCProbeConfig, encoder: Encoder):
        super().__init__(config, encoder)
        encoder.requires_grad_(False)
        self.frozen_layers = FrozenLayers(encoder)
        self.register_load_state_dict_post_hook(lambda module, keys: module.frozen_layers.forget())
        self.layer_sum = LayerSum(encoder.num_alike)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = BiGRU(encoder.dim, config.dim)
        self.head = TokenHead(2 * config.dim, config.vocab_size, config.symbols_per_frame, config.dropout)

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.eval()  # no dropout in what does not learn
        return self

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, F * symbols_per_frame, V) and their lengths (B,)."""
        if self.training:  # utterances come again: each is encoded once
            layers, frames = self.frozen_layers(*self._played(batch))
        else:
            with torch.no_grad():
                output = self.encoder(batch.waveforms, batch.lengths_or_none)
            layers, frames = output.layers[-self.encoder.num_alike :], full_lengths(output.hidden, output.lengths)
        mixed = self.dropout(self.layer_sum(layers))
        return self.head(self.recurrent(mixed, frames), frames)

    @torch.no_grad()
    def _played(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, T) at one of `speeds` each, and lengths (B,) in samples."""
        if not self.config.speeds:
            return batch.waveforms, batch.lengths_or_none
        speeds = torch.tensor(self.config.speeds, device=batch.waveforms.device)
        percents = speeds[torch.randint(len(speeds), batch.lengths.shape, device=speeds.device)]
        return change_speed(batch.waveforms, batch.lengths, percents, min(self.config.speeds))

    @property
    def fastest(self) -> int:
        return max(self.config.speeds, default=100)
