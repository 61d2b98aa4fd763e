"""One entry for every objective that the contract is tested on, and what makes its randomness repeatable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tiny import tiny_batch, tiny_encoder
from tiny_ahead import apc_encoder, plain_encoder, wav2vec_encoder

from speechssl.batch import Batch
from speechssl.nn.augment import Augment, AugmentConfig
from speechssl.nn.lengths import zero_padding
from speechssl.objectives import Objective
from speechssl.objectives.apc import APC, APCConfig
from speechssl.objectives.autoencoder import Autoencoder, AutoencoderConfig
from speechssl.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from speechssl.objectives.best_rq import BestRQ, BestRQConfig
from speechssl.objectives.byol import BYOL, BYOLConfig
from speechssl.objectives.cpc import CPC, CPCConfig
from speechssl.objectives.ctc import CTC, CTCConfig
from speechssl.objectives.ctc_probe import CTCProbe, CTCProbeConfig
from speechssl.objectives.data2vec import Data2Vec, Data2VecConfig
from speechssl.objectives.hubert import HuBERT, HuBERTConfig
from speechssl.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderConfig
from speechssl.objectives.masked_spectrogram import Alteration, MaskedSpectrogram, MaskedSpectrogramConfig
from speechssl.objectives.moco import MoCo, MoCoConfig
from speechssl.objectives.simclr import SimCLR, SimCLRConfig
from speechssl.objectives.speaker import Speaker, SpeakerConfig
from speechssl.objectives.temporal_order import TemporalOrder, TemporalOrderConfig
from speechssl.objectives.views import View
from speechssl.objectives.wav2vec import Wav2Vec, Wav2VecConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from speechssl.objectives.wavlm import WavLM, WavLMConfig

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
    lengths: of its utterances, in samples; more than two where batch statistics would leave no gradient.
    """

    make: Callable[[float], Objective]
    draws: Callable[[Objective, Batch], dict] = lambda objective, batch: {}
    units: int = 0
    loss_is_a_sum: bool = True
    prepare: Callable[[Objective], None] = lambda objective: None
    lengths: tuple[int, ...] = (8000, 6000)


def two_utterances(name: str) -> Batch:
    return utterances(name, *CASES[name].lengths)


def utterances(name: str, *lengths: int) -> Batch:
    """With labels, speakers and, where the case wants them, units."""
    batch = tiny_batch(*lengths, tokens=(TOKENS * 3)[: len(lengths)], speakers=[0] * len(lengths))
    return replace(batch, units=units(name, batch)) if CASES[name].units else batch


def units(name: str, batch: Batch) -> torch.Tensor:
    """(B, U): a function of the unit's place, -1 behind an utterance's end."""
    objective = CASES[name].make(0.0)
    encoder, per_frame = objective.encoder, objective.config.targets_per_frame
    place = torch.arange(encoder.frame_lengths(batch.waveforms.shape[1]) * per_frame)
    inside = place < encoder.frame_lengths(batch.lengths)[:, None] * per_frame
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


def noisy_frames(objective: Objective, batch: Batch) -> dict:
    """BEST-RQ: that mask, and noise that depends on the place in the utterance alone."""
    mask = every_fourth_is_seen(objective, batch)["mask"]
    mel, _, _ = objective.log_mel(batch)
    noise = torch.randn(1000, mel.shape[2], generator=torch.Generator().manual_seed(1))
    return {"mask": mask, "noise": noise[: mel.shape[1]].expand_as(mel)}


def altered_frames(objective: Objective, batch: Batch) -> dict:
    """Masked spectrogram: of three log-mel frames one is left, one becomes zeros, one an earlier frame."""
    size, lengths = frame_places(objective, batch)
    place = torch.arange(len(size) * objective.stack).expand(len(lengths), -1)
    chosen = (place % 3 != 0) & (place < lengths[:, None] * objective.stack)
    source = torch.where(chosen, torch.where(place % 3 == 1, -1, place // 2), place)
    channels = (torch.arange(objective.num_bins) < 3).expand(len(lengths), -1)
    return {"alteration": Alteration(chosen, source, channels)}


def half_way(objective: Objective, batch: Batch) -> dict:
    """wav2vec: the frames at half the predicted one's number, and before."""
    place, lengths = frame_places(objective, batch)
    apart = torch.arange(objective.config.num_negatives)
    return {"negatives": (place[:, None] // 2 - apart).clamp(min=0).expand(len(lengths), -1, -1)}


def fourth_order(objective: Objective, batch: Batch) -> dict:
    """Temporal order: segments from the first sample on, a fixed order, the first utterance backwards."""
    config, count = objective.config, len(batch.lengths)
    starts = torch.arange(config.num_segments) * (config.segment + config.gap)
    return {"draws": (starts.expand(count, -1), torch.full((count,), 4), torch.ones(count, dtype=torch.long))}


def one_draw_for_ever(objective: Objective) -> None:
    """Two orders that are always the same ones: their segments can be known by heart."""
    lengths = torch.tensor([8000, 6000])
    first = objective.draw(lengths)
    objective.draw = lambda lengths: first


def first_and_last_part(objective: Objective, batch: Batch) -> dict:
    """Two views: the first and the last three quarters of each utterance."""
    size, lengths = batch.waveforms.shape[1] * 3 // 4, batch.lengths * 3 // 4
    index = (batch.lengths - lengths)[:, None] + torch.arange(size)
    last = batch.waveforms.gather(1, index.clamp(max=batch.waveforms.shape[1] - 1))
    return {"views": tuple(View(zero_padding(x, lengths), lengths) for x in (batch.waveforms[:, :size], last))}


def see_all(objective: Objective) -> None:
    """Views are whole utterances, with a little noise."""
    objective.view_samples, objective.augment = 8000, Augment(AugmentConfig(noise_prob=0.5))


def learn_at_once(objective: Objective) -> None:
    objective.config = replace(objective.config, time_mask_start_prob=0.0, freeze_encoder_updates=0)


W2V2 = {"num_codebooks": 2, "codebook_size": 6, "code_dim": 8, "final_dim": 8, "num_negatives": 6, "mask_length": 3}
LETTERS = {"vocab_size": 6, "word_boundary": 1}
HUBERT = {"num_units": 6, "final_dim": 8, "mask_length": 3, "mask_start_prob": 0.15}
SIX = (8000, 6000, 7000, 5000, 7600, 6600)
VIEWS = {"view_seconds": 0.45, "augment": AugmentConfig(noise_prob=0.5, speed=0.05)}

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
            CPCConfig(
                num_steps=2, num_negatives=6, negatives="speaker", heads="transformer", head_heads=2, head_ffn_dim=32
            ),
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
    "speaker-softmax": Case(
        lambda dropout: Speaker(
            SpeakerConfig(speakers=("A", "B", "C"), features="sum", freeze="encoder", embedding_dim=8, dropout=dropout),
            tiny_encoder("group", dropout),
        )
    ),
    "speaker-aam": Case(
        lambda dropout: Speaker(
            SpeakerConfig(speakers=("A", "B", "C"), pooling="attentive", classifier="aam", scale=5.0, dropout=dropout),
            tiny_encoder("layer", dropout),
        )
    ),
    "speaker-batch-norm": Case(
        lambda dropout: Speaker(
            SpeakerConfig(speakers=("A", "B", "C"), pooling="statistics", pooled_norm="batch", dropout=dropout),
            tiny_encoder("group", dropout),
        ),
        loss_is_a_sum=False,
    ),
    "hubert": Case(
        lambda dropout: HuBERT(HuBERTConfig(**HUBERT), tiny_encoder("group", dropout)), every_fourth_is_seen, units=6
    ),
    "hubert-slow-frames": Case(  # two units to a frame, and frames that are seen count a little
        lambda dropout: HuBERT(
            HuBERTConfig(**HUBERT, targets_per_frame=2, unmasked_weight=0.1, feature_penalty=0.0),
            tiny_encoder("logmel", dropout),
        ),
        every_fourth_is_seen,
        units=6,
    ),
    "wavlm": Case(
        lambda dropout: WavLM(
            WavLMConfig(**HUBERT, mix_prob=0.5, mix_noise_prob=0.5),
            tiny_encoder("group", dropout, relative_buckets=16, relative_distance=40),
        ),
        every_fourth_is_seen,
        units=6,
    ),
    "cpc-transformer": Case(
        lambda dropout: CPC(CPCConfig(num_steps=3, num_negatives=6), tiny_encoder("layer", dropout, causal=True)),
        earlier_frames,
    ),
    "data2vec": Case(
        lambda dropout: Data2Vec(Data2VecConfig(mask_length=3, top_layers=2), tiny_encoder("layer", dropout)),
        every_fourth_is_seen,
    ),
    "data2vec-published": Case(  # norms behind, squares at first
        lambda dropout: Data2Vec(
            Data2VecConfig(mask_length=3, top_layers=1, beta=0.5), tiny_encoder("group", dropout, position_layers=2)
        ),
        every_fourth_is_seen,
    ),
    "best_rq": Case(
        lambda dropout: BestRQ(
            BestRQConfig(mask_start_prob=0.2, mask_length=3, code_dim=4, codebook_size=12),
            tiny_encoder("logmel", dropout),
        ),
        noisy_frames,
    ),
    "masked_spectrogram": Case(
        lambda dropout: MaskedSpectrogram(MaskedSpectrogramConfig(), tiny_encoder("logmel", dropout)),
        altered_frames,
    ),
    "masked_autoencoder": Case(
        lambda dropout: MaskedAutoencoder(
            MaskedAutoencoderConfig(decoder_dim=16, decoder_layers=1, decoder_heads=2), tiny_encoder("patches", dropout)
        ),
        every_fourth_is_seen,
    ),
    "wav2vec": Case(
        lambda dropout: Wav2Vec(Wav2VecConfig(num_steps=3, num_negatives=6), wav2vec_encoder(dropout)), half_way
    ),
    "wav2vec-hard": Case(
        lambda dropout: Wav2Vec(Wav2VecConfig(num_steps=2, num_negatives=4, hard_pool=3), wav2vec_encoder(dropout)),
        half_way,
    ),
    "cpc-hard": Case(
        lambda dropout: CPC(
            CPCConfig(num_steps=3, num_negatives=6, negatives="batch", hard_pool=2), tiny_encoder("recurrent", dropout)
        ),
        earlier_frames,
    ),
    "wav2vec2-hard": Case(
        lambda dropout: Wav2Vec2(Wav2Vec2Config(**W2V2, hard_pool=2), tiny_encoder("group", dropout)),
        mask_and_next_ones,
    ),
    "apc": Case(lambda dropout: APC(APCConfig(ahead=2), apc_encoder(dropout))),
    "vq-apc": Case(lambda dropout: APC(APCConfig(ahead=1), apc_encoder(dropout, quantize_after=2))),
    "autoencoder": Case(lambda dropout: Autoencoder(AutoencoderConfig(dims=(16,)), plain_encoder(dropout))),
    "temporal_order": Case(
        lambda dropout: TemporalOrder(
            TemporalOrderConfig(num_segments=3, num_permutations=5, segment=1200, gap=300, head_dim=16),
            tiny_encoder("layer", dropout),
        ),
        fourth_order,
        prepare=one_draw_for_ever,
    ),
    "simclr": Case(
        lambda dropout: SimCLR(
            SimCLRConfig(**VIEWS, hidden_dim=16, projection_dim=8, temperature=0.5), tiny_encoder("layer", dropout)
        ),
        first_and_last_part,
        loss_is_a_sum=False,
        prepare=see_all,
        lengths=SIX,
    ),
    "moco": Case(
        lambda dropout: MoCo(
            MoCoConfig(**VIEWS, hidden_dim=16, projection_dim=8, queue_size=12, temperature=0.2),
            tiny_encoder("logmel", dropout),
        ),
        first_and_last_part,
        prepare=see_all,
        lengths=SIX,
    ),
    "byol": Case(
        lambda dropout: BYOL(BYOLConfig(**VIEWS, hidden_dim=16, projection_dim=8), tiny_encoder("layer", dropout)),
        first_and_last_part,
        loss_is_a_sum=False,
        prepare=see_all,
        lengths=SIX,
    ),
    "barlow_twins": Case(
        lambda dropout: BarlowTwins(BarlowTwinsConfig(**VIEWS, projection_dim=8), tiny_encoder("group", dropout)),
        first_and_last_part,
        loss_is_a_sum=False,
        prepare=see_all,
        lengths=SIX,
    ),
}


def make(name: str, dropout: float = 0.0, seed: int = 3) -> Objective:
    torch.manual_seed(seed)
    return CASES[name].make(dropout).train()
