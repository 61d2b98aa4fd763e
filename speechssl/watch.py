"""Watchdogs: numbers that go wrong, collapse, readers that stall, processes that hang, audio that is mostly rotten.

Each says in one sentence what it saw and what to do. What they count is part of a checkpoint, so that a resume goes on
counting, and is the same on every process, so that all of them decide together.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechssl.config import DataConfig, TrainConfig
from speechssl.data.audio import AudioError
from speechssl.errors import TemporaryError, UserError
from speechssl.feed import Feed
from speechssl.objectives import Objective
from speechssl.report import Report

WINDOW = 100  # gradient norms in the running median
ENOUGH = 20  # norms before a spike can be told, and ...
ASKED = 100  # ... utterances before their share is one


class NotFiniteError(UserError):
    """Loss or gradient was not finite for too many updates in a row."""


class CollapseError(UserError):
    """Training has collapsed, and the configuration says to stop."""


class StallError(TemporaryError):
    """No batch came, or a reader process died."""


class HangError(TemporaryError):
    """Another process of the run did not answer."""


@dataclass
class Counts:
    """
    skipped: updates in a row whose loss or gradient was not finite.
    collapsed: updates in a row that looked collapsed.
    asked, unread: utterances asked for so far, and how many of these could not be read.
    norms: gradient norms of the last updates.
    """

    skipped: int = 0
    collapsed: int = 0
    asked: int = 0
    unread: int = 0
    norms: list[float] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------ wrong numbers


class Gradients:
    """Counts skipped updates and gradient-norm spikes, and keeps what `speechssl replay` needs.

    The device is asked for an update's numbers when they have long arrived, an update later: nobody waits for it.
    """

    def __init__(self, config: TrainConfig, counts: Counts, feed: Feed, report: Report):
        self.config, self.counts, self.feed, self.report = config, counts, feed, report
        self.since = {"skipped": 0, "spikes": 0}  # the last line
        self._pending: tuple[int, list, Later] | None = None

    @property
    def stuck(self) -> bool:
        """The last `max_skipped` updates were all skipped: the weights are those the first of them met."""
        return self._pending is None and self.counts.skipped >= self.config.max_skipped

    def note(self, step: int, finite: Tensor, norm: Tensor, places: list) -> None:
        """Update `step` (from 0), its micro-batches' places, and 0-d tensors that the device may not have ready yet."""
        self._judge_pending()
        self._pending = (step, places, Later(torch.stack((finite.float(), norm.float()))))
        if self.counts.skipped >= self.config.max_skipped - 1:  # the stop may be due: this one cannot wait
            self._judge_pending()

    def numbers(self) -> dict[str, int]:
        """Updates skipped and spikes since the last time, up to this update."""
        self.settle()
        numbers, self.since = self.since, dict.fromkeys(self.since, 0)
        return numbers

    def settle(self) -> None:
        """Waits for the last update's numbers; then `counts` are those of this moment."""
        self._judge_pending()

    def error(self) -> NotFiniteError:
        return NotFiniteError(
            f"loss or gradient is not finite for {self.counts.skipped} updates in a row; the weights before them and "
            f"the batches are saved: `speechssl replay {self.report.folder}` says where it begins. Then lower "
            "optim.lr, set optim.clip, or use train.precision=fp32."
        )

    def _judge_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            step, places, later = pending
            finite, norm = later.read()
            self._judge(step, places, bool(finite), norm)

    def _judge(self, step: int, places: list, finite: bool, norm: float) -> None:
        counts, config = self.counts, self.config
        if not finite:
            counts.skipped += 1
            self.since["skipped"] += 1
            sentence = f"update {step + 1} is skipped: loss or gradient is not finite ({counts.skipped} in a row)"
            self._keep("not finite", step, places, sentence)
            return
        counts.skipped = 0
        usual = statistics.median(counts.norms) if len(counts.norms) >= ENOUGH else float("inf")
        if norm > config.spike * usual:
            self.since["spikes"] += 1
            sentence = f"update {step + 1}: gradient norm {norm:.3g}, {norm / usual:.0f} times the median {usual:.3g}"
            self._keep("gradient spike", step, places, sentence)
        counts.norms = [*counts.norms, norm][-WINDOW:]

    def _keep(self, kind: str, step: int, places: list, sentence: str) -> None:
        utterances = self.feed.data.utterances
        batches = [
            {"number": number, "epoch": epoch, "batch": batch, "ids": [utterances[i].id for i in indices.tolist()]}
            for number, (epoch, batch, indices) in enumerate(places)
        ]
        self.report.incident(kind, step + 1, sentence, seed=self.config.seed, micro_batches=batches)


class Later:
    """Numbers (N,) of the device, on their way to the host."""

    def __init__(self, numbers: Tensor):
        self._host = torch.empty(numbers.shape, pin_memory=numbers.is_cuda)
        self._host.copy_(numbers, non_blocking=numbers.is_cuda)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """Waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


# ----------------------------------------------------------------------------------------------------------- collapse


class Collapse:
    """Asks the objective at every log line whether it has collapsed, and says so once it has long enough."""

    def __init__(self, config: TrainConfig, counts: Counts, objective: Objective, report: Report, *, step: int):
        self.config, self.counts, self.objective, self.report, self.step = config, counts, objective, report, step

    def look(self, step: int, numbers: Mapping[str, float]) -> None:
        """numbers: averages over the updates since the last time. Raises CollapseError where `on_collapse` is stop."""
        if self.config.on_collapse == "ignore":
            return
        updates, self.step = step - self.step, step
        before, patience = self.counts.collapsed, self.config.collapse_patience
        sentence = self.objective.diagnose(numbers)
        self.counts.collapsed = before + updates if sentence else 0
        if before < patience <= self.counts.collapsed:
            sentence = f"update {step}: collapsed for {self.counts.collapsed} updates: {sentence.rstrip('.')}."
            self.report.incident("collapse", step, sentence)
            if self.config.on_collapse == "stop":
                raise CollapseError(f"{sentence} Then start again in another folder.")


# ------------------------------------------------------------------------------------------------- audio and processes


def too_bad(counts: Counts, config: DataConfig, folder) -> AudioError | None:
    """The error to stop with when more of the audio is unreadable than the configuration allows."""
    if counts.unread <= config.max_bad_share * max(counts.asked, ASKED):
        return None
    return AudioError(
        f"{counts.unread} of {counts.asked} utterances asked for so far cannot be read, more than data.max_bad_share="
        f"{config.max_bad_share:g}; {folder / 'left_out.jsonl'} names them. Bring them back or make the manifest "
        "again, or raise data.max_bad_share."
    )


@contextlib.contextmanager
def clear_errors(feed: Feed, config: TrainConfig) -> Iterator[None]:
    """Turns what readers and other processes make of a hang into a sentence. Raises StallError, HangError."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = "DataLoader worker" if isinstance(error, (ConnectionError, EOFError)) else str(error)  # a broken pipe
        if text.startswith("DataLoader timed out"):
            raise StallError(
                f"no batch for {config.stall_seconds:g} s (train.stall_seconds) while reading {feed.waiting_for()}; "
                "the disk hangs, or data.workers is too small. Run the same command again to go on."
            ) from None
        if text.startswith("DataLoader worker"):
            raise StallError(
                f"a reader process was killed while reading {feed.waiting_for()} (out of memory?); lower data.workers "
                "or data.seconds_per_batch, and run the same command again to go on."
            ) from None
        reason = _what_peers_did(text, config)
        if feed.world == 1 or not reason:
            raise
        raise HangError(
            f"process {feed.rank} of {feed.world} cannot go on: {reason}; look at the others' messages and machines, "
            "then run the same command again to go on."
        ) from None


def _what_peers_did(text: str, config: TrainConfig) -> str:
    """In the words of gloo and NCCL: another process hangs, or is gone; empty: something else."""
    text = text.lower()
    if "timed out" in text or "timeout" in text:
        return f"another one has not answered for {config.rank_seconds:g} s (train.rank_seconds)"
    return "another one has ended" if "connection" in text and ("closed" in text or "reset" in text) else ""
