"""APC's L1 loss against loops over utterances and frames, and VQ-APC's codes."""

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder
from tiny_ahead import apc_encoder

from speechssl.errors import UserError
from speechssl.nn.quantize import perplexity
from speechssl.objectives.apc import APC, APCConfig


def model(ahead: int = 2, **context) -> APC:
    torch.manual_seed(3)
    objective = APC(APCConfig(ahead=ahead), apc_encoder(**context))
    shake(objective)
    return objective.eval()


def results(objective, batch) -> dict[str, float]:
    return {name: metric.result() for name, metric in objective(batch).metrics.items()}


@pytest.mark.parametrize("context", [{}, {"quantize_after": 3}])
@pytest.mark.parametrize("ahead", [1, 3])
@torch.no_grad()
def test_loss_against_loops(ahead, context):
    objective, batch = model(ahead, **context), tiny_batch(8000, 6000, 3000)
    total, of_mean, of_copy, count = 0.0, 0.0, 0.0, 0
    for b in range(3):
        waveform = batch.waveforms[b : b + 1, : batch.lengths[b]]
        mel, _ = objective.encoder.feature_encoder.log_mel(waveform)
        predicted = objective.head(objective.encoder(waveform).hidden)[0]
        for t in range(mel.shape[1] - ahead):
            true = mel[0, t + ahead]
            total += sum(abs(float(predicted[t, m] - true[m])) for m in range(8)) / 8
            of_mean += float(true.abs().mean())
            of_copy += float((true - mel[0, t]).abs().mean())
            count += 1
    output = objective(batch)
    assert output.num_targets == count
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.metrics["l1"].result() == pytest.approx(total / count, rel=1e-5)
    assert output.metrics["gain_over_mean"].result() == pytest.approx(1 - total / of_mean, abs=1e-5)
    assert output.metrics["gain_over_copy"].result() == pytest.approx(1 - total / of_copy, abs=1e-5)


def test_a_prediction_of_the_mean_gains_nothing():
    objective = model()
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    assert results(objective, tiny_batch(8000))["gain_over_mean"] == objective.chance()["gain_over_mean"] == 0


@torch.no_grad()
def test_codes_are_those_of_the_quantized_layer():
    objective, batch = model(quantize_after=2, num_codebooks=2), tiny_batch(8000, 6000)
    metrics = objective(batch).metrics
    codes, probs = torch.zeros(2, 24), torch.zeros(2, 24)
    for b in range(2):
        layer = objective.encoder(batch.waveforms[b : b + 1, : batch.lengths[b]]).layers[2]
        quantized = objective.quantizer(layer[0])
        probs += quantized.probs.sum(0)
        for g in range(2):
            codes[g] += quantized.codes[:, g].bincount(minlength=24)
    torch.testing.assert_close(metrics["code_perplexity"].values, codes)
    torch.testing.assert_close(metrics["prob_perplexity"].values, probs)
    assert metrics["code_perplexity"].result() == pytest.approx(float(perplexity(codes)))


def test_one_code_for_every_frame_is_named():
    objective, batch = model(quantize_after=3, num_codebooks=2), tiny_batch(8000, 6000)
    assert objective.diagnose(results(objective, batch)) == ""
    with torch.no_grad():
        objective.quantizer.logits.weight.zero_()
    assert "gives every frame the same code" in objective.diagnose(results(objective, batch))
    assert objective.diagnose({}) == model().diagnose(results(model(), batch)) == ""


def test_without_a_quantizer_there_are_no_codes():
    assert "code_perplexity" not in model()(tiny_batch(8000)).metrics


def test_predictions_do_not_see_what_they_predict():
    """All but the normalisation of the whole utterance, which is held fixed here."""
    objective = model(quantize_after=2)
    mel = torch.randn(1, 12, 8)
    changed = mel.clone()
    changed[:, 7:] += 1
    context, project = objective.encoder.context, objective.encoder.project
    before, after = (objective.head(context(project(x)[0])[0]) for x in (mel, changed))
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_learnt_frames_and_contexts_that_see_the_future_are_refused():
    with pytest.raises(UserError, match=r"dims: \[\], kernels: \[\], strides: \[\]"):
        APC(APCConfig(), tiny_encoder("recurrent"))
    encoder = apc_encoder()
    seeing = tiny_encoder("layer")
    seeing.feature_encoder = encoder.feature_encoder
    with pytest.raises(UserError, match=r"encoder\.context\.name=recurrent"):
        APC(APCConfig(), seeing)
    with pytest.raises(ValueError, match="1 frame or more"):
        APCConfig(ahead=0)


def test_utterances_too_short():
    objective = model(ahead=3)
    with pytest.raises(ValueError, match="utterances of 3 frames are too short to predict 3 frames ahead"):
        objective(tiny_batch(1200))
    assert objective(tiny_batch(1600)).num_targets == 1
    assert objective.min_frames == 4
