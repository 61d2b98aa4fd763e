"""Negatives: never the positive, never padding, never another group; uniform over the rest, or the nearest drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speechssl.nn.negatives import nearest_negatives, pools_by_group, sample_negatives


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(1, 20), st.integers(0, 1000))
def test_never_itself_and_inside_the_pool(sizes, count, seed):
    generator = torch.Generator().manual_seed(seed)
    pool_sizes = torch.tensor(sizes)
    own = (torch.rand(len(sizes), generator=generator) * pool_sizes).long()
    own[::3] = pool_sizes[::3] - 1  # the last place is the one an off-by-one would lose
    negatives = sample_negatives(pool_sizes, own, count, generator=generator)
    assert negatives.shape == (len(sizes), count)
    assert (negatives != own[:, None]).all()
    assert (negatives >= 0).all()
    assert (negatives < pool_sizes[:, None]).all()


@pytest.mark.parametrize("own", [-1, 0, 3, 6])
def test_uniform_over_the_rest(own):
    size, draws = 7, 21_000
    negatives = sample_negatives(torch.tensor([size]), torch.tensor([own]), draws)[0]
    counts = negatives.bincount(minlength=size).float()
    others = torch.tensor([place for place in range(size) if place != own])
    expected = draws / len(others)
    if own >= 0:
        assert counts[own] == 0
    assert ((counts[others] - expected).square() / expected).sum() < 22.5  # chi-square, 6 degrees: p = 0.001


def test_neighbouring_draws_are_independent():
    """All pairs of two negatives of one row come equally often."""
    negatives = sample_negatives(torch.full((9000,), 4), torch.full((9000,), 1), 2)
    pairs = (negatives[:, 0] * 4 + negatives[:, 1]).bincount(minlength=16).float()
    pairs = pairs[pairs > 0]
    assert len(pairs) == 9
    assert ((pairs - 1000).square() / 1000).sum() < 26.2  # chi-square, 8 degrees: p = 0.001


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_pools_against_loops(utterances, padding):
    groups, lengths = (torch.tensor(column) for column in zip(*utterances, strict=True))
    size = max(int(lengths.max()), 1) + padding
    pools, pool_sizes, place = pools_by_group(groups, lengths, size)
    assert pools.shape == (len(groups), len(groups) * size)
    for i in range(len(groups)):
        allowed = [
            j * size + frame for j in range(len(groups)) if groups[j] == groups[i] for frame in range(int(lengths[j]))
        ]
        assert pool_sizes[i] == len(allowed)
        assert pools[i, : len(allowed)].tolist() == allowed
        for frame in range(int(lengths[i])):
            assert pools[i, place[i, frame]] == i * size + frame


def test_pools_and_sampling_together():
    """Frames drawn for an utterance are valid frames of its own speaker, and not the frame itself."""
    groups, lengths, size = torch.tensor([5, 8, 5]), torch.tensor([4, 6, 2]), 7
    pools, pool_sizes, place = pools_by_group(groups, lengths, size)
    valid = torch.arange(size) < lengths[:, None]
    drawn = sample_negatives(pool_sizes[:, None].expand_as(place), place, 200)
    frames = pools.gather(1, drawn.flatten(1)).view_as(drawn)
    utterance, frame = frames // size, frames % size
    own = torch.arange(3)[:, None] * size + torch.arange(size)
    assert (groups[utterance] == groups[:, None, None])[valid].all()
    assert (frame < lengths[utterance])[valid].all()
    assert (frames != own[..., None])[valid].all()
    assert set(frames[0, 0].tolist()) == {1, 2, 3, 14, 15}


# ----------------------------------------------------------------------------------------------------------- hard ones


def drawn_for(lengths: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Own places (B, F) and draws (B, F, count), as objectives make them."""
    own = torch.arange(size).expand(len(lengths), -1)
    return own, sample_negatives(lengths[:, None], own, count).clamp(max=size - 1)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_hard_negatives_are_some_of_those_drawn(lengths, negatives, pool, seed):
    """So they are never the frame itself and never padding: those drawn are neither."""
    torch.manual_seed(seed)
    size = max(lengths) + 2
    own, drawn = drawn_for(torch.tensor(lengths), size, negatives * pool)
    hard = nearest_negatives(torch.randn(len(lengths), size, 4), own, drawn, negatives)
    assert hard.shape == (len(lengths), size, negatives)
    for b, length in enumerate(lengths):
        for frame in range(length):
            assert frame not in hard[b, frame]
            assert (hard[b, frame] < length).all()
            left = drawn[b, frame].tolist()
            for place in hard[b, frame].tolist():
                left.remove(place)  # no more often than it was drawn


def test_hard_negatives_against_loops():
    vectors, lengths = torch.randn(2, 7, 4), torch.tensor([7, 5])
    own, drawn = drawn_for(lengths, 7, 12)
    hard = nearest_negatives(vectors, own, drawn, 3)
    for b in range(2):
        for frame in range(7):
            likeness = [
                float(torch.cosine_similarity(vectors[b, frame], vectors[b, i], dim=0)) for i in drawn[b, frame]
            ]
            nearest = sorted(range(12), key=lambda i: -likeness[i])[:3]
            assert hard[b, frame].tolist() == drawn[b, frame, nearest].tolist()


def test_a_pool_of_one_keeps_all():
    own, drawn = drawn_for(torch.tensor([8]), 8, 5)
    hard = nearest_negatives(torch.randn(1, 8, 4), own, drawn, 5)
    assert hard.sort(-1).values.equal(drawn.sort(-1).values)


def test_rows_need_not_be_the_frames_in_order():
    vectors, own = torch.randn(1, 6, 4), torch.tensor([[5, 0, 5]])
    drawn = torch.tensor([[[0, 1, 2, 3, 4]] * 3])
    drawn[0, 1, 0] = 5
    hard = nearest_negatives(vectors, own, drawn, 2)
    assert hard[0, 0].equal(hard[0, 2])
    likeness = torch.cosine_similarity(vectors[0, :1], vectors[0], dim=-1)
    likeness[0] = -2
    assert hard[0, 1].tolist() == likeness.topk(2).indices.tolist()


def test_what_is_excluded_comes_last():
    vectors = torch.ones(1, 5, 3)
    vectors[0, 4] = -1
    own, drawn = torch.tensor([[0]]), torch.tensor([[[1, 2, 4, 3]]])
    excluded = torch.tensor([[[True, True, False, True]]])
    assert nearest_negatives(vectors, own, drawn, 1, excluded=excluded).tolist() == [[[4]]]
    both = nearest_negatives(vectors, own, drawn, 2, excluded=excluded)
    assert both[0, 0, 0] == 4, "and only then what must not be"
    assert both[0, 0, 1] in (1, 2, 3)


def test_choosing_gives_no_gradient_and_survives_autocast():
    vectors = torch.randn(1, 6, 4, requires_grad=True)
    own, drawn = drawn_for(torch.tensor([6]), 6, 8)
    expected = nearest_negatives(vectors, own, drawn, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_negatives(vectors, own, drawn, 2).equal(expected)
    assert not expected.requires_grad
