"""Pooled features of whole manifests, computed once and kept: mean and deviation over time of every layer.

Shapes: B utterances, T samples, F frames, D channels, N utterances of a manifest.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.config import DataConfig
from speechssl.data.dataset import padded_batches
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.pooling import statistics_pool

FORMAT = "1"  # of the cached files; another one where features are computed in another way


class FeatureError(UserError):
    """Features that cannot be computed. The message names the manifest or the device and what to do."""


@dataclass(frozen=True)
class Source:
    """What turns a batch into vectors.

    Attributes:
        key: equal for what gives equal vectors; the name of the cached file.
        hears: sample rate and normalisation.
        least: samples of the shortest utterance that it can take, at the rate that it hears.
        device: where `pool` wants its batch.
        pool: Batch -> named vectors, (B, D) each.
    """

    key: str
    hears: DataConfig
    least: int
    device: torch.device
    pool: Callable[[Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Features:
    """Vectors (N, D) by layer, of the utterances `ids`, in the manifest's order; `problems`: why others are absent."""

    ids: tuple[str, ...]
    layers: dict[str, np.ndarray]
    problems: tuple[str, ...] = ()

    def of(self, ids) -> Features:
        """These utterances only, in this order."""
        place = {name: i for i, name in enumerate(self.ids)}
        rows = [place[name] for name in ids]
        return Features(tuple(ids), {k: v[rows] for k, v in self.layers.items()}, self.problems)


def encoder_source(encoder: Encoder, hears: DataConfig, device: torch.device) -> Source:
    """Layers "0" (what enters the context network), "1", ... of an encoder, and "latents" (the feature encoder's)."""
    encoder = encoder.eval().to(device)

    def pool(batch: Batch) -> dict[str, Tensor]:
        output = encoder(batch.waveforms, batch.lengths_or_none)
        named = {"latents": output.latents} | {str(i): layer for i, layer in enumerate(output.layers)}
        return {name: statistics_pool(frames, output.lengths) for name, frames in named.items()}

    key = fingerprint(encoder, repr(encoder.config), hears.sample_rate, hears.normalize, "statistics")
    return Source(key, hears, encoder.feature_encoder.receptive_field, device, pool)


def log_mel_source(hears: DataConfig, device: torch.device, num_bins: int = 80) -> Source:
    """Mean and deviation of log-mel (25 ms windows every 10 ms), with the level and colour that a front end removes."""
    from torchaudio.transforms import MelSpectrogram

    hears = replace(hears, normalize=False)
    window, hop = hears.sample_rate // 40, hears.sample_rate // 100
    mel = MelSpectrogram(
        hears.sample_rate, n_fft=window, win_length=window, hop_length=hop, n_mels=num_bins, center=False
    ).to(device)

    def pool(batch: Batch) -> dict[str, Tensor]:
        frames = (mel(batch.waveforms) + 1e-6).log().transpose(1, 2)  # (B, F, D)
        return {"log-mel": statistics_pool(frames, (batch.lengths - window) // hop + 1)}

    return Source(fingerprint(None, "log-mel", num_bins, hears.sample_rate), hears, window, device, pool)


def fingerprint(module: nn.Module | None, *facts) -> str:
    """A hash of weights and of everything else that decides what comes out."""
    digest = hashlib.sha256(repr((FORMAT, *facts)).encode())
    for name, tensor in sorted((module.state_dict() if module is not None else {}).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def extract(source: Source, manifest: Manifest, cache: Path, *, title: str, seconds_per_batch: float) -> Features:
    """The features of every utterance that can be read, from `cache` if they lie there.

    Raises FeatureError: not one could be read.
    """
    listed = "\n".join(f"{u.id}\t{u.audio}\t{u.start}\t{u.num_samples}\t{u.byte_range}" for u in manifest)
    path = cache / f"{source.key}-{hashlib.sha256(listed.encode()).hexdigest()[:20]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            layers = {name.removeprefix("layer/"): file[name] for name in file.files if name.startswith("layer/")}
            return Features(tuple(file["ids"].tolist()), layers, tuple(file["problems"].tolist()))
    features = _compute(source, manifest, title, seconds_per_batch)
    buffer = io.BytesIO()
    arrays = {"ids": np.array(features.ids), "problems": np.array(features.problems, dtype=str)}
    np.savez(buffer, **arrays, **{f"layer/{k}": v for k, v in features.layers.items()})  # type: ignore[arg-type]
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
    return features


def _compute(source: Source, manifest: Manifest, title: str, seconds_per_batch: float) -> Features:
    short = {u.id for u in manifest if u.length_at(source.hears.sample_rate) < source.least}
    problems = [f"{u.id}: too short for one frame ({u.seconds:.3f} s)." for u in manifest if u.id in short]
    long_enough = manifest.filter(lambda u: u.id not in short)
    rows: dict[str, dict[str, np.ndarray]] = {}  # id -> layer -> (D,)
    with Progress(console=Console(stderr=True)) as progress, torch.inference_mode():
        task = progress.add_task(title, total=len(manifest), completed=len(short))
        batches = padded_batches(long_enough, source.hears, seconds_per_batch=seconds_per_batch) if long_enough else ()
        for loaded in batches:
            problems += loaded.problems
            if loaded.batch is not None:
                pooled = source.pool(loaded.batch.to(source.device))
                vectors = {layer: of_layer.float().cpu().numpy() for layer, of_layer in pooled.items()}
                for row, name in enumerate(loaded.batch.ids):
                    rows[name] = {layer: of_layer[row] for layer, of_layer in vectors.items()}
            progress.update(task, completed=len(rows) + len(problems))
    if not rows:
        raise FeatureError(f"not one of {len(manifest)} utterances could be used: {problems[0]}")
    ids = tuple(u.id for u in manifest if u.id in rows)
    layers = {layer: np.stack([rows[name][layer] for name in ids]) for layer in next(iter(rows.values()))}
    return Features(ids, layers, tuple(problems))
