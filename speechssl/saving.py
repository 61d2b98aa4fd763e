"""Saving behind a run's back: from a copy, in a thread, one checkpoint at a time."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from speechssl import checkpoint
from speechssl.checkpoint import CheckpointError, TrainState
from speechssl.config import Config


class Saver:
    """Rank 0's. A save that fails is reported when the next one begins, and the run goes on to that one: the last good
    checkpoint stays. Only the last save of a run (`wait=True`) must succeed. `failed`: how many in a row did not.

    Args:
        folder: of the checkpoints.
        say: prints a sentence.
        save: further arguments of `checkpoint.snapshot` (tokenizer, scaler).
    """

    def __init__(self, folder: Path, config: Config, say: Callable[[str], None], **arguments):
        self.folder, self.config, self.say, self.arguments = folder, config, say, arguments
        self.saved_at, self.failed = time.monotonic(), 0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        for path in folder.glob(".step-*.part"):  # what a killed process left
            shutil.rmtree(path, ignore_errors=True)

    def is_due(self) -> bool:
        """Whether the last save is `train.save_minutes` ago."""
        return 0 < self.config.train.save_minutes * 60 <= time.monotonic() - self.saved_at

    def save(self, state: TrainState, *, best: float | None = None, wait: bool = False) -> None:
        """Copies the state and writes it in the background; where memory is short, at once and from the state itself.

        Args:
            best: the validation metric that makes this the best checkpoint.
            wait: come back only when the checkpoint is on the disk.

        Raises:
            CheckpointError: it cannot be written, and wait is True.
        """
        self.settle()
        self.saved_at = time.monotonic()
        in_background = not wait and checkpoint.num_bytes(state) < _free_memory() / 2
        snapshot = checkpoint.snapshot(state, self.config, copy=in_background, **self.arguments)
        # Validation may just have saved it as the best. Asked only now: all processes gather a divided state together.
        if (self.folder / checkpoint.name_of(state.step)).exists():
            return
        self._thread = threading.Thread(target=self._write, args=(snapshot, best), name="checkpoint", daemon=True)
        self._thread.start()
        if not in_background:
            self._join()
        if wait and self._error is not None:
            error, self._error = self._error, None
            full = isinstance(error, CheckpointError)
            raise CheckpointError(f"{error} Then run the same command again to go on.") if full else error

    def settle(self) -> None:
        """Waits until nothing is being written, and says what went wrong."""
        self._join()
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            self.say(f"warning: {error} The run goes on and tries again when the next save is due.")
        elif error is not None:
            raise error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: checkpoint.Snapshot, best: float | None) -> None:
        try:
            checkpoint.write(snapshot, self.folder)
            if best is not None:
                checkpoint.mark_best(self.folder, snapshot.step, self.config.train.best, best)
            checkpoint.prune(self.folder, self.config.train.keep)
            self.failed = 0
        except Exception as error:  # a thread has nobody to raise to
            self.failed += 1
            self._error = CheckpointError(f"{self.folder}: {error}.") if isinstance(error, OSError) else error


def _free_memory() -> float:
    """Bytes that can be had without swapping, as Linux tells it; elsewhere nobody asks."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return float("inf")
