"""Batches and crops are pure functions of their arguments, and lose nothing."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.batching import BUCKET_RATIO, crop_start, plan_epoch, stream

LONGEST = 200_000
all_lengths = st.lists(st.integers(1, LONGEST), min_size=1, max_size=60).map(np.array)
budgets = st.integers(LONGEST, 5 * LONGEST)
seeds = st.integers(0, 2**31)
epochs = st.integers(0, 1000)


def as_lists(batches) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@given(lengths=all_lengths, budget=budgets, seed=seeds, epoch=epochs, crop=st.booleans())
def test_every_utterance_once_within_the_budget(lengths, budget, seed, epoch, crop):
    batches = plan_epoch(lengths, budget, seed=seed, epoch=epoch, crop=crop)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        size = lengths[batch].min() if crop else lengths[batch].max()
        assert len(batch) * size <= budget


@given(lengths=all_lengths, budget=budgets, seed=seeds, epoch=epochs, crop=st.booleans())
def test_a_pure_function(lengths, budget, seed, epoch, crop):
    first = as_lists(plan_epoch(lengths, budget, seed=seed, epoch=epoch, crop=crop))
    np.random.seed(7)
    assert as_lists(plan_epoch(lengths.copy(), budget, seed=seed, epoch=epoch, crop=crop)) == first


def test_epochs_and_seeds_differ():
    lengths = np.random.default_rng(0).integers(16_000, LONGEST, 100)
    plans = [
        tuple(map(tuple, as_lists(plan_epoch(lengths, 5 * LONGEST, seed=seed, epoch=epoch, crop=True))))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(plans)) == 9
    # not only the order of the same batches: who is beside whom changes, too
    assert set(map(frozenset, plans[0])) != set(map(frozenset, plans[1]))


def test_batches_are_full_and_of_similar_length():
    lengths = np.random.default_rng(0).integers(16_000, LONGEST, 2000)
    for crop in (False, True):
        batches = plan_epoch(lengths, 10 * LONGEST, seed=0, epoch=0, crop=crop)
        padded = sum(len(batch) * (lengths[batch].min() if crop else lengths[batch].max()) for batch in batches)
        assert padded / len(batches) > 0.85 * 10 * LONGEST
        spread = [lengths[batch].max() / lengths[batch].min() for batch in batches]
        assert np.median(spread) <= BUCKET_RATIO


@given(lengths=all_lengths, seed=seeds, crop=st.booleans(), place=st.integers(0, 40), epoch=st.integers(0, 3))
def test_a_stream_from_any_place_is_the_tail_of_the_stream(lengths, seed, crop, place, epoch):
    def take(iterator, count):
        return [(e, n, batch.tolist()) for e, n, batch in itertools.islice(iterator, count)]

    budget = 2 * LONGEST
    whole = take(stream(lengths, budget, seed=seed, crop=crop, epoch=epoch), place + 10)
    at, number, _ = whole[place]
    assert take(stream(lengths, budget, seed=seed, crop=crop, epoch=at, batch=number), 10) == whole[place:]
    if place:  # a run that has just finished a batch notes the place behind it, perhaps the end of an epoch
        before, last, _ = whole[place - 1]
        assert take(stream(lengths, budget, seed=seed, crop=crop, epoch=before, batch=last + 1), 10) == whole[place:]


@given(lengths=all_lengths, seed=seeds)
def test_nothing_is_dropped_between_epochs(lengths, seed):
    batches = len(plan_epoch(lengths, LONGEST, seed=seed, epoch=0, crop=False))
    batches += len(plan_epoch(lengths, LONGEST, seed=seed, epoch=1, crop=False))
    seen = Counter()
    for _, _, batch in itertools.islice(stream(lengths, LONGEST, seed=seed, crop=False), batches):
        seen.update(batch.tolist())
    assert set(seen) == set(range(len(lengths)))
    assert set(seen.values()) == {2}


# -------------------------------------------------------------------------------------------------------------- crops


@given(seed=seeds, epoch=epochs, name=st.text(max_size=10), spare=st.integers(0, 10**9))
def test_crops_stay_inside_and_are_pure(seed, epoch, name, spare):
    start = crop_start(seed, epoch, name, spare)
    assert 0 <= start <= spare
    assert crop_start(seed, epoch, name, spare) == start


def test_crops_are_uniform():
    arguments = itertools.product(range(3), range(20), range(100))
    counts = Counter(crop_start(seed, epoch, f"utterance-{i}", 9) for seed, epoch, i in arguments)
    expected = 600
    assert set(counts) == set(range(10))
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 27.9  # 9 degrees of freedom: one in a thousand is above


def test_every_argument_changes_the_crop():
    base = crop_start(1, 2, "u", 10**9)
    assert len({base, crop_start(2, 2, "u", 10**9), crop_start(1, 3, "u", 10**9), crop_start(1, 2, "v", 10**9)}) == 4
    assert crop_start(1, 12, "u", 10**9) != crop_start(11, 2, "u", 10**9)
