"""A training run of milliseconds per update, for tools that kill it and starve it: made-up speech and a small model."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from speechssl.config import Config, merge, parse
from speechssl.data.manifest import Manifest, Utterance

RATE = 16_000
UPDATES = 24  # of a Scene
PLAIN: dict = {
    "data": {"min_seconds": 0.3, "max_seconds": 0.9, "seconds_per_batch": 2.5, "workers": 0},
    "encoder": {
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
    },
    "objective": {
        "name": "wav2vec2",
        "num_codebooks": 2,
        "codebook_size": 8,
        "code_dim": 8,
        "final_dim": 8,
        "num_negatives": 5,
    },
    "optim": {"lr": 1e-3, "clip": 5.0},
    "train": {
        "updates": 60,
        "seconds_per_update": 5.0,
        "precision": "fp32",
        "log_every": 1,
        "valid_every": 10,
        "save_every": 3,
        "save_minutes": 0.0,
    },
}


def make_corpus(folder: Path, count: int = 24, *, seed: int = 0) -> list[Utterance]:
    """FLAC files of gliding harmonics, a manifest `train.jsonl` of them, and `valid.jsonl` of the first four."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, utterances = np.random.default_rng(seed), []
    for number in range(count):
        time = np.arange(round(generator.uniform(0.5, 0.9) * RATE)) / RATE
        phase = 2 * np.pi * np.cumsum(generator.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * time))) / RATE
        voice = sum(np.sin(k * phase + generator.uniform(0, 6)) / k for k in range(1, 9))
        path = folder / f"{number:03d}.flac"
        soundfile.write(path, 0.1 * voice + 0.01 * generator.standard_normal(len(time)), RATE)
        utterances.append(Utterance(path.stem, str(path), len(time), RATE))
    Manifest.of(utterances).write(folder / "train.jsonl")
    Manifest.of(utterances[:4]).write(folder / "valid.jsonl")
    return utterances


def tiny_config(corpus: Path, **parts) -> Config:
    """The run above on the manifests of a folder; `parts` are merged over it, section by section."""
    manifests = {"train": str(corpus / "train.jsonl"), "valid": str(corpus / "valid.jsonl")}
    return parse(Config, merge(merge(PLAIN, {"data": manifests}), parts), source="tiny run")


def fork_training(
    config: Config,
    folder: Path,
    log: Path,
    *,
    world: int = 1,
    rank: int = 0,
    port: int = 0,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Trains in a child process forked from this one, which has imported everything: a start costs no seconds.

    Its output is appended to `log`; it ends as the command line would. `prepare` is called in the child before it
    trains. Returns the child's process id.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1):  # as the command line has them until a run takes them over
            signal.signal(number, lambda *_: os._exit(75))
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if world > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ |= {name: str(value) for name, value in places.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        prepare()
        status = _train(config, folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Scene:
    """A corpus and a run of its own."""

    def __init__(self, folder: Path):
        self.corpus, self.run, self.log = folder / "corpus", folder / "run", folder / "log"
        self.utterances = make_corpus(self.corpus)
        self.children: list[int] = []

    def config(self, *, train: dict | None = None, **parts) -> Config:
        return tiny_config(self.corpus, train={"updates": UPDATES} | (train or {}), **parts)

    def start(
        self, config: Config | None = None, *, world: int = 1, prepare: Callable[[], None] = lambda: None
    ) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        config = config or self.config()
        self.children = [
            fork_training(config, self.run, self.log, world=world, rank=rank, port=port, prepare=prepare)
            for rank in range(world)
        ]

    def until(self, step: int) -> None:
        """Waits until an update is done, or the run has ended."""
        while (
            self.done() < step and os.waitid(os.P_PID, self.children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.001)

    def done(self) -> int:
        """Updates that the last start has told of."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        told = [line.split("/")[0].removeprefix("train ") for line in lines if line.startswith("train ")]
        return int(told[-1]) if told else 0

    def end(self) -> int:
        """The exit status of the first process."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.children[0], 0)[1])
        for other in self.children[1:]:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        return status

    def saved(self) -> list[Path]:
        return sorted((self.run / "checkpoints").glob("step-*"))

    def said(self) -> str:
        """The line that a person would look for, without this machine's paths."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        for mark in (
            "error: ",
            "Error: ",
            "warning: ",
            "collapsed",
            "is skipped",
            "damaged",
            "left out: ",
            "stopped after",
        ):
            found = [line for line in lines if mark in line]
            if found:
                return (
                    found[-1].replace(f"{self.run}/", "").replace(f"{self.corpus}/", "").replace(str(self.run), "RUN")
                )
        return ""


def put_table(rows: list[list[str]], page: Path, begin: str, end: str) -> None:
    """Writes rows, the first of which holds the titles, as Markdown between two marks of a page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def _train(config: Config, folder: Path) -> int:
    from speechssl.errors import UserError
    from speechssl.train import train

    try:
        train(config, folder)
        return 0
    except SystemExit as error:
        return int(error.code or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror}.", file=sys.stderr)
        return 2
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
