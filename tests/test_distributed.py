"""Two processes are one: the same weights, whoever holds which micro-batch; exact resumes; nobody waits for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import (
    RATE,
    ROOT,
    assert_same_bits,
    make_corpus,
    metrics,
    speech,
    tensors,
    tiny_config,
    tiny_plain,
    train_here,
)

from speechssl.data.manifest import Manifest, Utterance
from speechssl.objectives import OBJECTIVES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]
TIMEOUT = 900  # seconds for all runs on two processes together; they take about 30 on a free core
UPDATES = 4

# Every job is one call of train(); the last one is told to stop by a signal that only rank 1 receives.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from speechssl.config import Config, parse
from speechssl.train import train

def signal_when_it_runs(log):
    while not log.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

for job in json.loads(Path(sys.argv[1]).read_text()):
    folder = Path(job["folder"])
    if job["signal"] and os.environ["RANK"] == "1":
        threading.Thread(target=signal_when_it_runs, args=(folder / "metrics.jsonl",), daemon=True).start()
    os.environ["ACCELERATE_USE_FSDP"] = str(job["fsdp"])
    train(parse(Config, job["config"], source="test"), folder, stop_after=job["stop_after"])
"""

# micro-batches per update on two processes: 3 leave a rank idle in the second round, 1 leaves it idle always
RUNS = {
    "cpc": {"kind": "cpc"},
    "data2vec": {"kind": "data2vec"},
    "ctc": {"kind": "ctc"},
    "wavlm": {"kind": "wavlm", "encoder": {"context": {"layer_drop": 0.5}}},
    "wav2vec2": {"kind": "wav2vec2", "encoder": {"context": {"layer_drop": 0.5, "checkpoint_every": 1}}},
    "loud": {"kind": "cpc"},  # one utterance overflows, on one process: both skip the update
    "one-micro-batch": {"kind": "cpc", "train": {"seconds_per_update": 2.5}},
    "moco": {"kind": "moco", "train": {"seconds_per_update": 5.0}},
    "simclr": {"kind": "simclr", "train": {"seconds_per_update": 5.0}},
    "barlow_twins": {"kind": "barlow_twins", "train": {"seconds_per_update": 5.0}},
    "byol": {"kind": "byol", "train": {"seconds_per_update": 5.0}},
}
# Whoever keeps no state beyond its weights: two updates each, on one process and on two, without pieces.
STATELESS = ["hubert", "best_rq", "masked_spectrogram", "masked_autoencoder", "wav2vec", "apc", "autoencoder"]
STATELESS += ["temporal_order", "ctc_probe", "speaker"]
SHORT: dict[str, dict] = {name: {"kind": name, "train": {"updates": 2}} for name in STATELESS}
SHORT["speaker"]["objective"] = {"pooled_norm": "none"}  # batch statistics couple
# Their micro-batches meet on two processes and not on one; tests/nn/test_distributed_math.py compares equal batches.
COUPLED = {"simclr", "barlow_twins", "byol"}
ALIKE = [name for name in RUNS | SHORT if name not in COUPLED]
GO_ON = ["cpc", "ctc", "data2vec", "moco"]  # begun by one process and ended by two, and the other way round


def parts(name: str, valid: Path) -> dict:
    """An epsilon this large keeps Adam from blowing up the last bits of gradients that are nearly zero."""
    own = {k: v for k, v in (RUNS | SHORT)[name].items() if k != "kind"}
    train = {"updates": UPDATES, "valid_every": 2, "save_every": 2} | own.pop("train", {})
    return {"data": {"valid": str(valid)}, "optim": {"eps": 1e-3}, "train": train, **own}


def on_two_processes(jobs: list[dict], folder: Path) -> tuple[list[int], str]:
    """Runs SCRIPT twice, as a launcher would; returns the exit statuses and what both printed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", SCRIPT, str(file)]
    with (folder / "printed.txt").open("w+") as printed:
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
        try:
            ends = time.monotonic() + TIMEOUT
            while any(process.poll() is None for process in processes) and time.monotonic() < ends:
                if any(process.poll() not in (None, 0, 75) for process in processes):  # the other would wait for it
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
        printed.seek(0)
        return [process.wait() for process in processes], printed.read()


def with_a_loud_one(corpus, folder: Path) -> Path:
    """A manifest with an utterance whose samples are finite, and so large that no encoder's output is."""
    folder.mkdir()
    samples = speech(0.62)
    soundfile.write(folder / "loud.wav", samples / abs(samples).max() * np.float32(3.4e38), RATE, subtype="FLOAT")
    loud = Utterance("loud", str(folder / "loud.wav"), len(samples), RATE)
    Manifest.of([*corpus.utterances, loud]).write(folder / "loud.jsonl")
    return folder / "loud.jsonl"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with every run made by one process (one-*), by two (two-*), by two in two pieces (pieces-*) ..."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(folder / "train")
    valid = make_corpus(folder / "valid", (0.6, 0.8, 1.1), name="valid")
    jobs = []
    for name, run in (RUNS | SHORT).items():
        numbers = parts(name, valid.manifest)
        if name == "loud":
            numbers["data"]["train"] = str(with_a_loud_one(corpus, folder / "loud"))
        train_here(tiny_config(run["kind"], corpus, **numbers), folder / f"one-{name}")
        plain = tiny_plain(run["kind"], corpus, **numbers)
        places = [("two", None)] if name in SHORT else [("two", None), ("pieces", 2), ("pieces", None)]
        jobs += [{"config": plain, "folder": f"{folder}/{to}-{name}", "stop_after": stop} for to, stop in places]
        if name in GO_ON:
            train_here(tiny_config(run["kind"], corpus, **numbers), folder / f"begun-{name}", stop_after=2)
            jobs.append({"config": plain, "folder": f"{folder}/begun-{name}", "stop_after": None})
            jobs.append({"config": plain, "folder": f"{folder}/ended-{name}", "stop_after": 2})
    endless = tiny_plain("cpc", corpus, train={"updates": 1_000_000, "valid_every": 1_000_000, "save_every": 1_000_000})
    jobs.append({"config": endless, "folder": f"{folder}/endless", "stop_after": None, "signal": True})
    statuses, printed = on_two_processes([{"signal": False, "fsdp": False, **job} for job in jobs], folder)
    assert statuses == [75, 75], printed
    for name in GO_ON:
        config = tiny_config(RUNS[name]["kind"], corpus, **parts(name, valid.manifest))
        train_here(config, folder / f"ended-{name}")
    return folder


def last(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def test_every_objective_is_here():
    assert {run["kind"] for run in (RUNS | SHORT).values()} == OBJECTIVES.keys()


def assert_close(one: Path, two: Path) -> None:
    """Weights and moments of two runs, up to the order of summation."""
    left, right = tensors(last(one)), tensors(last(two))
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(left[key], right[key], rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def assert_close_metrics(one: list[dict], two: list[dict]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left.pop("split") == right.pop("split")
        left, right = ({k: float(v) for k, v in line.items()} for line in (left, right))  # "nan" is a text in JSON
        assert left == pytest.approx(right, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_are_one(runs, name):
    assert_close(runs / f"one-{name}", runs / f"two-{name}")


@pytest.mark.parametrize("name", ALIKE)
def test_metrics_count_every_target_once(runs, name):
    """Also in validation, where three utterances fall unequally on two processes."""
    one, two = metrics(runs / f"one-{name}"), metrics(runs / f"two-{name}")
    assert [line["split"] for line in one].count("valid") == 1 + (name in RUNS)
    assert_close_metrics(one, two)


@pytest.mark.parametrize("name", RUNS)
def test_resume_on_two_processes_is_exact(runs, name):
    assert_same_bits(last(runs / f"two-{name}"), last(runs / f"pieces-{name}"))
    assert metrics(runs / f"two-{name}") == metrics(runs / f"pieces-{name}")


@pytest.mark.parametrize("name", GO_ON)
@pytest.mark.parametrize("other", ["begun", "ended"])
def test_a_run_may_go_on_with_more_or_fewer_processes(runs, name, other):
    assert_close(runs / f"one-{name}", runs / f"{other}-{name}")


def test_all_skip_the_same_updates(runs):
    skipped = [[line.get("skipped") for line in metrics(runs / run)] for run in ("one-loud", "two-loud")]
    assert skipped[0] == skipped[1]
    assert 0 < sum(filter(None, skipped[0])) < UPDATES
    left, right = ((runs / run / "incidents.jsonl").read_text() for run in ("one-loud", "two-loud"))
    assert left == right


def test_a_signal_to_one_rank_stops_both_and_saves(runs):
    """Both left with status 75 (see `runs`)."""
    saved = list((runs / "endless" / "checkpoints").glob("step-*"))
    assert len(saved) == 1
