"""This process's share of the data: its micro-batches, read ahead; what cannot be read is named and made good."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechssl.batch import Batch
from speechssl.config import Config
from speechssl.data.audio import AudioError
from speechssl.data.batching import stream
from speechssl.data.dataset import SpeechDataset, load, reader_processes


class Feed:
    """Micro-batches are numbered the same whatever the number of processes, which only share them out: a run continued
    on fewer or more of them sees the same data in the same updates.

    Args:
        folder: of the run; its left_out.jsonl says which utterances were named before.
        epoch, batch: place of the next micro-batch.
    """

    def __init__(
        self,
        data: SpeechDataset,
        config: Config,
        folder: Path,
        *,
        epoch: int,
        batch: int,
        rank: int,
        world: int,
        device,
    ):
        self.data, self.config, self.rank, self.world, self.device = data, config, rank, world, device
        self.micro_batches = max(1, round(config.train.seconds_per_update / config.data.seconds_per_batch))
        self.rounds = -(-self.micro_batches // world)
        self.request: tuple[int, np.ndarray] = (0, np.empty(0, dtype=np.int64))  # what is waited for
        self.asked, self.unread, self.waited = 0, 0, 0.0  # utterances and seconds, until somebody takes them
        self.readers = reader_processes(config.data.workers)
        self.named = set(_ids(folder / "left_out.jsonl"))
        self.problems: dict[str, str] = {}  # utterance -> sentence, until somebody takes them
        self._place = {"epoch": epoch, "batch": batch}
        self._places, self._requests = self._stream(), self._mine()
        self._batches = load(
            data,
            self._mine(),
            workers=self.readers,
            pin_memory=device.type == "cuda",
            timeout=config.train.stall_seconds,
        )

    def number(self, round_: int) -> int:
        """Which micro-batch of an update this process has in a round; `micro_batches` or more: none."""
        return round_ * self.world + self.rank

    def next(self, round_: int) -> tuple[Batch, float]:
        """The micro-batch of a round on the device, and its weight; 0: only keeps this process in step with the others.

        Raises:
            AudioError: neither one of its utterances nor one of the next hundred can be read.
        """
        weight = float(self.number(round_) < self.micro_batches)
        self.request = next(self._requests)
        began = time.perf_counter()
        loaded = next(self._batches)
        if loaded.batch is None:
            instead = self.data.instead_of(*self.request)
            loaded = replace(loaded, batch=instead.batch)
        self.waited += time.perf_counter() - began
        for utterance, problem in zip(loaded.unread, loaded.problems, strict=True):
            if utterance not in self.named:
                print(f"left out: {problem}", flush=True)
                self.named.add(utterance)
                self.problems[utterance] = problem
        if weight:
            self.asked += len(self.request[1])
            self.unread += len(loaded.unread)
        if loaded.batch is None:
            raise AudioError(f"no utterance of a batch can be read; {loaded.problems[0]}")
        return loaded.batch.to(self.device), weight

    def places(self) -> list[tuple[int, int, np.ndarray]]:
        """Epoch, number in the epoch and utterances of the next update's micro-batches, on all processes."""
        return [next(self._places) for _ in range(self.micro_batches)]

    def waiting_for(self) -> str:
        """The utterances that are being read, for messages."""
        ids = [self.data.utterances[i].id for i in self.request[1].tolist()]
        return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")

    def close(self) -> None:
        """Ends the reader processes. They ignore signals, so a process that left without this would wait for them."""
        self._batches = iter(())

    def _stream(self) -> Iterator:
        data, seed = self.data, self.config.train.seed
        return stream(data.lengths, data.budget, seed=seed, crop=data.config.crop, **self._place)

    def _mine(self) -> Iterator[tuple[int, np.ndarray]]:
        """This process's requests to the dataset, in order, without end."""
        places = self._stream()
        while True:
            of_update = [next(places) for _ in range(self.micro_batches)]
            for round_ in range(self.rounds):
                epoch, _, indices = of_update[min(self.number(round_), self.micro_batches - 1)]
                yield epoch, indices


def _ids(path: Path) -> Iterator[str]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that a killed process left half-written
                yield json.loads(line)["id"]
