"""Losses against nested loops over the papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechssl.nn.losses import contrastive_logits, diversity_loss, first_is_right

B, M, K, D, TEMPERATURE = 2, 5, 3, 4, 0.1


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_contrastive_loss_is_equation_3():
    predictions, targets = torch.randn(B, M, D), torch.randn(B, M, D)
    negatives = torch.randint(0, M, (B, M, K))
    logits = contrastive_logits(predictions, targets, negatives, TEMPERATURE)
    assert logits.shape == (B, M, K + 1)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.zeros(B * M, dtype=torch.long), reduction="sum")
    expected = 0.0
    for b in range(B):
        for m in range(M):
            right = math.exp(cosine(predictions[b, m], targets[b, m]) / TEMPERATURE)
            wrong = sum(math.exp(cosine(predictions[b, m], targets[b, n]) / TEMPERATURE) for n in negatives[b, m])
            expected -= math.log(right / (right + wrong))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_contrastive_logits_are_wide_and_finite():
    predictions = torch.randn(B, M, D, dtype=torch.bfloat16)
    targets = torch.zeros(B, M, D, requires_grad=True)  # a vector without a direction
    with torch.autocast("cpu", torch.bfloat16):
        logits = contrastive_logits(predictions, targets, torch.zeros(B, M, K, dtype=torch.long), TEMPERATURE)
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert targets.grad.isfinite().all()


def test_diversity_loss():
    probs = torch.randn(6, 2, 5).softmax(-1)
    used = 0.0
    for g in range(2):
        mean = [sum(float(probs[n, g, v]) for n in range(6)) / 6 for v in range(5)]
        used += math.exp(-sum(p * math.log(p) for p in mean))
    assert float(diversity_loss(probs)) == pytest.approx((10 - used) / 10, abs=1e-5)


def test_diversity_loss_falls_as_codes_are_used():
    logits = torch.randn(50, 2, 5, requires_grad=True)
    before = diversity_loss((logits * 5).softmax(-1))
    (gradient,) = torch.autograd.grad(before, logits)
    assert diversity_loss(((logits - 10 * gradient) * 5).softmax(-1)) < before
    assert float(diversity_loss(torch.full((7, 2, 5), 0.2))) == pytest.approx(0, abs=1e-5)


def test_a_tie_is_not_a_hit():
    logits = torch.tensor([[2.0, 1.0, 1.5], [1.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, -torch.inf, -torch.inf]])
    assert first_is_right(logits).tolist() == [True, False, False, True]
