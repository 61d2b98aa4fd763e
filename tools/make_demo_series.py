"""Made-up sensor data: two kinds of machine, three channels at 100 Hz; in each test recording something goes wrong.

    python tools/make_demo_series.py exp/series

writes train/pump/0.npy, train/fan/0.npy, ... (sound machines), test/pump-0.npy, ... with one anomaly each, and
test/anomalies.tsv, which says where they are. Shapes: T steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

RATE = 100  # Hz
MACHINES = {"pump": (3.0, 0.6), "fan": (5.0, 0.2)}  # turns a second, share of the second harmonic
ANOMALIES = ("stuck", "slip", "knock")
SECONDS = 2.0  # of an anomaly


def machine(kind: str, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """(3, T): vibration along two axes a quarter of a turn apart, and a temperature that follows the load."""
    turns, harmonic = MACHINES[kind]
    steps = round(seconds * RATE)
    load = np.repeat(generator.uniform(0.6, 1.4, steps // 300 + 2), 300)[generator.integers(300) :][:steps]
    phase = 2 * np.pi * np.cumsum(turns * (0.9 + 0.1 * load)) / RATE + generator.uniform(0, 2 * np.pi)
    x, y = np.sin(phase) + harmonic * np.sin(2 * phase), np.cos(phase) + harmonic * np.cos(2 * phase)
    temperature = np.empty(steps)
    level = load[0]
    for step, target in enumerate(load):
        level += (target - level) / (2 * RATE)
        temperature[step] = level
    noise = 0.1 * generator.standard_normal((3, steps))
    return np.stack([load * x, load * y, 60 + 10 * temperature]) + noise


def harm(series: np.ndarray, start: int, kind: str, generator: np.random.Generator) -> None:
    """Changes SECONDS of a series (3, T) from step `start` on.

    stuck: an axis stays where it was; slip: the axes move as one; knock: short rings on both.
    """
    stop = start + round(SECONDS * RATE)
    if kind == "stuck":
        series[0, start:stop] = series[0, start]
    elif kind == "slip":
        series[1, start:stop] = series[0, start:stop]
    else:
        ring = np.sin(2 * np.pi * 22 * np.arange(20) / RATE) * np.exp(-np.arange(20) / 6)
        for place in range(start, stop - len(ring), 35):
            series[:2, place : place + len(ring)] += generator.choice([-1.5, 1.5]) * ring


def write(folder: Path, *, files: int, seconds: float, seed: int) -> list[tuple[str, float, str]]:
    """Writes the corpus; returns the anomalies as (file, seconds from its start, kind)."""
    generator = np.random.default_rng(seed)
    found = []
    for kind in MACHINES:
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "test").mkdir(parents=True, exist_ok=True)
        for number in range(files):
            np.save(folder / "train" / kind / f"{number}.npy", machine(kind, seconds, generator).astype(np.float32))
        for number, anomaly in enumerate(ANOMALIES):
            series = machine(kind, seconds, generator)
            start = int(generator.integers(round(5 * RATE), round((seconds - 5) * RATE)))
            harm(series, start, anomaly, generator)
            np.save(folder / "test" / f"{kind}-{number}.npy", series.astype(np.float32))
            found.append((f"{kind}-{number}.npy", start / RATE, anomaly))
    rows = "".join(f"{name}\t{start:.2f}\t{start + SECONDS:.2f}\t{kind}\n" for name, start, kind in found)
    (folder / "test" / "anomalies.tsv").write_text("file\tstart\tend\tkind\n" + rows, encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; made if it is not there")
    parser.add_argument("--files", type=int, default=10, help="training recordings of each machine")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each recording, 15 or more")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.files < 1 or arguments.seconds < 15:
        parser.error("--files must be 1 or more and --seconds 15 or more")
    found = write(arguments.folder, files=arguments.files, seconds=arguments.seconds, seed=arguments.seed)
    print(f"{arguments.folder}: {2 * arguments.files} recordings to train on, {len(found)} with an anomaly to test")


if __name__ == "__main__":
    main()
