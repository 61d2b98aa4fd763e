"""Every pretext task and every fine-tuning task: one file each, one line each in OBJECTIVES."""

from __future__ import annotations

import difflib
from importlib import import_module

from speechssl.errors import UserError
from speechssl.objectives.base import LossOutput, Metric, Objective

OBJECTIVES = {
    "wav2vec2": "speechssl.objectives.wav2vec2:Wav2Vec2",
    "cpc": "speechssl.objectives.cpc:CPC",
    "ctc": "speechssl.objectives.ctc:CTC",
    "ctc_probe": "speechssl.objectives.ctc_probe:CTCProbe",
    "hubert": "speechssl.objectives.hubert:HuBERT",
    "wavlm": "speechssl.objectives.wavlm:WavLM",
    "data2vec": "speechssl.objectives.data2vec:Data2Vec",
    "best_rq": "speechssl.objectives.best_rq:BestRQ",
    "masked_spectrogram": "speechssl.objectives.masked_spectrogram:MaskedSpectrogram",
    "masked_autoencoder": "speechssl.objectives.masked_autoencoder:MaskedAutoencoder",
    "wav2vec": "speechssl.objectives.wav2vec:Wav2Vec",
    "apc": "speechssl.objectives.apc:APC",
    "autoencoder": "speechssl.objectives.autoencoder:Autoencoder",
    "temporal_order": "speechssl.objectives.temporal_order:TemporalOrder",
    "simclr": "speechssl.objectives.simclr:SimCLR",
    "moco": "speechssl.objectives.moco:MoCo",
    "byol": "speechssl.objectives.byol:BYOL",
    "barlow_twins": "speechssl.objectives.barlow_twins:BarlowTwins",
    "speaker": "speechssl.objectives.speaker:Speaker",
}


def find_objective(name: str) -> type[Objective]:
    """The class of an objective by its name, or by `mypackage.module:Class`. Raises UserError."""
    target = OBJECTIVES.get(name, name)
    module, colon, cls = target.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"choose {', '.join(OBJECTIVES)}, or mypackage.module:Class."
        raise UserError(f"no objective '{name}'; {advice}")
    try:
        return getattr(import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise UserError(f"objective '{name}' cannot be imported: {error}.") from None


__all__ = ["OBJECTIVES", "LossOutput", "Metric", "Objective", "find_objective"]
