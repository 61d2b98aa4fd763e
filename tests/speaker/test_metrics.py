"""EER and minDCF against closed forms and hand-counted cases; the bootstrap against a known spread."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.speaker.metrics import Detection, estimate

NORMAL = NormalDist()
SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=12)


def gaussians(apart: float, count: int, seed: int = 0):
    """Scores of non-targets around 0 and of targets around `apart`, deviation 1."""
    generator = np.random.default_rng(seed)
    targets = np.arange(2 * count) < count
    return generator.standard_normal(2 * count) + apart * targets, targets


def naive(scores, targets):
    """Misses and false alarms of every threshold, counted one by one."""
    same = [s for s, t in zip(scores, targets, strict=True) if t]
    other = [s for s, t in zip(scores, targets, strict=True) if not t]
    points = []
    for threshold in [max(scores) + 1, *sorted(set(scores), reverse=True)]:
        points.append((sum(s < threshold for s in same) / len(same), sum(s >= threshold for s in other) / len(other)))
    return points


@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0, 3.0])
def test_two_gaussians(apart):
    """EER = Phi(-d / 2); the least cost lies where the likelihood ratio is (1 - p) / p."""
    scores, targets = gaussians(apart, 400_000)
    detection = Detection(scores, targets)
    assert detection.eer() == pytest.approx(NORMAL.cdf(-apart / 2), abs=1.5e-3)
    for p in (0.01, 0.05, 0.5):
        threshold = math.log((1 - p) / p) / apart + apart / 2
        cost = p * NORMAL.cdf(threshold - apart) + (1 - p) * NORMAL.cdf(-threshold)
        assert detection.min_dcf(p) == pytest.approx(cost / min(p, 1 - p), abs=0.02)


@pytest.mark.parametrize(
    ("same", "other", "eer"),
    [
        ([3, 4], [1, 2], 0.0),
        ([1, 2], [3, 4], 1.0),
        ([5, 5], [5, 5, 5], 0.5),  # nothing but ties: a coin
        ([1, 3], [2, 0], 0.5),
        ([2, 3, 4, 5], [0, 1, 2.5, 0.5], 0.25),
        ([2, 3], [2, 1], 0.25),  # at 2 misses fall from 1/2 to 0 and alarms rise from 0 to 1/2: they meet half-way
        ([1, 2, 3], [2, 0], 0.4),  # at 2 misses fall from 2/3 to 1/3, alarms rise from 0 to 1/2: 2/3 - x/3 = x/2
    ],
)
def test_by_hand(same, other, eer):
    detection = Detection([*same, *other], [True] * len(same) + [False] * len(other))
    assert detection.eer() == pytest.approx(eer)


def test_cost_by_hand():
    """Accepting 3 alone misses one of two and lets nobody in: cost p / 2; accepting all costs 1 - p."""
    detection = Detection([1, 3, 2, 0], [True, True, False, False])
    assert detection.min_dcf(0.01) == pytest.approx(0.5)
    assert detection.min_dcf(0.5) == pytest.approx(0.5)
    assert detection.min_dcf(0.9) == pytest.approx(0.5)  # accepting from 1 on: (1 - p) / 2
    assert Detection([1, 2], [True, False]).min_dcf(0.05) == pytest.approx(1.0)  # nothing beats a constant answer
    costs = Detection([1, 3, 2, 0], [True, True, False, False]).min_dcf(0.5, cost_miss=10.0, cost_alarm=1.0)
    assert costs == pytest.approx(0.5)  # one alarm of two, at 0.5 / min(5, 0.5)


@given(SCORES, SCORES)
def test_against_counting(same, other):
    scores, targets = [*same, *other], [True] * len(same) + [False] * len(other)
    detection = Detection(scores, targets)
    points = naive(scores, targets)
    np.testing.assert_allclose(np.stack(detection.errors(), 1), points, atol=1e-12)
    eer = detection.eer()
    crossings = [
        a + (a - b) / ((a - b) - (c - d)) * (c - a) for (a, b), (c, d) in itertools.pairwise(points) if a > b and c <= d
    ]
    assert eer == pytest.approx(crossings[0])
    for p in (0.01, 0.3):
        expected = min(p * miss + (1 - p) * alarm for miss, alarm in points) / min(p, 1 - p)
        assert detection.min_dcf(p) == pytest.approx(expected)
        assert 0 <= detection.min_dcf(p) <= 1 + 1e-12


@given(SCORES, SCORES, st.data())
def test_weights_are_repetitions(same, other, data):
    scores, targets = [*same, *other], [True] * len(same) + [False] * len(other)
    weights = data.draw(st.lists(st.integers(1, 3), min_size=len(scores), max_size=len(scores)))
    repeated = Detection(np.repeat(scores, weights), np.repeat(targets, weights))
    detection = Detection(scores, targets)
    assert detection.eer(weights) == pytest.approx(repeated.eer())
    assert detection.min_dcf(0.05, weights) == pytest.approx(repeated.min_dcf(0.05))


@given(SCORES, SCORES)
def test_a_monotone_map_of_the_scores_changes_nothing(same, other):
    scores, targets = np.array([*same, *other], float), [True] * len(same) + [False] * len(other)
    assert Detection(np.exp(scores) - 5, targets).eer() == Detection(scores, targets).eer()


@pytest.mark.parametrize(("second", "targets"), [(2, [True, True]), (2, [False, False]), (math.nan, [False, True])])
def test_what_has_no_error_rate(second, targets):
    with pytest.raises(ValueError, match="needed" if second == 2 else "finite"):
        Detection([1, second], targets)


def test_intervals_cover_other_speakers():
    """Speakers have their own offsets, so trials are far from independent: 95% intervals over speakers must be wide."""
    generator, speakers, apart = np.random.default_rng(1), 20, 2.0
    left, right = np.triu_indices(2 * speakers, 1)  # two utterances each
    clusters = np.stack((left // 2, right // 2), 1)
    targets = clusters[:, 0] == clusters[:, 1]

    def trial_scores():
        offset = generator.standard_normal(speakers)
        own = offset[clusters].sum(1) / 2
        return own + 0.7 * generator.standard_normal(len(left)) + apart * targets

    truth = Detection(np.concatenate([trial_scores() for _ in range(200)]), np.concatenate([targets] * 200)).eer()
    found = [estimate(trial_scores(), targets, clusters, samples=100, seed=i)["eer"] for i in range(60)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert covered > 0.85
    assert all(e.low <= e.value <= e.high for e in found)
    single = estimate(trial_scores(), targets, clusters, samples=50)
    assert list(single) == ["eer", "min_dcf_0.01", "min_dcf_0.05"]
