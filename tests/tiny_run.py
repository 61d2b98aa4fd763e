"""Whole runs small enough for a test: seconds of made-up speech, its manifest and vocabulary, and configurations.

An update takes milliseconds. One frame is 80 samples.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from speechssl.config import Config, merge, parse
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.tokens import Tokenizer
from speechssl.data.units import UnitsRecord, write_units

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
WORDS = ("one", "two", "three", "four", "five")
TIMING = {"audio_per_second", "wait", "seconds"}  # what no two runs share

ENCODER = {
    "dropout": 0.1,
    "feature_encoder": {"name": "waveform", "dims": [12, 12, 16], "kernels": [10, 4, 4], "strides": [5, 4, 4]},
    "context": {
        "name": "transformer",
        "dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_dim": 24,
        "position_kernel": 8,
        "position_groups": 2,
        "layer_drop": 0.2,
    },
}
CPC_ENCODER = {
    "dropout": 0.0,
    "latent_norm": False,
    "project": False,
    "feature_encoder": ENCODER["feature_encoder"] | {"bias": True, "norm": "layer"},
    "context": {"name": "recurrent", "dim": 16},
}
LOG_MEL = {"name": "logmel", "num_bins": 16, "dims": [12, 12], "kernels": [3, 3], "strides": [2, 2]}
VIEWS = {
    "view_seconds": 0.3,
    "augment": {
        "speed": 0.1,
        "reverb_prob": 0.5,
        "babble_prob": 0.5,
        "noise_prob": 0.5,
        "gain_db": 6.0,
        "jitter_prob": 0.1,
        "time_mask_start_prob": 0.05,
        "channel_mask_start_prob": 0.02,
        "channel_mask_length": 4,
    },
}
WHOLE = {"crop": False, "min_seconds": 0.3, "max_seconds": 1.5}
KINDS: dict[str, dict] = {
    "wav2vec2": {
        "encoder": ENCODER,
        "objective": {
            "name": "wav2vec2",
            "num_codebooks": 2,
            "codebook_size": 8,
            "code_dim": 8,
            "final_dim": 8,
            "num_negatives": 5,
            "gumbel_decay": 0.9,
        },
    },
    "cpc": {"encoder": CPC_ENCODER, "objective": {"name": "cpc", "num_steps": 3, "num_negatives": 5}},
    "ctc": {
        "encoder": ENCODER,
        "objective": {"name": "ctc", "freeze_feature_encoder": False, "freeze_encoder_updates": 2},
        "data": WHOLE,
    },
    "ctc_probe": {"encoder": ENCODER, "objective": {"name": "ctc_probe", "dim": 8}, "data": WHOLE},
    "speaker": {
        "encoder": ENCODER,
        "objective": {
            "name": "speaker",
            "speakers": ["speaker0", "speaker1"],
            "features": "sum",
            "pooling": "attentive",
            "pooled_norm": "batch",
            "embedding_dim": 8,
            "dropout": 0.1,
            "classifier": "aam",
            "freeze_encoder_updates": 2,
        },
    },
    "hubert": {"encoder": ENCODER, "objective": {"name": "hubert", "num_units": 6, "final_dim": 8}},
    "wavlm": {
        "encoder": ENCODER | {"context": ENCODER["context"] | {"relative_buckets": 16, "relative_distance": 40}},
        "objective": {"name": "wavlm", "num_units": 6, "final_dim": 8, "mix_prob": 0.5, "mix_noise_prob": 0.5},
    },
    "data2vec": {
        "encoder": ENCODER,
        "objective": {"name": "data2vec", "top_layers": 2, "decay_start": 0.8, "decay_end": 0.9, "decay_updates": 7},
    },
    "best_rq": {
        "encoder": ENCODER | {"feature_encoder": LOG_MEL},
        "objective": {"name": "best_rq", "mask_start_prob": 0.2, "mask_length": 3, "codebook_size": 16, "code_dim": 4},
    },
    "masked_spectrogram": {
        "encoder": ENCODER | {"feature_encoder": LOG_MEL},
        "objective": {"name": "masked_spectrogram"},
    },
    "masked_autoencoder": {
        "encoder": {
            "dropout": 0.1,
            "feature_encoder": LOG_MEL | {"dims": [12], "kernels": [4], "strides": [4]},
            "context": {
                "name": "sinusoidal",
                "dim": 16,
                "num_layers": 2,
                "num_heads": 2,
                "ffn_dim": 24,
                "dropout": 0.1,
                "layer_drop": 0.2,
            },
        },
        "objective": {"name": "masked_autoencoder", "decoder_dim": 8, "decoder_layers": 1, "decoder_heads": 2},
    },
    "wav2vec": {
        "encoder": CPC_ENCODER
        | {
            "feature_encoder": ENCODER["feature_encoder"]
            | {"norm": "utterance", "activation": "relu", "compression": "log"},
            "context": {"name": "causal_convolution", "dim": 16, "kernels": [2, 3], "dropout": 0.1},
        },
        "objective": {"name": "wav2vec", "num_steps": 3, "num_negatives": 5, "hard_pool": 2},
    },
    "apc": {
        "encoder": CPC_ENCODER
        | {
            "feature_encoder": LOG_MEL | {"dims": [], "kernels": [], "strides": []},
            "context": {
                "name": "recurrent",
                "dim": 16,
                "num_layers": 2,
                "residual": True,
                "dropout": 0.1,
                "quantize_after": 2,
                "codebook_size": 8,
            },
        },
        "objective": {"name": "apc"},
    },
    "autoencoder": {
        "encoder": CPC_ENCODER | {"dropout": 0.1},
        "objective": {"name": "autoencoder", "dims": [12, 8]},
    },
    "temporal_order": {
        "encoder": ENCODER,
        "objective": {"name": "temporal_order", "num_segments": 3, "num_permutations": 6, "segment": 1600, "gap": 400},
    },
    "simclr": {
        "encoder": ENCODER,
        "objective": {"name": "simclr", **VIEWS, "hidden_dim": 16, "projection_dim": 8},
    },
    "moco": {
        "encoder": ENCODER,
        "objective": {
            "name": "moco",
            **VIEWS,
            "hidden_dim": 16,
            "projection_dim": 8,
            "queue_size": 20,  # full, and begun anew, before a resume
            "teacher_decay": 0.8,
        },
    },
    "byol": {
        "encoder": ENCODER,
        "objective": {"name": "byol", **VIEWS, "hidden_dim": 16, "projection_dim": 8, "decay_updates": 10},
    },
    "barlow_twins": {
        "encoder": ENCODER,
        "objective": {"name": "barlow_twins", **VIEWS, "projection_dim": 12},
    },
}
COMMON: dict[str, dict] = {
    "data": {"min_seconds": 0.4, "max_seconds": 0.9, "seconds_per_batch": 2.5, "workers": 0},
    "optim": {"lr": 1e-3, "warmup": 0.2, "clip": 5.0},
    "train": {
        "updates": 10,
        "trackers": [],
        "seconds_per_update": 7.5,  # three micro-batches
        "precision": "fp32",
        "log_every": 1,
        "valid_every": 5,
        "save_every": 5,
    },
}


@dataclass(frozen=True)
class Corpus:
    manifest: Path
    vocabulary: Path
    utterances: tuple[Utterance, ...]


def speech(seconds: float, *, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """(T,) float32: syllables of gliding harmonics over a little noise, every seed another."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = generator.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * generator.uniform(0.5, 2) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase + generator.uniform(0, 6)) / k for k in range(1, 9))
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time + generator.uniform(0, 6))
    return (0.1 * voice * syllables + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def make_corpus(folder: Path, seconds=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 0.45, 0.95), *, name="train") -> Corpus:
    """FLAC files of these lengths by two speakers, with transcripts of one to three words."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for number, length in enumerate(seconds):
        path = folder / f"{name}-{number}.flac"
        samples = speech(length, seed=number)
        soundfile.write(path, samples, RATE)
        text = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(1 + number % 3))
        utterances.append(
            Utterance(f"{name}-{number}", str(path), len(samples), RATE, text=text, speaker=f"speaker{number % 2}")
        )
    manifest, vocabulary = folder / f"{name}.jsonl", folder / "vocabulary.json"
    Manifest.of(utterances).write(manifest)
    Tokenizer.train(WORDS).write(vocabulary)
    return Corpus(manifest, vocabulary, tuple(utterances))


def tiny_plain(kind: str, corpus: Corpus, **parts) -> dict:
    """A configuration as plain data; `parts` are merged over it, section by section."""
    data = merge(copy.deepcopy(COMMON), copy.deepcopy(KINDS[kind]))
    data["data"] = data["data"] | {"train": str(corpus.manifest)}
    if kind.startswith("ctc"):
        tokenizer = Tokenizer.read(corpus.vocabulary)
        data["data"]["vocabulary"] = str(corpus.vocabulary)
        data["objective"] = data["objective"] | {"vocab_size": len(tokenizer), "word_boundary": tokenizer.boundary}
    if kind in ("hubert", "wavlm"):
        data["data"]["units"] = str(make_units(corpus.manifest.parent / "units"))
    return merge(data, parts)


def make_units(folder: Path) -> Path:
    """Units every 80 samples for two seconds of whatever `make_corpus` names, to train and to validate on."""
    if not folder.exists():
        generator = np.random.default_rng(0)
        ids = [f"{name}-{number}" for name in ("train", "valid") for number in range(20)]
        rows = ((utterance, np.repeat(generator.integers(0, 6, 40), 10)) for utterance in ids)
        write_units(folder, UnitsRecord(hop=80, sample_rate=RATE, num_units=6), rows)
    return folder


def tiny_config(kind: str, corpus: Corpus, **parts) -> Config:
    return parse(Config, tiny_plain(kind, corpus, **parts), source="test")


@contextlib.contextmanager
def alone(*, cpu: bool = True):
    """As in a process of its own: accelerate forgets the last run, signals and threads are given back.

    cpu: leave a GPU alone; sums on it come in no fixed order, so nothing would be equal to the bit.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    threads, state = torch.get_num_threads(), random.getstate()
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true" if cpu else "false"}):
            yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(threads)
        random.setstate(state)


def talkative():
    """Heads that are made meanwhile have no leaning to the blank: random weights then spell something."""
    return mock.patch("speechssl.nn.heads.blank_bias", return_value=0.0)


def train_here(config: Config, folder: Path, *, cpu: bool = True, **arguments) -> Path:
    from speechssl.train import train

    with alone(cpu=cpu):
        return train(config, folder, **arguments)


def speechssl(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    """The command line in this process: exit status, stdout, stderr."""
    from speechssl.cli import main

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["speechssl", *map(str, arguments)])
    status = 0
    with alone():
        try:
            main()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def one_sentence(result: tuple[int, str, str]) -> str:
    """The sentence of a failed command, after checking that it is one line on stderr, with exit status 2."""
    status, out, err = result
    assert status == 2, (status, out, err)
    assert "Traceback" not in out + err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimiser moments of a checkpoint."""
    return load_file(checkpoint / "objective.safetensors") | load_file(checkpoint / "optimizer.safetensors")


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl without what only measures time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def assert_same_bits(left: Path, right: Path) -> None:
    a, b = tensors(left), tensors(right)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different
