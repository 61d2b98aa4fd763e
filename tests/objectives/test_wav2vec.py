"""wav2vec's step-wise binary cross-entropy against loops over (utterance, step, frame), and what it may see."""

import math

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder
from tiny_ahead import wav2vec_encoder

from speechssl.errors import UserError
from speechssl.objectives.wav2vec import Wav2Vec, Wav2VecConfig

STEPS, N = 3, 4


def model(**numbers) -> Wav2Vec:
    torch.manual_seed(3)
    objective = Wav2Vec(Wav2VecConfig(**({"num_steps": STEPS, "num_negatives": N} | numbers)), wav2vec_encoder())
    shake(objective)
    return objective.eval()


def drawn(objective, batch):
    """The negatives that `forward` would draw (B, F, N), and the latents' lengths."""
    latents, frames = objective.encoder.feature_encoder(batch.waveforms, batch.lengths)
    return objective._draw(latents, frames), frames


@pytest.mark.parametrize("first_step", [1, 3])
@torch.no_grad()
def test_loss_against_loops(first_step):
    objective, batch = model(first_step=first_step), tiny_batch(3000, 2000, 1200)
    negatives, frames = drawn(objective, batch)
    output = objective(batch, negatives=negatives)
    total, count, hits = 0.0, 0, 0
    per_step = dict.fromkeys(range(first_step, first_step + STEPS), 0.0)
    for b in range(3):
        encoded = objective.encoder(batch.waveforms[b : b + 1, : batch.lengths[b]])
        latents, context = encoded.latents[0], encoded.hidden[0]
        predictions = objective.heads(context).view(len(context), STEPS, -1)
        for k, step in enumerate(per_step):
            for i in range(int(frames[b]) - step):
                prediction, target = predictions[i, k], i + step
                right = float(latents[target] @ prediction)
                wrong = [float(latents[n] @ prediction) for n in negatives[b, target]]
                loss = math.log(1 + math.exp(-right)) + sum(math.log(1 + math.exp(score)) for score in wrong)
                per_step[step] += loss
                total += loss
                hits += right > max(wrong)
                count += 1
    assert output.num_targets == count
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.metrics["bce"].result() == pytest.approx(total / count, rel=1e-5)
    assert output.metrics["accuracy"].result() == pytest.approx(hits / count)
    for step, loss in per_step.items():
        assert output.metrics[f"bce/{step}"].values[0].item() == pytest.approx(loss, rel=1e-5)
    assert sum(output.metrics[f"accuracy/{step}"].values[0].item() for step in per_step) == hits


@pytest.mark.parametrize("hard_pool", [0, 1, 4])
def test_negatives_are_other_frames_of_the_utterance(hard_pool):
    objective, batch = model(num_negatives=20, hard_pool=hard_pool), tiny_batch(3000, 2000, 1200)
    negatives, frames = drawn(objective, batch)
    assert negatives.shape[-1] == 20
    for b in range(3):
        length = int(frames[b])
        assert (negatives[b, :length] < length).all()
        assert (negatives[b, :length] != torch.arange(length)[:, None]).all()


def test_hard_negatives_are_harder():
    """They resemble the target more than uniform ones, and so score more."""
    batch, likeness = tiny_batch(6000), {}
    for hard_pool in (0, 4):
        objective = model(num_negatives=6, hard_pool=hard_pool)
        negatives, _ = drawn(objective, batch)
        latents = objective.encoder.feature_encoder(batch.waveforms)[0][0]
        likeness[hard_pool] = torch.cosine_similarity(latents[:, None], latents[negatives[0]], dim=-1).mean()
    assert likeness[4] > likeness[0] + 0.02


def test_chance_is_the_best_score_that_is_the_same_for_all():
    objective = model()
    torch.nn.init.zeros_(objective.heads.weight)
    torch.nn.init.zeros_(objective.heads.bias)
    chance, steps = objective.chance(), []
    for bias in (math.log(1 / N) - 0.1, math.log(1 / N), math.log(1 / N) + 0.1):
        positive = math.log(1 + math.exp(-bias))
        steps.append(positive + N * math.log(1 + math.exp(bias)))
    assert chance["bce"] == pytest.approx(steps[1])
    assert min(steps) == steps[1]
    metrics = objective(tiny_batch(3000)).metrics
    assert metrics["bce"].result() == pytest.approx((N + 1) * math.log(2))
    assert metrics["accuracy"].result() == 0, "a tie is not a hit"
    assert chance["accuracy"] == pytest.approx(1 / (N + 1))


def test_constant_latents_are_named():
    objective, batch = model(), tiny_batch(3000, 2000)
    healthy = {name: metric.result() for name, metric in objective(batch).metrics.items()}
    assert objective.diagnose(healthy) == ""
    assert objective.diagnose({}) == ""
    with torch.no_grad():
        objective.encoder.feature_encoder.convolutions.layers[-1].norm_weight.zero_()
        objective.encoder.feature_encoder.convolutions.layers[-1].norm_bias.fill_(1.0)
    collapsed = {name: metric.result() for name, metric in objective(batch).metrics.items()}
    assert "the same vector in every frame" in objective.diagnose(collapsed)


def test_a_context_that_sees_the_future_is_refused():
    with pytest.raises(UserError, match=r"encoder\.context\.name=causal_convolution"):
        Wav2Vec(Wav2VecConfig(), tiny_encoder("layer"))
    Wav2Vec(Wav2VecConfig(), tiny_encoder("layer", causal=True))
    Wav2Vec(Wav2VecConfig(), tiny_encoder("recurrent"))


def test_utterances_too_short():
    objective = model()
    samples = objective.encoder.feature_encoder.receptive_field + 2 * objective.encoder.hop
    with pytest.raises(ValueError, match="utterances of 3 frames are too short to predict 3 frames ahead"):
        objective(tiny_batch(samples))
    output = objective(tiny_batch(samples + objective.encoder.hop))  # min_frames
    assert output.num_targets == 1
    assert objective.min_frames == 4


def test_numbers_that_make_no_sense():
    for numbers in ({"num_steps": 0}, {"first_step": 0}, {"num_negatives": 0}, {"hard_pool": -1}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Wav2VecConfig(**numbers)
