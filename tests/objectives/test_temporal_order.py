"""Temporal order: where segments are cut, what the encoder hears, both losses against loops, and the permutations."""

import itertools
import math

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.errors import UserError
from speechssl.objectives.temporal_order import TemporalOrder, TemporalOrderConfig, unlike_permutations

N, SEGMENT, GAP = 3, 800, 200
LEAST = N * SEGMENT + (N - 1) * GAP


def model(kind: str = "layer", **numbers) -> TemporalOrder:
    torch.manual_seed(3)
    sizes = {"num_segments": N, "num_permutations": 6, "segment": SEGMENT, "gap": GAP, "head_dim": 8}
    objective = TemporalOrder(TemporalOrderConfig(**(sizes | numbers)), tiny_encoder(kind))
    shake(objective)
    return objective.eval()


def test_segments_lie_inside_the_utterance_with_gaps_between_them():
    objective, lengths = model(), torch.tensor([LEAST, LEAST + 1, LEAST + 150, 50_000]).repeat(500)
    starts, orders, backwards = objective.draw(lengths)
    gaps = starts.diff(dim=1) - SEGMENT
    assert gaps.min() == GAP // 2
    assert gaps.max() == GAP
    assert (starts >= 0).all()
    assert (starts[:, -1] + SEGMENT <= lengths).all()
    assert starts[3::4, 0].max() > 40_000, "anywhere in a long one"
    shortest = starts[0::4]  # no room but what narrow gaps leave
    assert shortest[:, 0].min() == 0
    assert (shortest[:, -1] + SEGMENT).max() == LEAST
    for drawn, count in ((orders, 6), (backwards, 2)):
        expected = len(lengths) / count
        counts = drawn.bincount(minlength=count)
        assert len(counts) == count
        assert ((counts - expected).square() / expected).sum() < 20.6  # chi-square, up to 5 degrees: p = 0.001


def test_what_the_encoder_hears():
    objective = model()
    waveforms = torch.arange(2 * 4000.0).view(2, 4000)
    starts = torch.tensor([[0, 900, 2100], [100, 1000, 3200]])
    orders, backwards = torch.tensor([3, 5]), torch.tensor([0, 1])
    heard = objective.shuffle(waveforms, starts, orders, backwards)
    assert heard.shape == (2, N * SEGMENT)
    for b in range(2):
        for place, segment in enumerate(objective.permutations[orders[b]].tolist()):
            samples = waveforms[b, starts[b, segment] :][:SEGMENT].tolist()
            expected = samples[::-1] if backwards[b] else samples
            assert heard[b, place * SEGMENT : (place + 1) * SEGMENT].tolist() == expected


@pytest.mark.parametrize("kind", ["layer", "group"])
@torch.no_grad()
def test_losses_against_loops(kind):
    objective, batch = model(kind, order_weight=0.5, arrow_weight=2.0), tiny_batch(5000, 4000, LEAST - 1)
    starts, orders, backwards = objective.draw(batch.lengths)
    output = objective(batch, draws=(starts, orders, backwards))
    order, arrow, hits = 0.0, 0.0, 0
    for b in range(2):  # the third is too short
        segments = [batch.waveforms[b, s : s + SEGMENT] for s in starts[b].tolist()]
        segments = [segment.flip(0) if backwards[b] else segment for segment in segments]
        heard = torch.cat([segments[i] for i in objective.permutations[orders[b]].tolist()])
        hidden = objective.encoder(heard[None]).hidden[0]
        bounds = [(i * len(hidden) // N, -(-(i + 1) * len(hidden) // N)) for i in range(N)]
        parts = [hidden[first:last].mean(0) for first, last in bounds]
        # per channel, then per part: the order in which the head reads them
        logits = objective.order_head(torch.stack(parts, dim=1).flatten())
        order -= float(logits.log_softmax(-1)[orders[b]])
        hits += int(logits.argmax() == orders[b])
        logits = objective.arrow_head(sum(parts) / N)
        arrow -= float(logits.log_softmax(-1)[backwards[b]])
    assert output.num_targets == 2
    assert output.loss.item() == pytest.approx(0.5 * order + 2.0 * arrow, rel=1e-5)
    assert output.metrics["order"].result() == pytest.approx(order / 2, rel=1e-5)
    assert output.metrics["arrow"].result() == pytest.approx(arrow / 2, rel=1e-5)
    assert output.metrics["order_accuracy"].result() == pytest.approx(hits / 2)
    assert output.metrics["used"].result() == pytest.approx(2 / 3)


def test_chance_is_what_equal_scores_give():
    objective = model()
    for head in (objective.order_head, objective.arrow_head):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    metrics = objective(tiny_batch(5000, 4000)).metrics
    chance = objective.chance()
    assert chance["order"] == pytest.approx(metrics["order"].result()) == pytest.approx(math.log(6))
    assert chance["arrow"] == pytest.approx(metrics["arrow"].result())
    assert (chance["order_accuracy"], chance["arrow_accuracy"]) == (pytest.approx(1 / 6), 0.5)


def test_nothing_is_said_of_a_batch_of_short_utterances():
    output = model()(tiny_batch(LEAST - 1, 300))
    assert output.num_targets == output.loss == 0
    assert all(metric.values.isfinite().all() for metric in output.metrics.values())


def test_the_shortest_utterance_is_long_enough():
    for kind, segment in (("layer", SEGMENT), ("logmel", 1500)):
        objective = model(kind, segment=segment)
        encoder = objective.encoder
        samples = encoder.feature_encoder.receptive_field + (objective.min_frames - 1) * encoder.hop
        assert objective.samples == N * segment + (N - 1) * GAP
        assert samples - encoder.hop < objective.samples <= samples
        assert encoder.frame_lengths(samples) == objective.min_frames


def test_a_constant_vector_is_named():
    objective, batch = model(), tiny_batch(5000, 4000)
    numbers = {name: metric.result() for name, metric in objective(batch).metrics.items()}
    assert objective.diagnose(numbers) == objective.diagnose({}) == ""
    with torch.no_grad():
        objective.encoder.context.norm.weight.zero_()
    numbers = {name: metric.result() for name, metric in objective(batch).metrics.items()}
    assert "gives every frame the same vector" in objective.diagnose(numbers)


# --------------------------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_permutations(n):
    everything = unlike_permutations(n, math.factorial(n))
    assert sorted(everything) == list(itertools.permutations(range(n)))


@pytest.mark.parametrize(("n", "count"), [(4, 4), (5, 20), (6, 30)])
def test_few_permutations_are_far_apart(n, count):
    chosen = unlike_permutations(n, count)
    assert chosen[0] == tuple(range(n))
    assert len(set(chosen)) == count
    assert chosen == unlike_permutations(n, count)
    assert nearest(chosen) > nearest(list(itertools.permutations(range(n)))[:count])
    assert nearest(chosen) >= n - 2


def nearest(orders) -> int:
    """In how many places the two most alike differ."""
    return min(sum(map(int.__ne__, x, y)) for x, y in itertools.combinations(orders, 2))


def test_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match="num_permutations must be 2 to 24, of 4 segments"):
        TemporalOrderConfig(num_permutations=25)
    with pytest.raises(ValueError, match="num_segments must be 2 to 6"):
        TemporalOrderConfig(num_segments=7)
    with pytest.raises(ValueError, match="segment must be 1 sample"):
        TemporalOrderConfig(segment=0)
    with pytest.raises(UserError, match="3 segments of 40 samples give fewer than 3 frames"):
        model(segment=40)
