"""Span masks: the count law, spans unbroken, nothing on padding, short utterances keep a loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn.masking import channel_mask, span_mask

lengths_strategy = st.lists(st.integers(0, 60), min_size=1, max_size=5)
rules = {"start_prob": st.floats(0, 0.5), "span": st.integers(1, 12), "min_spans": st.integers(0, 3)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(mask: torch.Tensor) -> list[int]:
    """Lengths of the maximal runs of masked frames."""
    return [len(run) for run in "".join("x" if m else " " for m in mask.tolist()).split()]


def mask_by_loops(lengths, size, start_prob, span, min_spans, generator):
    """The same draws, one utterance and one span at a time."""
    u = torch.rand(len(lengths), 1, generator=generator)
    draw = torch.rand(len(lengths), size, generator=generator)
    mask = torch.zeros(len(lengths), size, dtype=torch.bool)
    for i, frames in enumerate(lengths):
        width = max(min(span, max(frames - max(min_spans, 1), 1), frames - 1), 0)
        places = frames - width + 1 if width else 0
        wanted = max(math.floor(torch.tensor(start_prob) * frames + u[i]), min_spans)
        for start in draw[i, :places].argsort()[: min(wanted, places)].tolist():
            mask[i, start : start + width] = True
    return mask


@given(lengths_strategy, st.integers(0, 1000), st.fixed_dictionaries(rules))
def test_against_loops(lengths, seed, rule):
    size = max(*lengths, 1)
    mask = span_mask(torch.tensor(lengths), size, **rule, generator=seeded(seed))
    assert mask.equal(mask_by_loops(lengths, size, **rule, generator=seeded(seed)))


@given(lengths_strategy, st.integers(0, 1000), st.fixed_dictionaries(rules), st.integers(0, 5))
def test_spans_are_unbroken_and_off_the_padding(lengths, seed, rule, padding):
    size = max(*lengths, 1) + padding
    mask = span_mask(torch.tensor(lengths), size, **rule, generator=seeded(seed))
    assert mask.shape == (len(lengths), size)
    for row, frames in zip(mask, lengths, strict=True):
        assert not row[frames:].any()
        room = max(frames - max(rule["min_spans"], 1), 1)
        assert all(run >= min(rule["span"], room, frames - 1) for run in runs(row))


@given(st.integers(2, 200), st.integers(0, 1000), st.floats(0, 0.5), st.integers(0, 4))
def test_count_law(frames, seed, start_prob, min_spans):
    """With spans of one frame every span is seen: floor(p F + u) of them, within min_spans and the places there are."""
    mask = span_mask(
        torch.tensor([frames]), frames, start_prob=start_prob, span=1, min_spans=min_spans, generator=seeded(seed)
    )
    fewest = math.floor(start_prob * frames - 1e-4)
    assert min(max(fewest, min_spans), frames) <= mask.sum() <= min(max(fewest + 1, min_spans), frames)


def test_count_is_right_on_average():
    mask = span_mask(torch.full((4000,), 10), 10, start_prob=0.125, span=1, min_spans=0)
    assert abs(mask.sum(1).float().mean() - 1.25) < 0.03


@given(st.integers(3, 40), st.integers(0, 1000), st.integers(1, 12))
def test_short_utterances_keep_two_masked_frames(frames, seed, span):
    mask = span_mask(torch.tensor([frames]), frames, start_prob=0.065, span=span, min_spans=2, generator=seeded(seed))
    assert mask.sum() >= 2


def test_nothing_to_mask():
    mask = span_mask(torch.tensor([0, 1, 50]), 50, start_prob=0.5, span=10, min_spans=2)
    assert mask.sum(1)[:2].tolist() == [0, 0]


def test_published_coverage():
    """0.065 x 10 masks about 49% of 15 s, 14.7 frames a run (wav2vec 2.0, section 4.2)."""
    mask = span_mask(torch.full((400,), 750), 750, start_prob=0.065, span=10)
    assert mask.float().mean() == pytest.approx(0.49, abs=0.02)
    lengths = [run for row in mask for run in runs(row)]
    assert sum(lengths) / len(lengths) == pytest.approx(14.7, abs=0.6)


def test_padding_does_not_change_how_much_is_masked():
    lengths = torch.tensor([750, 100]).repeat(300)
    share = span_mask(lengths, 750, start_prob=0.065, span=10).sum(1) / lengths
    alone = span_mask(torch.full((300,), 100), 100, start_prob=0.065, span=10).sum(1) / 100
    assert share[1::2].mean() == pytest.approx(float(alone.mean()), abs=0.02)


def test_starts_are_uniform():
    frames, span, rows = 12, 3, 20_000
    mask = span_mask(torch.full((rows,), frames), frames, start_prob=0.0, span=span, min_spans=1)
    starts = mask.long().argmax(1).bincount(minlength=frames - span + 1).float()
    expected = rows / (frames - span + 1)
    assert len(starts) == frames - span + 1
    assert ((starts - expected).square() / expected).sum() < 28  # chi-square, 9 degrees of freedom: p = 0.001


def test_a_generator_decides():
    lengths = torch.tensor([50, 40])
    draws = [span_mask(lengths, 50, start_prob=0.1, span=4, generator=seeded(s)) for s in (1, 1, 2)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_channel_mask():
    mask = channel_mask(500, 64, start_prob=0.02, span=8, device="cpu")
    assert mask.shape == (500, 64)
    assert all(run >= 8 for row in mask for run in runs(row))
    assert 0.1 < mask.float().mean() < 0.17  # 1.28 spans of 8 channels, some overlapping
    assert not channel_mask(5, 64, start_prob=0.0, span=8, device="cpu").any()
