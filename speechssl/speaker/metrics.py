"""Errors of a verification: equal error rate, least detection cost, and how sure they are.

Shapes: N trials, P operating points (one per different score, and one that accepts nothing), C clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Detection:
    """The errors of all thresholds; a trial is accepted where its score is at least the threshold.

    Args:
        scores: (N,), higher for the same speaker.
        targets: (N,) bool, whether it is the same speaker.

    Raises:
        ValueError: no target trial, or none but target trials; a score that is not a number.
    """

    def __init__(self, scores, targets):
        scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=bool)
        if not np.isfinite(scores).all():
            raise ValueError("some scores are not finite")
        if targets.all() or not targets.any():
            raise ValueError("target and non-target trials are needed")
        self.targets = targets
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # last trial of each group of equal scores

    def errors(self, weights=None) -> tuple[np.ndarray, np.ndarray]:
        """Shares (P,) of misses and of false alarms, from the threshold that accepts nothing to that which accepts all.

        weights: (N,) how often each trial counts; None: once.
        """
        weights = np.ones(len(self.targets)) if weights is None else np.asarray(weights, dtype=np.float64)
        ordered, is_target = weights[self.order], self.targets[self.order]
        rates = []
        for of_kind in (is_target, ~is_target):
            accepted = np.cumsum(ordered * of_kind)
            rates.append(np.append(0.0, accepted[self.last] / accepted[-1]))
        return 1 - rates[0], rates[1]

    def eer(self, weights=None) -> float:
        """Equal error rate: where misses and false alarms meet, on the line between the two nearest operating points.

        Equal scores of targets and others move both errors at once; the line between is what deciding each of these
        trials by a coin gives.
        """
        misses, alarms = self.errors(weights)
        after = int(np.argmax(alarms >= misses))  # never 0: there nothing is accepted
        gap_before, gap_after = (misses - alarms)[[after - 1, after]]
        share = gap_before / (gap_before - gap_after)
        return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))

    def min_dcf(self, p_target: float, weights=None, *, cost_miss: float = 1.0, cost_alarm: float = 1.0) -> float:
        """Least detection cost over thresholds, divided by that of the better constant answer (NIST SRE 2016)."""
        misses, alarms = self.errors(weights)
        of_miss, of_alarm = cost_miss * p_target, cost_alarm * (1 - p_target)
        return float((of_miss * misses + of_alarm * alarms).min() / min(of_miss, of_alarm))


def estimate(
    scores,
    targets,
    clusters: np.ndarray,
    *,
    p_targets: Sequence[float] = (0.01, 0.05),
    samples: int = 500,
    seed: int = 0,
) -> dict[str, Estimate]:
    """ "eer" and "min_dcf_<p>" with bootstrap intervals.

    Trials that share a speaker are not independent, so speakers are drawn again, not trials: a trial of speakers a
    and b counts as often as a was drawn times b was drawn, and one within a speaker as often as that one was drawn.

    Args:
        clusters: (N, 2) numbers of the two sides' speakers (or of their utterances, where speakers are unknown).
        samples: of the bootstrap.
    """
    detection = Detection(scores, targets)

    def measure(weights=None) -> list[float]:
        return [detection.eer(weights), *(detection.min_dcf(p, weights) for p in p_targets)]

    generator, number = np.random.default_rng(seed), int(clusters.max()) + 1
    same = clusters[:, 0] == clusters[:, 1]
    drawn: list[list[float]] = []
    while len(drawn) < samples:
        times = np.bincount(generator.integers(number, size=number), minlength=number)
        weights = times[clusters[:, 0]] * np.where(same, 1, times[clusters[:, 1]])
        if weights[detection.targets].any() and weights[~detection.targets].any():
            drawn.append(measure(weights))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    names = ["eer", *(f"min_dcf_{p:g}" for p in p_targets)]
    return {
        name: Estimate(value, float(low[i]), float(high[i]))
        for i, (name, value) in enumerate(zip(names, measure(), strict=True))
    }
