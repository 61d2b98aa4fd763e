"""WavLM: HuBERT in all but what it hears while training."""

from dataclasses import replace

import torch
from tiny import tiny_batch, tiny_encoder

from speechssl.objectives.hubert import HuBERT, HuBERTConfig
from speechssl.objectives.wavlm import WavLM, WavLMConfig

NUMBERS = {"num_units": 6, "final_dim": 8, "mask_length": 3}


def model(**numbers) -> WavLM:
    torch.manual_seed(0)
    config = WavLMConfig(**(NUMBERS | {"mix_prob": 1.0} | numbers))
    return WavLM(config, tiny_encoder("group", relative_buckets=16, relative_distance=40))


def batch_of(objective, *lengths: int):
    batch = tiny_batch(*lengths)
    frames = objective.encoder.frame_lengths(batch.waveforms.shape[1])
    return replace(batch, units=torch.randint(6, (len(lengths), frames)))


def test_speech_is_mixed_while_training_only():
    objective = model(mix_noise_prob=0.0)
    batch = batch_of(objective, 8000, 8000, 6000)
    mixed = objective.train().heard(batch)
    changed = mixed != batch.waveforms
    share = changed.sum(1) / batch.lengths
    assert (share > 0).all()
    assert (share <= 0.5).all(), "at most half of an utterance"
    assert not changed[2, 6000:].any()
    assert objective.eval().heard(batch) is batch.waveforms


def test_the_units_stay_those_of_the_primary_utterance():
    """Without mixing it is HuBERT, with the same weights."""
    wavlm = model(mix_prob=0.0)
    hubert = HuBERT(HuBERTConfig(**NUMBERS), wavlm.encoder)
    hubert.load_state_dict(wavlm.state_dict())
    batch = batch_of(wavlm, 8000, 6000)
    mask = torch.rand(batch.units.shape) < 0.5
    assert wavlm(batch, mask=mask).loss.equal(hubert(batch, mask=mask).loss)
    mixed = model(mix_prob=1.0)
    mixed.load_state_dict(wavlm.state_dict())
    output = mixed(batch, mask=mask)
    assert output.num_targets == wavlm(batch, mask=mask).num_targets
    assert not output.loss.equal(wavlm(batch, mask=mask).loss)


def test_the_batch_itself_is_left_alone():
    objective = model(mix_noise_prob=0.5)
    batch = batch_of(objective, 8000, 6000)
    before = batch.waveforms.clone()
    objective(batch)
    assert batch.waveforms.equal(before)


def test_defaults_are_those_of_the_paper():
    config = WavLMConfig()
    assert (config.num_units, config.mask_start_prob, config.mask_length, config.final_dim) == (500, 0.08, 10, 256)
    assert (config.mix_prob, config.speech_ratio, config.noise_ratio) == (0.2, (-5.0, 5.0), (-5.0, 20.0))
