"""`speechssl bench`: the cases, side by side in one run, as a table."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from speechssl.bench.step import Case, gemm_limit, run_apart
from speechssl.build import without_corpus
from speechssl.config import Config, load, plain, read_run
from speechssl.device import native_precision
from speechssl.errors import UserError

# How the peer is started: as it installs, or with a glibc that keeps its pages, which our runs set for themselves.
KEEP_PAGES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
COLUMNS = ["step", "cpu", "data", "convolutions", "context", "heads", "forward", "backward", "optimiser"]


def compare(case: Case, against: tuple[str, ...], rounds: int, *, tuned: bool) -> dict[str, dict[str, float]]:
    """Times ours and each peer in turn, `rounds` times over, and keeps the median of each number.

    tuned: peers run with an allocator that keeps its pages.
    """
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *against)}
    for _ in range(rounds):
        for name, measured in rows.items():
            environment = {"GLIBC_TUNABLES": KEEP_PAGES} if tuned and name != "ours" else {}
            measured.append(run_apart(replace(case, peer=name), environment))
    return {name: {key: statistics.median(row[key] for row in m) for key in m[0]} for name, m in rows.items()}


def utterances(config: Config, seconds: tuple[float, ...]) -> tuple[float, ...]:
    """The lengths given, or a micro-batch of the configuration: as many utterances of max_seconds as fit."""
    if seconds:
        return seconds
    longest = min(config.data.max_seconds, config.data.seconds_per_batch)
    return (longest,) * max(1, int(config.data.seconds_per_batch // longest))


def largest_batch(case: Case, memory_gb: float) -> int:
    """Utterances of the first one's length that fit into `memory_gb`, by a line through two measured peaks.

    Raises UserError if memory does not grow with the batch.
    """
    few, many = 2, 6
    low, high = (
        run_apart(replace(case, seconds=case.seconds[:1] * n, steps=1, warmup=1))["peak_gb"] for n in (few, many)
    )
    slope = (high - low) / (many - few)
    if slope <= 0:
        raise UserError("memory does not grow with the batch; give longer utterances (--seconds).")
    return int(few + (memory_gb - low) / slope)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def machine_memory_gb() -> float:
    if has_gpu():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def machine() -> str:
    if has_gpu():
        return torch.cuda.get_device_name(0)
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{platform.machine()}, {capability}, {threads} threads, torch {torch.__version__}"


def markdown(case: Case, results: dict[str, dict[str, float]], limit: float) -> str:
    """One row per toolkit: seconds, audio seconds per second, peak memory, share of the GEMM limit, ratio to ours.

    data: reading the batch from files, which a worker does meanwhile: not a part of the step.
    """
    seconds = sum(case.seconds)
    head = ["toolkit", *COLUMNS, "audio s/s", "peak GB", "of GEMM limit", "slower by"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in results.items():
        share = row["gflop"] / row["step"] / limit if "gflop" in row else float("nan")
        cells = [
            name,
            *(f"{row[c]:.3f}" if c in row else "" for c in COLUMNS),
            f"{seconds / row['step']:.1f}",
            f"{row['peak_gb']:.2f}",
        ]
        cells += [f"{share:.0%}" if share == share else "", f"{row['step'] / results['ours']['step']:.2f} x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_preset(preset: str, overrides: list[str]) -> Config:
    """A preset, .yaml file or run folder; what its objective needs of a corpus is made up."""
    config = read_run(preset) if (Path(preset) / "config.yaml").is_file() else load(preset, overrides)
    if config.train.precision == "auto":
        config = config.override(train={"precision": native_precision("cuda" if has_gpu() else "cpu")})
    return without_corpus(config)


def case_of(
    config: Config, seconds: tuple[float, ...], precision: str, steps: int, threads: int, *, encode: bool = False
) -> Case:
    """Raises UserError for a preset that does not read sound."""
    if config.encoder.get("feature_encoder", {}).get("channels", 1) > 1:
        raise UserError(f"{config.name}: reads series of several channels, and the bench makes up sound alone.")
    return Case(
        peer="ours",
        config=plain(config),
        seconds=utterances(config, seconds),
        precision=precision,
        steps=steps,
        threads=threads,
        count_flops=not encode,
        encode=encode,
    )


__all__ = [
    "case_of",
    "compare",
    "gemm_limit",
    "has_gpu",
    "largest_batch",
    "machine",
    "machine_memory_gb",
    "markdown",
    "read_preset",
]
