"""The arithmetic behind docs/scaling.md: an update of Base and Large on 1 to 512 GPUs, before anybody has paid for it.

    python tools/scaling_plan.py            # the two tables, as Markdown

Nothing is measured here. The assumptions are constants below, each with its source; change them and run it again.
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK_TFLOPS = 989.0  # H100 SXM, dense bf16 (NVIDIA's data sheet)
REACHED = 0.25  # share of it that a step reaches; assumed (minimal_hubert: 160 H100 hours a Base iteration, about 0.17)
NVLINK_GBS = 300.0  # all-reduce bandwidth within a node of 8, assumed two thirds of 450 one way
NETWORK_GBS = 50.0  # per GPU between nodes: a 400 Gbit/s port each, as in an H100 node of eight; assumed
FLAC_BYTES_PER_SECOND = 60e9 / (960 * 3600)  # LibriSpeech's 960 h take 60 GB
READ_PER_WORKER = 619 / 2 * 10  # seconds of audio per second and reader process: 10 s out of FLAC by seeking
GPUS = (1, 8, 16, 64, 128, 512)


@dataclass(frozen=True)
class Model:
    name: str
    parameters: float
    gflop_per_second_of_audio: float  # forward and backward
    seconds_per_update: float
    updates: int


# 1785 GFLOP for 4 x 10 s of Base (counted). Large: 6 x parameters x frames for its blocks, and the same convolutions.
BASE = Model("Base", 95.0e6, 1785 / 40, 5600, 400_000)
LARGE = Model("Large", 317.4e6, 6 * 302e6 * 50 / 1e9 + 18, 9720, 250_000)


@dataclass(frozen=True)
class Plan:
    gpus: int
    audio_per_gpu: float  # seconds in one update
    compute: float  # seconds
    exchange: float  # seconds, if nothing overlaps
    days: float
    read_mb: float  # megabytes per second and node
    workers: float  # reader processes per GPU


def plan(model: Model, gpus: int) -> Plan:
    """One update: compute, then a ring all-reduce of float32 gradients inside nodes of 8 and between them."""
    gradients = 4 * model.parameters / 1e9  # GB
    compute = model.seconds_per_update * model.gflop_per_second_of_audio / gpus / (PEAK_TFLOPS * REACHED * 1000)
    inside, nodes = min(gpus, 8), max(1, gpus // 8)
    exchange = 2 * (inside - 1) / inside * gradients / NVLINK_GBS
    exchange += 2 * (nodes - 1) / nodes * gradients / inside / NETWORK_GBS
    update = compute + exchange
    audio = model.seconds_per_update / update
    return Plan(
        gpus=gpus,
        audio_per_gpu=model.seconds_per_update / gpus,
        compute=compute,
        exchange=exchange,
        days=update * model.updates / 86400,
        read_mb=audio * FLAC_BYTES_PER_SECOND / nodes / 1e6,
        workers=audio / gpus / READ_PER_WORKER,
    )


def table(model: Model) -> str:
    head = ["GPUs", "audio per GPU", "compute", "exchange", "exchange share"]
    head += ["whole run", "read per node", "readers/GPU"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for gpus in GPUS:
        p = plan(model, gpus)
        share = p.exchange / (p.compute + p.exchange)
        cells = [f"{gpus}", f"{p.audio_per_gpu:.0f} s", f"{1000 * p.compute:.0f} ms", f"{1000 * p.exchange:.1f} ms"]
        cells += [f"{share:.0%}", f"{p.days:.2g} days", f"{p.read_mb:.0f} MB/s", f"{p.workers:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    for model in (BASE, LARGE):
        print(f"**{model.name}**: {model.parameters / 1e6:.0f} M parameters, {model.updates:,} updates")
        print(f"of {model.seconds_per_update:g} s of audio each.\n\n{table(model)}\n")


if __name__ == "__main__":
    main()
