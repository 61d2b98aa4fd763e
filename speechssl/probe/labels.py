"""What a probe can do with labels: whether they can be learnt, and few of them drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechssl.data.labels import LabelError


def check_same_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Raises LabelError where train has only one class, or test one that train has not."""
    if len(set(train)) < 2:
        raise LabelError(f"all {len(train)} training utterances have the label '{train[0]}'; two or more are needed.")
    strange = sorted(set(test) - set(train))
    if strange:
        count = sum(label in strange for label in test)
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise LabelError(
            f"{count} test utterances have labels that training does not: {shown}; test on the classes of training "
            "(speakers: hold some utterances of each out with `speechssl speaker split`)."
        )


def draw_per_class(labels: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Indices of `count` utterances of each class (all of a class that has fewer), in ascending order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    taken: dict[str, int] = {}
    kept = []
    for index in order.tolist():
        taken[labels[index]] = taken.get(labels[index], 0) + 1
        if taken[labels[index]] <= count:
            kept.append(index)
    return np.array(sorted(kept))


def draw_in_all(labels: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Indices of `count` utterances, the classes taking turns: one of each, then a second of each, ..."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[str, int] = {}
    turns = []
    for place, index in enumerate(order.tolist()):
        turns.append((seen.get(labels[index], 0), place, index))
        seen[labels[index]] = seen.get(labels[index], 0) + 1
    return np.array(sorted(index for _, _, index in sorted(turns)[:count]))
