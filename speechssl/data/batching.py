"""Which utterances form which batch, and which crop of each: pure functions, so that a resume needs no random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

BUCKET_RATIO = 1.1  # utterances within a bucket differ in length by at most 10%


def plan_epoch(lengths: np.ndarray, budget: int, *, seed: int, epoch: int, crop: bool) -> list[np.ndarray]:
    """Batches of one epoch: every utterance once, neighbours of similar length, shuffled by the arguments alone.

    Args:
        lengths: (N,) samples that may be used of each utterance (no more than the longest crop).
        budget: largest batch in samples, padding included.
        seed, epoch: another order for each.
        crop: batches will be cropped to their shortest utterance, so they are filled by it, not by the longest.

    Returns:
        Arrays of indices into `lengths`.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    bucket = np.floor(np.log(lengths) / np.log(BUCKET_RATIO)).astype(np.int64)
    order = order[np.argsort(bucket[order], kind="stable")]
    batches: list[np.ndarray] = []
    first, shortest, longest = 0, 0, 0
    for position, length in enumerate(lengths[order].tolist()):
        count = position - first
        low, high = (min(shortest, length), max(longest, length)) if count else (length, length)
        if count and (count + 1) * (low if crop else high) > budget:
            batches.append(order[first:position])
            first, low, high = position, length, length
        shortest, longest = low, high
    batches.append(order[first:])
    return [batches[i] for i in generator.permutation(len(batches))]


def stream(lengths: np.ndarray, budget: int, *, seed: int, crop: bool, epoch: int = 0, batch: int = 0) -> Iterator:
    """Endless (epoch, number in the epoch, indices), starting at a place; nothing is dropped between epochs."""
    while True:
        planned = plan_epoch(lengths, budget, seed=seed, epoch=epoch, crop=crop)
        for number in range(batch, len(planned)):
            yield epoch, number, planned[number]
        epoch, batch = epoch + 1, 0


def crop_start(seed: int, epoch: int, utterance: str, spare: int) -> int:
    """First sample of an utterance's crop: uniform in 0 .. spare, a function of the arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{utterance}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (spare + 1)
