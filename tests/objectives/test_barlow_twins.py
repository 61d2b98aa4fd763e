"""Barlow Twins through the whole objective, against loops over the cross-correlation."""

import pytest
import torch
from cases import make, two_utterances
from tiny import tiny_batch

from speechssl.objectives.barlow_twins import BarlowTwinsConfig
from speechssl.objectives.views import View


@torch.no_grad()
def test_loss_against_loops():
    objective = make("barlow_twins").eval()
    first, second = torch.randn(12, 3000), torch.randn(12, 3000)
    objective.projection[-1].weight.mul_(100)  # so that the small number that joins the variances does not show
    one, two = (objective.projection(objective.encoder(x).hidden.mean(1)) for x in (first, second))
    one, two = one - one.mean(0), two - two.mean(0)
    output = objective(tiny_batch(1), views=(View(first, None), View(second, None)))
    loss, diagonal, others = 0.0, [], []
    for i in range(8):
        for j in range(8):
            c = float((one[:, i] * two[:, j]).sum() / (one[:, i].norm() * two[:, j].norm()))
            loss += (1 - c) ** 2 if i == j else objective.config.redundancy_weight * c**2
            (diagonal if i == j else others).append(c)
    assert output.num_targets == 12
    assert output.loss.item() == pytest.approx(12 * loss, rel=1e-3)
    assert output.metrics["diagonal"].result() == pytest.approx(sum(diagonal) / 8, abs=1e-3)
    root = (sum(c * c for c in others) / 56) ** 0.5
    assert output.metrics["off_diagonal"].result() == pytest.approx(root, rel=1e-3)


def test_each_view_has_its_own_statistics():
    """As published: the projection's batch norms see one view at a time."""
    objective = make("barlow_twins")
    norm = objective.projection[1]
    norm.momentum = 1.0
    seen = []
    norm.register_forward_hook(lambda module, args, output: seen.append(module.running_mean.clone()))
    objective(two_utterances("barlow_twins"))
    assert len(seen) == 2
    assert not seen[0].equal(seen[1])


def test_one_channel_is_no_twin():
    with pytest.raises(ValueError, match="projection_dim must be 2 or more"):
        BarlowTwinsConfig(projection_dim=1)
