"""SimCLR's loss through the whole objective, against a loop over the anchors."""

import math

import pytest
import torch
from cases import make, two_utterances
from tiny import tiny_batch

from speechssl.objectives.views import View


@torch.no_grad()
def test_loss_against_loops():
    objective = make("simclr").eval()
    first, second = torch.randn(5, 3000), torch.randn(5, 3000)
    output = objective(tiny_batch(1), views=(View(first, None), View(second, None)))
    projected = [objective.projection(objective.encoder(x).hidden.mean(1)) for x in (first, second)]
    views = torch.cat([p / p.norm(dim=1, keepdim=True) for p in projected])  # k and k + 5 are partners
    total = 0.0
    for k in range(10):
        scores = {n: float(views[k] @ views[n]) / objective.config.temperature for n in range(10) if n != k}
        total -= math.log(math.exp(scores[(k + 5) % 10]) / sum(math.exp(s) for s in scores.values()))
    assert output.num_targets == 5
    assert output.loss.item() == pytest.approx(total / 2, rel=1e-4)


def test_a_lone_utterance_has_no_loss_to_learn_from():
    output = make("simclr")(tiny_batch(8000))
    assert output.loss == 0
    assert output.num_targets == 1


def test_unrelated_views_are_at_chance():
    """log(2 N - 1) for equal scores, the most that random ones cannot stay below for long."""
    objective = make("simclr")
    with torch.no_grad():
        objective.projection[-1].weight.zero_()
    output = objective(two_utterances("simclr"))
    assert output.loss.item() / 6 == pytest.approx(math.log(11), rel=1e-5)
    assert output.metrics["accuracy"].result() == 0
