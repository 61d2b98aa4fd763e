"""MoCo: InfoNCE against loops, and a queue that is written after the update, in order, over its oldest keys."""

import math

import pytest
import torch
from cases import make, two_utterances
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_batch

from speechssl.nn.view_losses import unit
from speechssl.objectives.views import View


@torch.no_grad()
def test_loss_against_loops():
    objective = make("moco").eval()
    for parameter in objective.teacher.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    first, second = torch.randn(4, 5000), torch.randn(4, 5000)
    output = objective(tiny_batch(1), views=(View(first, None), View(second, None)))
    teacher, temperature = objective.teacher.module, objective.config.temperature
    queries = objective.projection(objective.encoder(first).hidden.mean(1))
    keys = teacher.projection(teacher.encoder(second).hidden.mean(1))
    total, hits = 0.0, 0
    for q, k in zip(queries, keys, strict=True):
        cosines = [float(q @ other / (q.norm() * other.norm())) for other in (k, *objective.queue)]
        total -= math.log(math.exp(cosines[0] / temperature) / sum(math.exp(c / temperature) for c in cosines))
        hits += cosines[0] > max(cosines[1:])
    assert output.num_targets == 4
    assert output.loss.item() == pytest.approx(total, rel=1e-4)
    assert output.metrics["infonce"].result() == pytest.approx(total / 4, rel=1e-4)
    assert output.metrics["queue_accuracy"].result() == hits / 4


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_the_queue_holds_the_newest_keys(sizes):
    """Against a ring written one key after another; also more keys at once than it holds."""
    objective = make("moco")
    expected, place, number = objective.queue.clone(), 0, 0
    for size in sizes:
        keys = torch.arange(number, number + size).float()[:, None].expand(-1, 8)
        objective.enqueue(keys)
        for key in keys:
            expected[place] = key
            place = (place + 1) % len(expected)
        number += size
        assert objective.queue.equal(expected)
        assert objective.place == place


def test_keys_enter_after_the_update():
    objective, batch = make("moco"), two_utterances("moco")
    before = objective.queue.clone()
    views = [View(torch.randn(n, 4000), None) for n in (3, 3, 2, 2)]
    keys = torch.cat([unit(objective.teacher(view)[1]) for view in (views[1], views[3])])
    objective.before_step(0)
    objective(batch, views=(views[0], views[1]))
    objective(batch, views=(views[2], views[3]))
    assert objective.queue.equal(before), "not before the update is made"
    objective.after_step(1)
    torch.testing.assert_close(objective.queue[:5], keys)
    assert objective.queue[5:].equal(before[5:])
    assert objective.place == 5
    objective.after_step(2)
    assert objective.place == 5, "once"


def test_keys_of_an_update_that_was_not_made_are_dropped():
    objective = make("moco")
    objective(two_utterances("moco"))
    objective.before_step(1)
    objective.after_step(2)
    assert objective.place == 0


def test_the_queue_starts_as_directions():
    objective = make("moco")
    torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(12))
    assert {"queue", "place"} <= objective.state_dict().keys()
    chance = objective.chance()
    assert chance["infonce"] == pytest.approx(math.log(13))
    assert chance["queue_accuracy"] == pytest.approx(1 / 13)
