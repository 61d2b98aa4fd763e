"""Masked spectrogram: the alteration's laws, and the loss against loops."""

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import LogMelConfig
from speechssl.nn.sinusoidal import SinusoidalConfig
from speechssl.objectives.masked_spectrogram import Alteration, MaskedSpectrogram, MaskedSpectrogramConfig, altered

M = 20


def model(encoder=None, **numbers) -> MaskedSpectrogram:
    torch.manual_seed(3)
    objective = MaskedSpectrogram(MaskedSpectrogramConfig(**numbers), encoder or tiny_encoder("logmel"))
    shake(objective)
    return objective.eval()


def frame_by_frame() -> Encoder:
    """As published: no convolutions, one encoder frame for each log-mel frame."""
    features = LogMelConfig(num_bins=M, dims=(), kernels=(), strides=())
    context = SinusoidalConfig(dim=32, num_layers=1, num_heads=4, ffn_dim=48, norm_first=False)
    return Encoder(EncoderConfig(feature_encoder=features, context=context, latent_norm=False, dropout=0.0))


@pytest.mark.parametrize("kind", ["logmel", "frames"])
@torch.no_grad()
def test_loss_against_loops(kind):
    objective = model(frame_by_frame() if kind == "frames" else None)
    batch, stack, first = tiny_batch(8000, 6000), objective.stack, objective.first
    assert (stack, first) == ((1, 0) if kind == "frames" else (4, 1))
    encoder = objective.encoder
    lengths = encoder.frame_lengths(batch.lengths) * stack
    alteration = objective.draw(lengths, int(lengths[0]))
    output = objective(batch, alteration=alteration)
    total = count = 0.0
    for b, size in enumerate(lengths.tolist()):
        mel = encoder.feature_encoder.log_mel(batch.waveforms[b : b + 1, : batch.lengths[b]])[0]
        heard = mel.clone()
        for r, source in enumerate(alteration.source[b, :size].tolist()):
            heard[0, first + r] = 0.0 if source < 0 else mel[0, first + source]
        heard[0, :, alteration.channels[b]] = 0.0
        latents, _ = encoder.feature_encoder.convolutions(heard, None)
        hidden, _ = encoder.context(encoder.project(latents)[0])
        predictions = objective.prediction(hidden)[0].reshape(-1, M)  # frame f gives log-mel frames f S .. f S + S - 1
        for r in range(size):
            for m in range(M):
                if alteration.chosen[b, r] or alteration.channels[b, m]:
                    total += abs(float(predictions[r, m] - mel[0, first + r, m]))
                    count += 1
    assert output.num_targets == count
    assert float(output.loss) == pytest.approx(total, rel=1e-4)


def test_altered_frames():
    frames = torch.arange(1.0, 5)[None, :, None].expand(1, 4, 2)
    assert altered(frames, torch.tensor([[0, -1, 3, 0]]))[0, :, 0].tolist() == [1, 0, 4, 1]


def test_shares_of_the_alteration():
    objective = model()
    size, batch = 300, 3000
    alteration = objective.draw(torch.full((batch,), size), size)
    chosen, source = alteration.chosen, alteration.source
    own = torch.arange(size).expand_as(source)
    assert float(chosen.float().mean()) == pytest.approx(0.14, abs=0.01)  # 15% less what overlaps
    assert source[~chosen].equal(own[~chosen])
    zeros, kept = (source == -1).any(1), (source == own).all(1)
    assert ((source == -1) == chosen)[zeros].all()  # one throw for the utterance
    assert float(zeros.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.03)
    replaced = source[~zeros & ~kept][chosen[~zeros & ~kept]]
    assert replaced.min() < 30
    assert replaced.max() >= 270
    widths = alteration.channels.sum(1)
    assert set(widths.tolist()) == {0, 1, 2, 3, 4}  # up to 20% of 20 bins
    assert (alteration.channels[:, 1:].int().diff(dim=1).abs().sum(1) <= 2).all()  # one block
    assert alteration.channels.any(0).all()  # anywhere


def test_alterations_stay_inside_an_utterance():
    objective, lengths = model(mask_start_prob=0.5, zero_share=0.0, random_share=1.0), torch.tensor([40, 8, 4, 0])
    for _ in range(20):
        alteration = objective.draw(lengths, 40)
        inside = torch.arange(40) < lengths[:, None]
        assert not alteration.chosen[~inside].any()
        assert (alteration.source < lengths[:, None])[inside].all()


def test_no_channels_is_mockingjay():
    objective = model(channel_share=0.0)
    alteration = objective.draw(torch.tensor([48]), 48)
    assert not alteration.channels.any()
    output = objective(tiny_batch(8000))
    assert output.num_targets % M == 0


def test_only_chosen_places_count():
    objective, batch = model(), tiny_batch(8000)
    none = Alteration(torch.zeros(1, 44, dtype=torch.bool), torch.arange(44)[None], torch.zeros(1, M, dtype=torch.bool))
    output = objective(batch, alteration=none)
    assert output.num_targets == output.loss == 0
    assert float(output.metrics["masked"].result()) == 0
