"""How much each moment of a recording surprises a model that was pretrained by contrastive prediction (CPC).

The score of a frame is the InfoNCE loss of what actually came, against frames of the same recording: log(N + 1) where
the model cannot tell, little where it knew, more where it would have bet on anything else. A recording of any length is
read in windows that overlap, so that the context is warm when a score counts.

Shapes: T samples, F frames of a window, N frames to compare with, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.checkpoint import load_checkpoint
from speechssl.data.recordings import open_recording
from speechssl.errors import UserError
from speechssl.files import whole_file

WARM = 2.0  # seconds before a window, for the context


class SurpriseError(UserError):
    """A recording that cannot be scored. The message names the file or the model and what to do."""


@dataclass(frozen=True)
class Surprise:
    """
    times: (F,) seconds, the middle of what each frame sees.
    scores: (F,) nats, averaged over the predictions of each frame.
    chance: score of a model that cannot tell.
    """

    times: np.ndarray
    scores: np.ndarray
    chance: float


@dataclass(frozen=True)
class Segment:
    """A stretch of the recording, in seconds, and its mean score."""

    start: float
    end: float
    score: float


def surprise(model: str | Path, audio: str | Path, *, window: float = 20.0, pool: int = 512, seed: int = 0) -> Surprise:
    """Scores every frame of a recording but the first.

    Args:
        model: run folder or checkpoint of an objective that has `surprise` (CPC).
        audio: a sound file, or for a model of series (channels, time) in .npy at the model's own rate.
        window: seconds that are scored at a time.
        pool: N, frames of the recording that each frame is compared with, drawn uniformly by `seed`.

    Raises:
        SurpriseError: another objective, or a recording too short for one prediction.
        AudioError: the file cannot be read.
    """
    checkpoint = load_checkpoint(model)
    if not hasattr(checkpoint.objective, "surprise"):
        raise SurpriseError(
            f"{model}: was trained by {checkpoint.config.objective['name']}, which predicts no future; "
            "give a run that was pretrained by cpc."
        )
    if not Path(audio).is_file():
        raise SurpriseError(f"{audio}: no such file.")
    recording = _Recording(checkpoint, Path(audio), window)
    if recording.frames < 3:
        seconds = recording.recording.total / recording.rate
        raise SurpriseError(f"{audio}: lasts {seconds:.2f} s, too short to predict anything in it.")
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(recording.frames)[:pool])
    with torch.inference_mode():
        others = torch.cat([latents[_inside(chosen, first, last) - start] for first, last, start, latents in recording])
        scores = np.concatenate([recording.scores(*part, chosen, others) for part in recording])
    times = (np.arange(recording.frames) * recording.hop + recording.sees / 2) / recording.rate
    return Surprise(times[1:], scores[1:], math.log(len(chosen) + 1))  # nothing predicts the first frame


def _inside(places: np.ndarray, first: int, last: int) -> np.ndarray:
    return places[(places >= first) & (places < last)]


class _Recording:
    """Latents of a recording, window by window. Iterating gives (first, last, start, latents): frames `first` to `last`
    are this window's own, and latents (F, C) begin with frame `start`, before them.
    """

    def __init__(self, checkpoint: Any, audio: Path, window: float):
        self.objective, config = checkpoint.objective, checkpoint.config.data
        self.encoder, self.rate = self.objective.encoder, config.sample_rate
        self.hop, self.sees = self.encoder.hop, self.encoder.feature_encoder.receptive_field
        self.recording = open_recording(audio, self.rate, channels=self.encoder.channels)
        self.read = self.recording.normalized if config.normalize else self.recording.read
        self.frames = max(0, int(self.encoder.frame_lengths(self.recording.total)))
        self.size = max(1, round(window * self.rate / self.hop))
        steps = int(getattr(self.objective.config, "num_steps", 1))
        self.warm = max(round(WARM * self.rate / self.hop), 2 * steps)

    def __iter__(self) -> Iterator[tuple[int, int, int, Tensor]]:
        for first in range(0, self.frames, self.size):
            last, start = min(first + self.size, self.frames), max(0, first - self.warm)
            count = (last - 1 - start) * self.hop + self.sees
            latents, _ = self.encoder.feature_encoder(self.read(start * self.hop, count)[None], None)
            yield first, last, start, latents[0]

    def scores(
        self, first: int, last: int, start: int, latents: Tensor, chosen: np.ndarray, others: Tensor
    ) -> np.ndarray:
        """(last - first,) scores of the window's own frames."""
        context, _ = self.encoder.context(self.encoder.project(latents[None])[0], None)
        own = np.full(len(latents), -1)
        places = np.flatnonzero((chosen >= start) & (chosen < last))
        own[chosen[places] - start] = places
        scores = self.objective.surprise(latents, context[0], others, torch.from_numpy(own))
        return scores[first - start : last - start].numpy()


def top_segments(found: Surprise, count: int, *, seconds: float = 1.0) -> list[Segment]:
    """The most surprising stretches of that length, the most first; they do not overlap."""
    step = float(found.times[1] - found.times[0]) if len(found.times) > 1 else seconds
    size = min(max(1, round(seconds / step)), len(found.scores))
    means = np.convolve(found.scores, np.ones(size) / size, mode="valid")
    segments: list[Segment] = []
    while len(segments) < count and np.isfinite(means).any():
        place = int(means.argmax())
        start = float(found.times[place]) - step / 2
        segments.append(Segment(max(start, 0.0), start + size * step, float(means[place])))
        means[max(0, place - size + 1) : place + size] = -np.inf
    return segments


def write(found: Surprise, path: str | Path) -> None:
    """A table: seconds, score; whole or not at all."""
    with whole_file(path) as file:
        file.write("seconds\tsurprise\n")
        file.writelines(f"{time:.3f}\t{score:.4f}\n" for time, score in zip(found.times, found.scores, strict=True))
