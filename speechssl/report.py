"""Metrics: JSON lines always, trackers through accelerate, and a console line that a person can read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import gather_object

from speechssl.config import ConfigError
from speechssl.files import append_whole, write_whole
from speechssl.objectives import Metric, Objective

ONLY_IF_ANY = ("skipped", "spikes", "unread")  # on the console; the file has them always


def choose_trackers(wanted: tuple[str, ...] | None) -> list[str]:
    """None: TensorBoard where it is installed. Raises ConfigError for one that is unknown or not installed."""
    installed = [str(name) for name in get_available_trackers()]
    if wanted is None:
        return [name for name in installed if name == "tensorboard"]
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"train.trackers: no tracker '{name}'; choose of {', '.join(LOGGER_TYPE_TO_CLASS)}.")
        if name not in installed:
            raise ConfigError(f"train.trackers: {name} is not installed: `pip install {name}`, or leave it out.")
    return list(dict.fromkeys(wanted))


class Tally:
    """Adds metrics over micro-batches on the device; `reduce` makes them numbers, over all ranks."""

    def __init__(self):
        self.metrics: dict[str, Metric] = {}

    def add(self, metrics: Mapping[str, Metric], *, weight: float = 1.0) -> None:
        """weight 0: does not count, but this rank then holds the same names as the others."""
        for name, metric in metrics.items():
            metric = Metric(metric.values * weight, metric.kind)
            self.metrics[name] = self.metrics[name] + metric if name in self.metrics else metric

    def add_finite(self, metrics: Mapping[str, Metric], *, weight: float = 1.0) -> None:
        """As `add`, without what is not finite: one such micro-batch would hide all others of a line."""
        for name, metric in metrics.items():
            finite = metric.values.isfinite().all()  # stays on the device
            self.add({name: Metric(torch.where(finite, metric.values, 0.0), metric.kind)}, weight=weight)

    def reduce(self, accelerator) -> dict[str, float]:
        """One sum over the ranks, of all metrics side by side; then empties itself. The ranks must hold equal names."""
        names = sorted(self.metrics)
        if not names:
            return {}
        flat = torch.cat([self.metrics[name].values.flatten().to(accelerator.device) for name in names])
        flat = accelerator.reduce(flat, reduction="sum").cpu()
        results, offset = {}, 0
        for name in names:
            metric = self.metrics[name]
            values = flat[offset : offset + metric.values.numel()].view(metric.values.shape)
            results[name] = Metric(values, metric.kind).result() if values.any() else math.nan  # of nothing at all
            offset += metric.values.numel()
        self.metrics = {}
        return results


class Report:
    """Writes the run folder's metrics.jsonl, incidents.jsonl and left_out.jsonl (rank 0 only), and prints.

    Where the disk refuses a line, the run goes on; the line is kept and written with a later one.
    """

    def __init__(self, folder: Path, accelerator, objective: Objective, *, updates: int, step: int):
        self.folder, self.accelerator, self.updates = folder, accelerator, updates
        self.chance = objective.chance()
        self.started, self.first_step = time.monotonic(), step
        self.tracks = False
        self.unwritten: dict[Path, str] = {}
        if accelerator.is_main_process:
            for name in ("metrics.jsonl", "incidents.jsonl"):
                _forget_after(folder / name, step)

    def start_trackers(self, config: Mapping) -> None:
        """Begins what `train.trackers` names, and tells it the configuration. Raises ConfigError."""
        accelerator, own = self.accelerator, {"name": self.folder.resolve().name}
        # A resume makes the lines of the last updates again: those that TensorBoard has of them give way.
        options = {"tensorboard": {"purge_step": self.first_step + 1}, "wandb": own, "trackio": own}
        try:
            accelerator.init_trackers("speechssl", init_kwargs=options)
            for tracker in accelerator.trackers:
                if tracker.name != "tensorboard":  # which would make another run of it
                    tracker.store_init_configuration(config)
        except Exception as error:  # each has its own: no account, no server, no space
            raise ConfigError(f"train.trackers: {_reason(error)}; leave it out, or see to it.") from None
        self.tracks = bool(accelerator.trackers)

    def log(self, split: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line for `split` ("train" or "valid") at `step`."""
        if not self.accelerator.is_main_process:
            return
        record = {"split": split, "step": step, **{k: _round(v) for k, v in numbers.items()}}
        self._append("metrics.jsonl", record)
        self._track(lambda tracker: tracker.log({f"{split}/{k}": v for k, v in numbers.items()}, step=step))
        self.say(self._line(split, step, numbers))

    def incident(self, kind: str, step: int, sentence: str, **facts) -> None:
        """Something that went wrong in update `step`: said, and a line of incidents.jsonl."""
        if self.accelerator.is_main_process:
            self._append("incidents.jsonl", {"step": step, "kind": kind, "sentence": sentence, **facts})
            self.say(sentence)

    def left_out(self, problems: Mapping[str, str]) -> None:
        """Adds utterances and why they cannot be read to left_out.jsonl. Every process must call it."""
        rows = [{"id": utterance, "problem": problem} for utterance, problem in problems.items()]
        rows = gather_object(rows)
        if self.accelerator.is_main_process:
            for row in {row["id"]: row for row in rows}.values():
                self._append("left_out.jsonl", row)

    def say(self, sentence: str) -> None:
        if self.accelerator.is_main_process:
            print(sentence, flush=True)

    def close(self) -> None:
        """Writes what the disk refused before, or says what is lost; ends the trackers."""
        self._track(lambda tracker: tracker.finish())
        for path, lines in self.unwritten.items():
            try:
                append_whole(path, lines)
            except OSError as error:
                self.say(f"{path}: cannot be written ({error.strerror}); {len(lines.splitlines())} lines are lost")

    def _track(self, do: Callable[[GeneralTracker], None]) -> None:
        """A tracker that fails is heard no more: it must not end a run."""
        try:
            for tracker in self.accelerator.trackers if self.tracks else ():
                do(tracker)
        except Exception as error:
            self.tracks = False
            self.say(f"train.trackers: {_reason(error)}; nothing more is tracked, metrics.jsonl has everything")

    def _append(self, name: str, record: Mapping) -> None:
        path = self.folder / name
        lines = self.unwritten.pop(path, "") + json.dumps(record, ensure_ascii=False) + "\n"
        try:
            append_whole(path, lines)
        except OSError as error:
            self.unwritten[path] = lines
            self.say(f"{path}: cannot be written ({error.strerror}); its lines are kept for later")

    def _line(self, split: str, step: int, numbers: Mapping[str, float]) -> str:
        parts = [f"{split} {step}/{self.updates}"]
        for name, value in numbers.items():
            if "/" in name or name in ("loss", "seconds", "hours"):  # details are in the file
                continue
            if name in ONLY_IF_ANY and not value:
                continue
            chance = f" (chance {self.chance[name]:.3g})" if name in self.chance else ""
            parts.append(f"{name} {value:.3g}{chance}")
        if split == "train":
            spent = time.monotonic() - self.started
            left = spent / max(step - self.first_step, 1) * (self.updates - step)
            parts.append(f"left {int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}")
        return " | ".join(parts)


def _forget_after(path: Path, step: int) -> None:
    """Drops lines of updates that a resume will make again, and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    write_whole(path, "".join(kept))


def _reason(error: Exception) -> str:
    """One line of what a tracker's library raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")


def _round(value: float) -> float | str:
    return value if isinstance(value, int) else float(f"{value:.6g}") if math.isfinite(value) else str(value)
