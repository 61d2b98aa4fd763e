"""The objectives on series of several channels. One frame is 8 steps.

Shapes: B series, T steps, C channels.
"""

from dataclasses import replace

import pytest
import torch
from parity import shake

from speechssl.batch import Batch
from speechssl.build import build_objective, seed_everything
from speechssl.config import Config, ConfigError, presets
from speechssl.errors import UserError
from speechssl.nn.augment import AugmentConfig, crop, gain, mix
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.recurrent import RecurrentConfig
from speechssl.nn.sinusoidal import SinusoidalConfig
from speechssl.objectives import OBJECTIVES, find_objective
from speechssl.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from speechssl.objectives.byol import BYOL, BYOLConfig
from speechssl.objectives.cpc import CPC, CPCConfig
from speechssl.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderConfig
from speechssl.objectives.moco import MoCo, MoCoConfig
from speechssl.objectives.simclr import SimCLR, SimCLRConfig
from speechssl.objectives.speaker import Speaker, SpeakerConfig

CHANNELS = 3
AUGMENT = AugmentConfig(sample_rate=100, noise_prob=0.5, gain_db=6.0, jitter_prob=0.1, time_mask_start_prob=0.05)
VIEWS = {"view_seconds": 3.0, "augment": AUGMENT}
SIZES = {"hidden_dim": 16, "projection_dim": 8}


def encoder(channels: int = CHANNELS, norm: str = "layer") -> Encoder:
    features = WaveformConfig(dims=(16, 16), kernels=(4, 3), strides=(4, 2), bias=True, norm=norm, channels=channels)
    return Encoder(EncoderConfig(feature_encoder=features, context=RecurrentConfig(dim=24), dropout=0.0))


def patches(channels: int = CHANNELS, **numbers) -> Encoder:
    numbers = {"dims": (16,), "kernels": (8,), "strides": (8,), "norm": "layer", "bias": True} | numbers
    context = SinusoidalConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=48)
    features = WaveformConfig(**numbers, channels=channels)
    return Encoder(EncoderConfig(feature_encoder=features, context=context, dropout=0.0))


MAE = MaskedAutoencoderConfig(decoder_dim=16, decoder_layers=1, decoder_heads=2)
MAKE = {
    "cpc": lambda n: CPC(CPCConfig(num_steps=3, num_negatives=6), encoder(n)),
    "masked_autoencoder": lambda n: MaskedAutoencoder(MAE, patches(n)),
    "simclr": lambda n: SimCLR(SimCLRConfig(**VIEWS, **SIZES), encoder(n)),
    "moco": lambda n: MoCo(MoCoConfig(**VIEWS, **SIZES, queue_size=12), encoder(n)),
    "byol": lambda n: BYOL(BYOLConfig(**VIEWS, **SIZES), encoder(n)),
    "barlow_twins": lambda n: BarlowTwins(BarlowTwinsConfig(**VIEWS, projection_dim=8), encoder(n)),
    "speaker": lambda n: Speaker(SpeakerConfig(speakers=("pump", "fan"), embedding_dim=8), encoder(n)),
}
EVERY = pytest.mark.parametrize("name", MAKE)


def make(name: str, channels: int = CHANNELS):
    torch.manual_seed(1)
    return MAKE[name](channels)


def series(*lengths: int, channels: int = CHANNELS) -> Batch:
    """Noisy waves, every channel of every series another."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths), channels)
    for row, length in zip(waveforms, lengths, strict=True):
        phase = torch.arange(length)[:, None] * torch.rand(channels, generator=generator)
        row[:length] = phase.sin() + 0.1 * torch.randn(length, channels, generator=generator)
    return Batch(
        ids=tuple(f"series-{i}" for i in range(len(lengths))),
        waveforms=waveforms,
        lengths=torch.tensor(lengths),
        padded=min(lengths) < max(lengths),
        speakers=torch.arange(len(lengths)) % 2,
    )


def test_every_objective_that_takes_series_is_here():
    assert set(MAKE) == {name for name in OBJECTIVES if find_objective(name).takes_channels}


@EVERY
def test_contract(name):
    """A finite loss in training and out of it, and a gradient for every parameter and every channel."""
    objective, batch = make(name), series(500, 420, 460, 500)
    for mode in (False, True):
        output = objective.train(mode)(batch)
        assert output.loss.isfinite()
        assert output.num_targets > 0
    batch = replace(batch, waveforms=batch.waveforms.clone().requires_grad_())
    seed_everything(1, 0, 0)
    objective(batch).loss.backward()
    for parameter_name, parameter in objective.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, parameter_name
    if not hasattr(objective, "augment"):  # views are drawn without gradients
        assert batch.waveforms.grad.isfinite().all()
        assert batch.waveforms.grad.abs().sum((0, 1)).min() > 0
        assert not batch.waveforms.grad[1, 420:].any()


@EVERY
def test_very_short_series_do_no_harm(name):
    objective = make(name)
    for steps in (1, 7, 8, 16):
        objective.zero_grad()
        output = objective(series(400, 500, steps, 320))
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "masked_autoencoder"])
def test_silent_weights_give_what_one_channel_gives(name):
    """Where the first convolution hears the first channel alone, the loss is that of sound, to the last draw."""
    many, one = make(name), make(name, 1)
    weight = "encoder.feature_encoder.convolutions.layers.0.weight"
    state = one.state_dict()
    for key, value in state.items():
        if key.endswith(weight):
            state[key] = torch.nn.functional.pad(value, (0, 0, 0, CHANNELS - 1))
    many.load_state_dict(state)
    batch = series(500, 420, 460)
    losses = []
    for objective, waveforms in ((many, batch.waveforms), (one, batch.waveforms[..., 0].contiguous())):
        if hasattr(objective, "augment"):
            objective.augment.config = AugmentConfig(sample_rate=100, gain_db=6.0)  # noise is drawn for each channel
        seed_everything(1, 0, 0)
        losses.append(objective(replace(batch, waveforms=waveforms)).loss)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "group", "utterance", "none"])
@torch.no_grad()
def test_batched_equals_one_by_one(norm):
    torch.manual_seed(1)
    model, batch = encoder(norm=norm).eval(), series(500, 230, 321)
    shake(model)
    output = model(batch.waveforms, batch.lengths)
    for row, length in enumerate(batch.lengths.tolist()):
        alone = model(batch.waveforms[row : row + 1, :length])
        torch.testing.assert_close(output.hidden[row, : output.lengths[row]], alone.hidden[0], rtol=1e-4, atol=1e-4)


def test_changes_of_series_are_those_of_their_channels():
    batch, noise, db = series(500, 230), torch.randn(2, 500, CHANNELS), torch.tensor([3.0, -5.0])
    lengths = batch.lengths
    for change in (
        lambda x, y: mix(x, lengths, y, db),
        lambda x, y: gain(x, db),
        lambda x, y: crop(x, lengths, 100)[0],
        lambda x, y: crop(x, lengths, 300)[0],
    ):
        found = []
        for channel in (*range(CHANNELS), slice(None)):
            torch.manual_seed(3)
            found.append(change(batch.waveforms[..., channel], noise[..., channel]))
        torch.testing.assert_close(torch.stack(found[:-1], -1), found[-1])


@torch.no_grad()
def test_patches_are_all_channels_for_some_steps_and_hidden_ones_do_not_leak():
    objective, batch = make("masked_autoencoder").eval(), series(85)  # ten patches, and five steps of none
    shake(objective)
    cut = objective.patches(batch.waveforms)
    assert cut.shape == (1, 10, 24)
    assert cut[0, 3].equal(batch.waveforms[0, 24:32].flatten())
    predicted = []
    objective.prediction.register_forward_hook(lambda module, args, out: predicted.append(out))
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, [2, 3, 4, 8]] = True
    output = objective(batch, mask=mask)
    expected = (predicted[0] - cut[mask]).square().mean(1).sum()
    torch.testing.assert_close(output.loss, expected)
    changed = batch.waveforms.clone()
    changed[0, 16:40] += 5
    other = objective(replace(batch, waveforms=changed), mask=mask)
    assert predicted[0].equal(predicted[1])
    assert not other.loss.equal(output.loss)


def test_it_learns_what_comes_next():
    """Waves without noise, whose future follows from any frame, so that nearly all can be told; chance is 1 in 7."""
    objective = make("cpc")
    phase = torch.arange(400)[:, None] * torch.tensor([0.2, 0.3, 0.5])
    batch = replace(series(400, 400), waveforms=phase.sin().expand(2, -1, -1) * 2**0.5)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for step in range(60):
        seed_everything(1, step, 0)
        output = objective(batch)
        optimizer.zero_grad()
        (output.loss / output.num_targets).backward()
        optimizer.step()
    assert output.metrics["accuracy"].result() > 0.5


@pytest.mark.parametrize("name", ["wav2vec2", "data2vec", "autoencoder", "temporal_order", "ctc", "wavlm"])
def test_others_say_who_does(name):
    features = {"name": "waveform", "dims": [8, 8], "kernels": [10, 4], "strides": [5, 4], "channels": 2}
    config = Config(objective={"name": name} | ({"vocab_size": 5} if name == "ctc" else {}))
    with pytest.raises(ConfigError) as caught:
        build_objective(config.override(encoder={"feature_encoder": features}))
    assert f"objective {name} learns from one channel" in str(caught.value)
    assert all(able in str(caught.value) for able in MAKE)


def test_what_does_not_suit_series_is_one_sentence():
    with pytest.raises(UserError, match=r"objective\.augment\.babble_prob changes sound"):
        SimCLR(SimCLRConfig(view_seconds=3.0, augment=replace(AUGMENT, babble_prob=0.5)), encoder())
    with pytest.raises(UserError, match=r"hidden patches through encoder\.feature_encoder\.norm=group"):
        MaskedAutoencoder(MAE, patches(norm="group"))
    with pytest.raises(UserError, match="patches that do not overlap"):
        MaskedAutoencoder(MAE, patches(kernels=(9,)))
    with pytest.raises(ValueError, match="channels must be 1 or more"):
        WaveformConfig(channels=0)
    assert {"cpc-series", "masked-autoencoder-series", "simclr-series"} <= presets().keys()
