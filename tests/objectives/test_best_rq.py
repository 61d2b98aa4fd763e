"""BEST-RQ: loss against loops, what is heard behind the mask, and what is said when there is nothing to learn."""

import math
from dataclasses import replace

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.objectives.best_rq import BestRQ, BestRQConfig

V = 9


def model(**numbers) -> BestRQ:
    torch.manual_seed(3)
    config = BestRQConfig(**({"mask_start_prob": 0.2, "mask_length": 3, "code_dim": 4, "codebook_size": V} | numbers))
    objective = BestRQ(config, tiny_encoder("logmel"))
    shake(objective)
    return objective.eval()


@torch.no_grad()
def test_loss_against_loops():
    objective, batch = model(), tiny_batch(8000, 6000)
    encoder = objective.encoder
    lengths = encoder.frame_lengths(batch.lengths)
    mask = torch.rand(2, int(lengths[0])) < 0.4
    mask &= torch.arange(mask.shape[1]) < lengths[:, None]
    noise = torch.randn(2, 48, 20)
    output = objective(batch, mask=mask, noise=noise)
    total = hits = 0.0
    for b in range(2):
        mel = encoder.feature_encoder.log_mel(batch.waveforms[b : b + 1, : batch.lengths[b]])[0]
        heard, codes = mel.clone(), {}
        for f in mask[b].nonzero().squeeze(1).tolist():
            window = mel[0, 4 * f : 4 * f + 7]  # what two convolutions of kernel 3 and stride 2 see
            own = window[1:5]  # its middle
            projected = objective.quantizer.projection @ own.flatten()
            scores = [float(torch.cosine_similarity(projected, c, dim=0)) for c in objective.quantizer.codebook]
            codes[f] = scores.index(max(scores))
            heard[0, 4 * f + 1 : 4 * f + 5] = 0.1 * noise[b, 4 * f + 1 : 4 * f + 5]
        latents, _ = encoder.feature_encoder.convolutions(heard, None)
        hidden, _ = encoder.context(encoder.project(latents)[0])
        for f, code in codes.items():
            logits = objective.prediction(hidden[0, f]).tolist()
            total += math.log(sum(math.exp(x) for x in logits)) - logits[code]
            hits += logits.index(max(logits)) == code
    assert output.num_targets == mask.sum()
    assert float(output.loss) == pytest.approx(total, rel=1e-4)
    assert output.metrics["accuracy"].values.tolist() == [hits, float(mask.sum())]


@torch.no_grad()
def test_masked_frames_are_not_heard():
    objective, batch = model(), tiny_batch(8000)
    mask = torch.zeros(1, objective.encoder.frame_lengths(8000), dtype=torch.bool)
    mask[0, 3:6] = True
    heard = []
    objective.encoder.feature_encoder.convolutions.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    objective(batch, mask=mask)
    mel = objective.log_mel(batch)[0]
    changed = (heard[0] != mel).any(-1)[0]
    assert changed.nonzero().squeeze(1).tolist() == list(range(13, 25))
    assert 0.07 < float(heard[0][0, 13:25].std()) < 0.13


def test_targets_are_those_of_the_whole_utterance_and_never_change():
    objective, batch = model(), tiny_batch(8000)
    stacked = objective.stacked(objective.log_mel(batch)[0]).flatten(0, 1)
    before = objective.quantizer(stacked)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    objective.train()(batch).loss.backward()
    optimizer.step()
    assert objective.quantizer(stacked).equal(before)


def test_chance_is_a_guess_over_the_codebook():
    objective = model(codebook_size=64)
    with torch.no_grad():
        objective.prediction.weight.zero_()
        objective.prediction.bias.zero_()
    numbers = {k: m.result() for k, m in objective(tiny_batch(8000, 6000)).metrics.items()}
    assert numbers["cross_entropy"] == pytest.approx(objective.chance()["cross_entropy"], rel=1e-5)


def test_one_code_for_everything_is_named():
    objective, batch = model(), tiny_batch(30_000)
    healthy = {k: m.result() for k, m in objective(batch).metrics.items()}
    assert healthy["code_perplexity"] > 2
    assert objective.diagnose(healthy) == ""
    silent = replace(batch, waveforms=torch.zeros_like(batch.waveforms))
    numbers = {k: m.result() for k, m in objective(silent).metrics.items()}
    assert "nearly all targets are the same code" in objective.diagnose(numbers)
