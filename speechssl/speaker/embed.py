"""Vectors that tell speakers apart: an objective's own embeddings, or pooled layers of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.batch import Batch
from speechssl.checkpoint import Checkpoint
from speechssl.probe.features import Source, baseline_source, fingerprint
from speechssl.probe.probing import sources

FINE_TUNED = "fine-tuned"


def speaker_names(checkpoint: Checkpoint) -> list[str]:
    """The speakers that a fine-tuned model tells apart, in the order of its scores; empty: it was not fine-tuned so."""
    return list(checkpoint.config.objective.get("speakers", ()))


def speaker_sources(
    checkpoint: Checkpoint, random_seeds: int, device: torch.device
) -> Iterator[tuple[str, int, Source]]:
    """(what, seed, source): embeddings of a fine-tuned model, or every layer of an encoder and random ones; log-mel."""
    if not speaker_names(checkpoint):
        yield from sources(checkpoint, random_seeds, device)
        return
    yield FINE_TUNED, 0, fine_tuned_source(checkpoint, device)
    name, source = baseline_source(checkpoint.config.data, checkpoint.objective.encoder.channels, device)
    yield name, 0, source


def fine_tuned_source(checkpoint: Checkpoint, device: torch.device) -> Source:
    """Layers "embedding" (B, E) and "scores" (B, N) of a model that was fine-tuned to tell speakers apart."""
    objective: Any = checkpoint.objective.eval().to(device)
    hears = checkpoint.config.data

    def pool(batch: Batch) -> dict[str, Tensor]:
        embeddings = objective.embed(batch)
        return {"embedding": embeddings, "scores": objective.head(embeddings)}

    key = fingerprint(objective, repr(objective.config), repr(objective.encoder.config), hears.normalize, "speaker")
    encoder = objective.encoder
    return Source(key, hears, encoder.feature_encoder.receptive_field, device, pool, channels=encoder.channels)


def cosines(vectors: np.ndarray, train: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(M,) cosines of pairs of rows, each feature with the mean and deviation of train taken out.

    Args:
        vectors: (N, D).
        train: (N', D), unlabelled.
        left, right: (M,) rows of `vectors`.
    """
    mean, scale = train.mean(0), train.std(0).clip(min=1e-6)
    centred = (vectors - mean) / scale
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-12)
    return np.einsum("md,md->m", units[left], units[right])
