"""Made-up voices that differ in pitch and colour, and a run with random weights to probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from tiny_run import RATE, Corpus, tiny_config

from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.data.manifest import Manifest, Utterance

VOICES = ("anna", "boris", "chandra")


def voice(speaker: int, seed: int, seconds: float = 0.35) -> np.ndarray:
    """(T,) float32: a buzz at the speaker's pitch, give or take, with noise."""
    generator = np.random.default_rng([speaker, seed])
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 110 * 1.6**speaker * generator.uniform(0.97, 1.03)
    buzz = sum(np.sin(2 * np.pi * k * pitch * time + generator.uniform(0, 6)) / k for k in range(1, 6))
    return (0.1 * buzz + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


def make_voices(folder: Path, per_speaker: int, *, name: str = "train", first: int = 0) -> Path:
    """A manifest of that many utterances of each voice; texts alternate between YES and NO, moods too.

    Ids are paths below `folder`: mood/speaker-number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for speaker, who in enumerate(VOICES):
        for number in range(first, first + per_speaker):
            samples = voice(speaker, number, 0.3 + 0.02 * (number % 4))
            mood, text = ("calm", "YES") if number % 2 else ("cross", "NO")
            path = folder / f"{name}-{who}-{number}.wav"
            soundfile.write(path, samples, RATE)
            utterances.append(
                Utterance(
                    f"{mood}/{who}-{number}",
                    str(path),
                    len(samples),
                    RATE,
                    text=text,
                    speaker=who,
                    extra={"mood": mood},
                )
            )
    Manifest.of(utterances).write(folder / f"{name}.jsonl")
    return folder / f"{name}.jsonl"


def untrained(kind: str, folder: Path, manifest: Path, **parts) -> Path:
    """A checkpoint with the random weights that a run would start from."""
    config = tiny_config(kind, Corpus(manifest, manifest, ()), **parts)
    folder.mkdir(parents=True)
    save_model(build_objective(config), config, folder)
    return folder
