"""The autoencoder: which samples count, the decoder sample by sample, and the signal-to-noise ratio."""

import math

import pytest
import torch
import torch.nn.functional as F
from parity import shake
from tiny import tiny_batch, tiny_encoder
from tiny_ahead import plain_encoder

from speechssl.errors import UserError
from speechssl.objectives.autoencoder import Autoencoder, AutoencoderConfig, Decoder, signal_to_noise


def model(encoder=None, dims=(16,)) -> Autoencoder:
    torch.manual_seed(3)
    objective = Autoencoder(AutoencoderConfig(dims=dims), encoder or plain_encoder())
    shake(objective)
    return objective.eval()


def results(objective, batch) -> dict[str, float]:
    return {name: metric.result() for name, metric in objective(batch).metrics.items()}


@torch.no_grad()
def test_a_decoder_adds_what_each_frame_gives():
    decoder = Decoder(3, (5,), kernels=(4, 3), strides=(2, 2))
    shake(decoder)
    hidden = torch.randn(1, 6, 3)
    rebuilt, lengths = decoder(hidden, None)
    assert lengths is None
    x = hidden[0]
    for number, (kernel, stride) in enumerate(((3, 2), (4, 2))):  # the slowest first
        layer = decoder.layers[number]
        size = (len(x) - 1) * stride + kernel
        y = layer.bias.expand(size, -1).clone()
        for f in range(len(x)):
            for k in range(kernel):
                y[f * stride + k] += x[f] @ layer.weight[:, :, k]
        x = y if number else F.gelu(y)
    torch.testing.assert_close(rebuilt[0], x[:, 0])
    assert rebuilt.shape[1] == 6 * 4 + (3 - 1) * 2 + 4 - 4  # 5 hops and the window that a frame sees


@pytest.mark.parametrize("kind", ["plain", "layer", "logmel"])
def test_it_rebuilds_the_samples_that_the_frames_have_seen(kind):
    encoder = plain_encoder() if kind == "plain" else tiny_encoder(kind)
    features = encoder.feature_encoder
    objective = model(encoder, dims=(8,) * (len(features.kernels) - 1))
    lengths = torch.tensor([5000, 3333, features.receptive_field, features.receptive_field - 1])
    batch = tiny_batch(*lengths.tolist())
    rebuilt, samples = objective.decoder(*(lambda out: (out.hidden, out.lengths))(encoder(batch.waveforms, lengths)))
    frames = encoder.frame_lengths(lengths)
    seen = torch.where(frames > 0, features.receptive_field + (frames - 1) * features.hop, 0)
    assert samples.equal(seen)
    assert ((lengths - seen)[:3] < features.hop).all()
    assert rebuilt.shape[1] == seen.max()
    assert objective(batch).num_targets == seen.sum()


@torch.no_grad()
def test_loss_against_loops():
    objective, batch = model(), tiny_batch(500, 333, 100)
    total, count, ratios, powers = 0.0, 0, [], 0.0
    for b in range(3):
        waveform = batch.waveforms[b, : batch.lengths[b]]
        rebuilt = objective.decoder(objective.encoder(waveform[None]).hidden, None)[0][0]
        true = waveform[: len(rebuilt)]
        error = sum((float(x) - float(y)) ** 2 for x, y in zip(rebuilt, true, strict=True))
        power = sum(float(y) ** 2 for y in true)
        ratios.append(10 * math.log10(power / error))
        total, count, powers = total + error, count + len(true), powers + power
    output = objective(batch)
    assert output.num_targets == count
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.metrics["snr_db"].result() == pytest.approx(sum(ratios) / 3, abs=1e-4)
    assert output.metrics["relative_error"].result() == pytest.approx(total / powers, rel=1e-5)


def test_silence_is_chance():
    objective = model()
    for parameter in objective.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    numbers = results(objective, tiny_batch(500, 300))
    assert numbers["snr_db"] == pytest.approx(objective.chance()["snr_db"], abs=1e-5)
    assert numbers["relative_error"] == pytest.approx(objective.chance()["relative_error"])


def test_signal_to_noise():
    power, error = torch.tensor([100.0, 1.0, 5.0, 3.0]), torch.tensor([1.0, 10.0, 5.0, 0.0])
    assert signal_to_noise(power, error).tolist() == pytest.approx([20.0, -10.0, 0.0, 100.0])
    assert signal_to_noise(torch.zeros(2), torch.tensor([0.0, 1.0])).isfinite().all()


def test_a_silent_utterance_has_a_loss_and_no_ratio():
    objective, batch = model(), tiny_batch(500, 500)
    expected = objective(tiny_batch(500)).metrics["snr_db"]
    batch.waveforms[1] = 0.0
    output = objective(batch)
    torch.testing.assert_close(output.metrics["snr_db"].values, expected.values)
    assert output.loss.isfinite()


def test_a_constant_vector_is_named():
    objective, batch = model(), tiny_batch(500, 300)
    assert objective.diagnose(results(objective, batch)) == objective.diagnose({}) == ""
    with torch.no_grad():
        objective.encoder.feature_encoder.convolutions.layers[-1].weight.zero_()
    assert "gives every frame the same vector" in objective.diagnose(results(objective, batch))


def test_the_decoder_mirrors_the_encoder():
    with pytest.raises(UserError, match="names 6 layers of the decoder; its encoder has 2, so name 1"):
        Autoencoder(AutoencoderConfig(), plain_encoder())
