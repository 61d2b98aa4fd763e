"""WavLM (Chen et al. 2022): HuBERT that hears other speech or noise over an utterance and must still name its units.

Its other half, the gated relative position bias, is a number of the context network (`relative_buckets`).
Shapes: B utterances, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from speechssl.batch import Batch
from speechssl.nn.mixing import coloured_noise, draw_mixture, mix
from speechssl.objectives.hubert import HuBERT, HuBERTConfig


@dataclass(frozen=True, kw_only=True)
class WavLMConfig(HuBERTConfig):
    """The defaults are Base. The paper's noise is recorded (DNS challenge); here it is made: white to brown."""

    name: Literal["wavlm"] = "wavlm"  # type: ignore[assignment]
    mix_prob: float = 0.2  # share of the utterances that are mixed
    mix_noise_prob: float = 0.1  # share of these that get noise, not speech of another utterance of the micro-batch
    speech_ratio: tuple[float, float] = (-5.0, 5.0)  # dB, the utterance over the other one
    noise_ratio: tuple[float, float] = (-5.0, 20.0)  # dB, the utterance over the noise


class WavLM(HuBERT):
    Config = WavLMConfig  # type: ignore[assignment]

    def heard(self, batch: Batch) -> Tensor:
        """The waveforms (B, T), some of them mixed while training; validation hears them as they are."""
        if not self.training:
            return batch.waveforms
        config = self.config
        mixture = draw_mixture(
            batch.lengths,
            prob=config.mix_prob,
            noise_prob=config.mix_noise_prob,
            speech_ratio=config.speech_ratio,
            noise_ratio=config.noise_ratio,
        )
        noise = coloured_noise(batch.waveforms.shape[1], len(batch.ids), batch.waveforms.device)
        return mix(batch.waveforms, batch.lengths, mixture, noise)
