"""One entry for every objective that the contract is tested on, and what makes its randomness repeatable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tiny import tiny_batch, tiny_encoder

from speechssl.batch import Batch
from speechssl.objectives import Objective
from speechssl.objectives.cpc import CPC, CPCConfig
from speechssl.objectives.ctc import CTC, CTCConfig
from speechssl.objectives.ctc_probe import CTCProbe, CTCProbeConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config

TOKENS = [[2, 3, 1, 4, 4], [5, 1, 2]]


@dataclass(frozen=True)
class Case:
    """
    make: an objective from the dropout of its encoder and heads.
    draws: keyword arguments for `forward` in place of what it draws at random: a function of each utterance alone,
        however the batch is padded.
    units: how many units its batches hold per utterance frame, from this many different ones; 0: none.
    loss_is_a_sum: over utterances; False where the loss couples the batch.
    prepare: changes it so that it can learn two utterances by heart in a few updates.
    """

    make: Callable[[float], Objective]
    draws: Callable[[Objective, Batch], dict] = lambda objective, batch: {}
    units: int = 0
    loss_is_a_sum: bool = True
    prepare: Callable[[Objective], None] = lambda objective: None


def two_utterances(name: str) -> Batch:
    return utterances(name, 8000, 6000)


def utterances(name: str, *lengths: int) -> Batch:
    """With labels, speakers and, where the case wants them, units."""
    batch = tiny_batch(*lengths, tokens=TOKENS[: len(lengths)], speakers=[0] * len(lengths))
    return replace(batch, units=units(name, batch)) if CASES[name].units else batch


def units(name: str, batch: Batch) -> torch.Tensor:
    """(B, F): a function of the frame's place, -1 behind an utterance's end."""
    encoder = CASES[name].make(0.0).encoder
    place = torch.arange(encoder.frame_lengths(batch.waveforms.shape[1]))
    inside = place < encoder.frame_lengths(batch.lengths)[:, None]
    return torch.where(inside, place % CASES[name].units, -1)


def frame_places(objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame numbers (F,) of the padded batch, and lengths (B,) in frames."""
    size = objective.encoder.frame_lengths(batch.waveforms.shape[1])
    return torch.arange(size), objective.encoder.frame_lengths(batch.lengths)


def every_fourth_is_seen(objective: Objective, batch: Batch) -> dict:
    """A mask (B, F): three of four frames, within each utterance."""
    place, lengths = frame_places(objective, batch)
    return {"mask": (place % 4 != 0) & (place < lengths[:, None])}


def mask_and_next_ones(objective: Objective, batch: Batch) -> dict:
    """That mask, and as negatives the next masked frames of the utterance."""
    mask = every_fourth_is_seen(objective, batch)["mask"]
    counts = mask.sum(1)[:, None, None]
    masked = torch.arange(int(counts.max()))[:, None] + torch.arange(1, objective.config.num_negatives + 1)
    return {"mask": mask, "negatives": masked % counts}


def earlier_frames(objective: Objective, batch: Batch) -> dict:
    """CPC: an earlier frame of the utterance."""
    place, lengths = frame_places(objective, batch)
    steps, negatives = objective.config.num_steps, objective.config.num_negatives
    frame = place[: len(place) - steps, None].expand(len(lengths), steps, -1, negatives) // 2
    return {"negatives": frame + torch.arange(len(lengths))[:, None, None, None] * len(place)}


def learn_at_once(objective: Objective) -> None:
    objective.config = replace(objective.config, time_mask_start_prob=0.0, freeze_encoder_updates=0)


W2V2 = {"num_codebooks": 2, "codebook_size": 6, "code_dim": 8, "final_dim": 8, "num_negatives": 6, "mask_length": 3}
LETTERS = {"vocab_size": 6, "word_boundary": 1}

CASES = {
    "wav2vec2": Case(
        lambda dropout: Wav2Vec2(Wav2Vec2Config(**W2V2, quantizer_dropout=dropout), tiny_encoder("group", dropout)),
        mask_and_next_ones,
    ),
    "wav2vec2-logmel": Case(
        lambda dropout: Wav2Vec2(
            Wav2Vec2Config(**W2V2, feature_penalty=0.0, mask_start_prob=0.2), tiny_encoder("logmel", dropout)
        ),
        mask_and_next_ones,
    ),
    "cpc": Case(
        lambda dropout: CPC(CPCConfig(num_steps=3, num_negatives=6), tiny_encoder("recurrent", dropout)),
        earlier_frames,
    ),
    "cpc-modified": Case(
        lambda dropout: CPC(
            CPCConfig(num_steps=2, num_negatives=6, negatives="speaker", heads="transformer", head_heads=2),
            tiny_encoder("recurrent", dropout),
        ),
        earlier_frames,
    ),
    "ctc": Case(
        lambda dropout: CTC(
            CTCConfig(
                **LETTERS, time_mask_start_prob=0.2, time_mask_length=3, channel_mask_length=4, head_dropout=dropout
            ),
            tiny_encoder("layer", dropout),
        ),
        prepare=learn_at_once,
    ),
    "ctc_probe": Case(
        lambda dropout: CTCProbe(CTCProbeConfig(**LETTERS, dim=8, dropout=dropout), tiny_encoder("group", dropout))
    ),
}


def make(name: str, dropout: float = 0.0, seed: int = 3) -> Objective:
    torch.manual_seed(seed)
    return CASES[name].make(dropout).train()
