"""An encoder without a loss: what an import makes of weights that come without heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.objectives.base import LossOutput, Objective

NAME = "speechssl.export.bare:EncoderAlone"


@dataclass(frozen=True, kw_only=True)
class EncoderAloneConfig:
    family: Literal["wav2vec", "wav2vec2", "hubert", "wavlm", "data2vec", "cpc"] = (
        "wav2vec2"  # what it was pretrained as
    )


class EncoderAlone(Objective):
    """Holds what other objectives take with --init: the encoder, and the embedding of masked frames."""

    Config = EncoderAloneConfig

    def __init__(self, config: EncoderAloneConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.mask_embedding = nn.Parameter(torch.rand(encoder.projected_dim))

    def forward(self, batch: Batch) -> LossOutput:
        raise UserError(
            "this checkpoint holds an encoder and no heads, so it has no loss; name another objective and start it "
            "from here with --init."
        )
