"""Masked autoencoder: loss against loops, and that the encoder sees only what is visible."""

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder, tiny_transformer

from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import LogMelConfig
from speechssl.nn.sinusoidal import sinusoids
from speechssl.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderConfig


def model(encoder=None, **numbers) -> MaskedAutoencoder:
    torch.manual_seed(3)
    sizes = {"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2}
    objective = MaskedAutoencoder(MaskedAutoencoderConfig(**(sizes | numbers)), encoder or tiny_encoder("patches"))
    shake(objective)
    return objective.eval()


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_loss_against_loops(normalize):
    """Positions and blocks one utterance at a time, with visible patches alone, then all tokens in the decoder."""
    objective, batch = model(normalize_targets=normalize), tiny_batch(8000, 5000)
    encoder, context, decoder = objective.encoder, objective.encoder.context, objective.decoder
    lengths = encoder.frame_lengths(batch.lengths)
    mask = objective.draw_mask(lengths, int(lengths[0]))
    output = objective(batch, mask=mask)
    total = 0.0
    for b, frames in enumerate(lengths.tolist()):
        mel = encoder.feature_encoder.log_mel(batch.waveforms[b : b + 1, : batch.lengths[b]])[0]
        projected, _ = encoder.project(encoder.feature_encoder.convolutions(mel, None)[0])
        seen = [f for f in range(frames) if not mask[b, f]]
        x = projected[:, seen] + sinusoids(torch.tensor([seen]), 32)
        for block in context.blocks:
            x = block(x)
        embedded = objective.bridge(context.norm(x))[0]
        tokens = objective.mask_embedding.expand(1, frames, -1).clone()
        for place, row in zip(seen, embedded, strict=True):
            tokens[0, place] = row
        predictions = objective.prediction(decoder(tokens)[0])[0]
        for f in mask[b, :frames].nonzero().squeeze(1).tolist():
            patch = mel[0, 4 * f : 4 * f + 4].flatten()
            if normalize:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total += sum(float(p - t) ** 2 for p, t in zip(predictions[f], patch, strict=True)) / len(patch)
    assert output.num_targets == mask.sum()
    assert float(output.loss) == pytest.approx(total, rel=1e-4)


def test_only_visible_patches_enter_the_encoder():
    objective, batch = model(), tiny_batch(8000, 8000)  # 12 patches each
    entered = []
    objective.encoder.context.register_forward_pre_hook(lambda m, args: entered.append(args))
    objective(batch)
    x, lengths = entered[0]
    assert x.shape == (2, 3, 32)
    assert lengths is None  # as many in each: the fast path
    objective(tiny_batch(8000, 5000))
    assert entered[1][0].shape[1] == 3
    assert entered[1][1].tolist() == [3, 2]


@torch.no_grad()
def test_masked_patches_do_not_leak():
    """What is masked changes the targets, and nothing that is predicted."""
    objective, predicted = model(), []
    objective.prediction.register_forward_hook(lambda m, args, out: predicted.append(out))
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 4:9] = True
    mel = torch.randn(1, 48, 20)
    objective.encoder.feature_encoder.log_mel = lambda waveforms, lengths: (mel, None)
    losses = [objective(tiny_batch(8000), mask=mask).loss]
    mel = mel.clone()
    mel[:, 16:36] += torch.randn(1, 20, 20)
    losses.append(objective(tiny_batch(8000), mask=mask).loss)
    assert predicted[0].equal(predicted[1])
    assert not losses[0].equal(losses[1])


def test_count_of_masked_patches():
    objective, lengths = model(), torch.tensor([100, 12, 3, 2, 1, 0])
    masks = torch.stack([objective.draw_mask(lengths, 100) for _ in range(50)])
    assert (masks.sum(2) == torch.tensor([75, 9, 2, 1, 0, 0])).all()
    assert not masks[:, torch.arange(100) >= lengths[:, None]].any()
    shares = masks[:, 0].float().mean(0)
    assert shares.min() > 0.4  # any patch, none more often than others
    assert shares.max() <= 1
    assert masks[:, 1, :12].any(0).all()


def test_guessing_zeros_explains_nothing():
    objective = model()
    with torch.no_grad():
        objective.prediction.weight.zero_()
        objective.prediction.bias.zero_()
    explained = objective(tiny_batch(8000)).metrics["explained"].result()
    assert explained == pytest.approx(objective.chance()["explained"], abs=1e-6)


def test_encoders_that_cannot_serve_are_named():
    with pytest.raises(UserError, match="patches that do not overlap"):
        model(tiny_encoder("logmel"))
    features = LogMelConfig(num_bins=20, dims=(16,), kernels=(4,), strides=(4,))
    with pytest.raises(UserError, match=r"encoder\.context\.name=sinusoidal"):
        model(Encoder(EncoderConfig(feature_encoder=features, context=tiny_transformer())))
    with pytest.raises(ValueError, match="mask_ratio"):
        MaskedAutoencoderConfig(mask_ratio=1.0)
