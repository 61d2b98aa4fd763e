"""How cost grows: with the length of an utterance, with the batch, and with the number of utterances at the start.

    python tools/growth.py length       # 10, 30 and 60 s an utterance, the same seconds of audio a step
    python tools/growth.py batch        # 1 to 64 utterances
    python tools/growth.py start        # a manifest of 300,000 utterances: read, checked, planned

Prints Markdown. Seconds of audio per second should not fall as a batch grows, and with the
length only by attention's share.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from speechssl.bench.step import run_apart
from speechssl.bench.table import case_of
from speechssl.config import load
from speechssl.data.batching import plan_epoch
from speechssl.data.dataset import SpeechDataset
from speechssl.data.manifest import Manifest, Utterance

LENGTHS = ((10.0,) * 6, (30.0,) * 2, (60.0,))
UTTERANCES = 300_000


def steps(preset: str, batches: list[tuple[float, ...]], precision: str, threads: int) -> str:
    """A line per batch: seconds and audio seconds per second of a step, peak memory, and GFLOP per second of audio."""
    case = case_of(load(preset, ["encoder.context.layer_drop=0"]), batches[0], precision, 2, threads)
    lines = ["| batch | step s | audio s/s | peak GB | GFLOP per audio s |", "|---|---|---|---|---|"]
    for seconds in batches:
        row, total = run_apart(replace(case, seconds=seconds)), sum(seconds)
        cells = [f"{len(seconds)} x {seconds[0]:g} s", f"{row['step']:.3f}", f"{total / row['step']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak_gb']:.2f}", f"{row['gflop'] / total:.2f}"]) + " |")
    return "\n".join(lines)


def start(count: int) -> str:
    """Seconds of this process's CPU time until the first batch is known, by part."""
    data = load("wav2vec2-base").data
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        made = (  # 2 to 17 s, speakers of a hundred utterances each
            Utterance(
                id=f"speaker{i // 100}-chapter{i % 7}-{i:06d}",
                audio=f"{folder}/audio/speaker{i // 100}/chapter{i % 7}/speaker{i // 100}-chapter{i % 7}-{i:06d}.flac",
                num_samples=32_000 + i * 7919 % 240_000,
                sample_rate=16_000,
                speaker=f"speaker{i // 100}",
            )
            for i in range(count)
        )
        Manifest.of(made).write(file)
        found: dict[str, float] = {}

        def timed(name: str, work: Callable):
            began = time.process_time()
            result = work()
            found[name] = time.process_time() - began
            return result

        manifest = timed("read and check", lambda: Manifest.read(file))
        dataset = timed("choose by length", lambda: SpeechDataset(manifest, data))
        timed("order of an epoch", lambda: plan_epoch(dataset.lengths, dataset.budget, seed=0, epoch=0, crop=data.crop))
        size = file.stat().st_size / 1e6
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
    return f"{count:,} utterances ({size:.0f} MB of JSON lines): {sum(found.values()):.2f} s of CPU time; {parts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("length", "batch", "start"))
    parser.add_argument("--preset", default="wav2vec2-small")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each utterance in `batch` (4)")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="of the manifest in `start` (300,000)")
    options = parser.parse_args()
    if options.what == "start":
        print(start(options.utterances))
        return
    sizes = [(options.seconds,) * n for n in (1, 4, 16, 64)]
    batches = list(LENGTHS) if options.what == "length" else sizes
    print(steps(options.preset, batches, options.precision, options.threads))


if __name__ == "__main__":
    main()
