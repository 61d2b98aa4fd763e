"""Metrics: JSON lines always, trackers through accelerate, and a console line that a person can read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from speechssl.objectives import Metric, Objective


class Tally:
    """Adds metrics over micro-batches on the device; `reduce` makes them numbers, over all ranks."""

    def __init__(self):
        self.metrics: dict[str, Metric] = {}

    def add(self, metrics: Mapping[str, Metric], *, weight: float = 1.0) -> None:
        """weight 0: does not count, but this rank then holds the same names as the others."""
        for name, metric in metrics.items():
            metric = Metric(metric.values * weight, metric.kind)
            self.metrics[name] = self.metrics[name] + metric if name in self.metrics else metric

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
            results[name] = Metric(values, metric.kind).result()
            offset += metric.values.numel()
        self.metrics = {}
        return results


class Report:
    """Writes metrics.jsonl in the run folder (rank 0 only) and prints."""

    def __init__(self, folder: Path, accelerator, objective: Objective, *, updates: int, step: int):
        self.path, self.accelerator, self.updates = folder / "metrics.jsonl", accelerator, updates
        self.chance = objective.chance()
        self.started, self.first_step = time.monotonic(), step
        if accelerator.is_main_process:
            _forget_after(self.path, step)

    def log(self, split: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line for `split` ("train" or "valid") at `step`."""
        if not self.accelerator.is_main_process:
            return
        record = {"split": split, "step": step, **{k: _round(v) for k, v in numbers.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.accelerator.log_with:
            self.accelerator.log({f"{split}/{k}": v for k, v in numbers.items()}, step=step)
        self.say(self._line(split, step, numbers))

    def say(self, sentence: str) -> None:
        if self.accelerator.is_main_process:
            print(sentence, flush=True)

    def _line(self, split: str, step: int, numbers: Mapping[str, float]) -> str:
        parts = [f"{split} {step}/{self.updates}"]
        for name, value in numbers.items():
            if "/" in name or name in ("loss", "seconds", "hours"):  # details are in the file
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
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def _round(value: float) -> float | str:
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
