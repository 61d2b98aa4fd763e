"""Our own step, as the loop runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from speechssl.batch import Batch
from speechssl.bench.step import Candidate, Case, waveforms
from speechssl.build import build_objective
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest, Utterance
from speechssl.extract import TrainedEncoder
from speechssl.system import keep_memory_pages


def ours(case: Case, device: str) -> Candidate:
    """The objective of the configuration, on made-up sound with made-up labels where it reads some."""
    keep_memory_pages()
    objective = build_objective(case.resolved()).to(device)
    encoder = objective.encoder
    if case.encode:
        return _features(case, encoder.config, device)
    batch = made_up_batch(case, objective).to(device)

    def loss() -> torch.Tensor:
        output = objective(batch)
        return output.loss / output.num_targets

    objective.before_step(0)
    # Not `feature_encoder`: who masks the log-mel makes it apart. Its filterbank counts as heads.
    parts = {"convolutions": encoder.feature_encoder.convolutions, "context": encoder.context}
    return Candidate(objective, loss, parts, read=_reader(case))


def _features(case: Case, config, device: str) -> Candidate:
    data = case.resolved().data
    encoder = TrainedEncoder(config, sample_rate=data.sample_rate, normalize=data.normalize).to(device).eval()
    sound, lengths = waveforms(case)
    recordings = [row[:n].numpy() / row.abs().max().item() for row, n in zip(sound, lengths.tolist(), strict=True)]
    precision: Any = "fp32" if case.precision == "fp32" else "bf16"
    return Candidate(encoder, lambda: encoder.extract(recordings, precision=precision))


def _reader(case: Case) -> Callable[[], object]:
    """Reads the batch from FLAC in a folder that goes when nobody can read any more."""
    config, (sound, lengths) = case.resolved(), waveforms(case)
    rate, folder = config.data.sample_rate, tempfile.TemporaryDirectory(prefix="speechssl-bench-")
    utterances = []
    for i, (row, length) in enumerate(zip(sound, lengths.tolist(), strict=True)):
        file = Path(folder.name) / f"{i}.flac"
        soundfile.write(file, row[:length].numpy() / row.abs().max().item(), rate)
        utterances.append(Utterance(id=str(i), audio=str(file), num_samples=length, sample_rate=rate))
    numbers = {"min_seconds": min(case.seconds), "max_seconds": max(case.seconds), "crop": False}
    dataset = SpeechDataset(Manifest.of(utterances), config.override(data=numbers).data)

    def read() -> object:
        assert folder.name
        return dataset[0, np.arange(len(dataset))]

    return read


def made_up_batch(case: Case, objective) -> Batch:
    sound, lengths = waveforms(case)
    count, rate, needs = len(lengths), case.resolved().data.sample_rate, objective.needs
    labels: dict[str, torch.Tensor] = {}
    if "tokens" in needs:  # fourteen letters a second, as in read English
        sizes = (lengths / rate * 14).long()
        letters = torch.randint(1, objective.config.vocab_size, (count, int(sizes.max())))
        labels = {"tokens": letters, "token_lengths": sizes}
    if "units" in needs:
        labels["units"] = torch.randint(0, objective.config.num_units, (count, sound.shape[1] // 320))
    if "speakers" in needs:
        labels["speakers"] = torch.arange(count) % 2
    ids = tuple(f"utterance-{i}" for i in range(count))
    return Batch(ids=ids, waveforms=sound, lengths=lengths, padded=len(set(lengths.tolist())) > 1, **labels)
