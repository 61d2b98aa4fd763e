"""Tiny encoders, one of each kind that an objective of the contract's cases has, as checkpoints and as graphs.

What pretrains is exported as its encoder: a kind stands for all objectives that have just this encoder.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import CASES, make
from parity import shake
from torch import Tensor

from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.config import Config, parse
from speechssl.data.audio import normalize
from speechssl.export.torch_export import Traced, trace
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import zero_padding
from speechssl.objectives.speaker import Speaker
from speechssl.objectives.transcription import Transcription

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
FAST = ("wav2vec2", "cpc", "masked_autoencoder")  # group norm and Transformer; recurrent; log-mel and sinusoids
NORMALIZED = ("wav2vec2", "vq-apc")  # in the tests
BATCHES = ([9000, 7000], [8001], [12_345, 6000, 20, 700])  # samples; one frame sees 85 to 2320 of them


def _kinds() -> dict[str, list[str]]:
    """One case per kind of encoder -> all that have it; fine-tuned models, which are more than one, elsewhere."""
    found: dict[str, list[str]] = {}
    for name in CASES:
        objective = make(name)
        if not isinstance(objective, (Speaker, Transcription)):
            found.setdefault(repr(objective.encoder.config), []).append(name)
    return {names[0]: names for names in found.values()}


KINDS = _kinds()
EACH = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)


def save_encoder(name: str, folder: Path) -> Encoder:
    """Saves the objective of a case, with noise in its weights, and returns its encoder in eval mode."""
    case = make(name)
    parts = {"encoder": dataclasses.asdict(case.encoder.config), "objective": dataclasses.asdict(case.config)}
    config = parse(Config, {"name": name, "data": {"normalize": name in NORMALIZED}, **parts}, source="test")
    objective = build_objective(config).eval()
    shake(objective)
    folder.mkdir(exist_ok=True)
    save_model(objective, config, folder)
    return objective.encoder


@cache
def traced(name: str) -> tuple[Encoder, Traced]:
    """An encoder and its graph, made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = save_encoder(name, Path(folder))
        return encoder, trace(Path(folder))


def noise(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Waveforms with more noise behind each end, which nobody must hear, and the lengths."""
    generator = torch.Generator().manual_seed(9)
    return 0.1 * torch.randn(len(lengths), max(lengths), generator=generator) + 0.02, torch.tensor(lengths)


@torch.no_grad()
def expected(name: str, encoder: Encoder, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder itself gives, each utterance alone: hidden (B, F, D), zero on padding, and lengths in frames."""
    frames = encoder.frame_lengths(lengths)
    hidden = torch.zeros(len(lengths), encoder.frame_lengths(waveforms.shape[1]), encoder.dim)
    for row, waveform, length, count in zip(hidden, waveforms, lengths, frames, strict=True):
        if count:
            own = waveform[:length]
            row[:count] = encoder((normalize(own) if name in NORMALIZED else own)[None]).hidden[0]
    return zero_padding(hidden, frames), frames
