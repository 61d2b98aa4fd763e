"""Our training step beside other toolkits', row by row: the table of docs/performance.md.

    python tools/speed_table.py speed.jsonl                          # every row; one that is done is not measured again
    python tools/speed_table.py speed.jsonl --only base-fp32 --rounds 3
    python tools/speed_table.py speed.jsonl --rounds 0               # only prints the table of what is there

Each measurement is a process of its own, and the toolkits take turns, so what else the machine does falls on all alike.
They get the same sizes, dropout (attention dropout too), masks, negatives and precision. `installed`: the allocator is
as it comes; `tuned`: told to keep its pages, as ours tells itself. fairseq, minimal_hubert and CPC_audio are imported
from checkouts (`speechssl/bench/checkouts.py`); without them their lines say so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from speechssl.bench.step import Case, gemm_limit, run_apart
from speechssl.bench.table import KEEP_PAGES, case_of, has_gpu, machine
from speechssl.build import without_corpus
from speechssl.config import Config, load, plain
from speechssl.errors import UserError

VARIED = (10.11, 15.43, 7.9, 6.51, 14.48, 7.15, 9.9, 11.13)  # seconds; skewed to the long as LibriSpeech is
FOLDER = (8.5, 16.8, 11.2, 6.7, 17.0, 12.3, 15.2, 14.6, 11.3, 4.2, 15.5, 16.9, 14.8, 11.4, 16.0, 16.8)


@dataclass(frozen=True)
class Peer:
    """Another toolkit's run, and how many times slower than ours it should be at least."""

    toolkit: str
    precision: str
    tuned: bool
    wanted: float

    @property
    def label(self) -> str:
        return f"{self.toolkit} {self.precision} {'tuned' if self.tuned else 'installed'}"


@dataclass(frozen=True)
class Row:
    name: str
    config: Callable[[], Config]
    seconds: tuple[float, ...]
    precision: str  # of ours
    peers: tuple[Peer, ...]
    encode: bool = False


def _preset(name: str) -> Callable[[], Config]:
    return lambda: load(name, ["encoder.context.layer_drop=0"])


def _small(name: str, **objective) -> Callable[[], Config]:
    """A preset's objective on the small encoder."""

    def config() -> Config:
        small = plain(load("wav2vec2-small", ["encoder.context.layer_drop=0"]))
        own = load(name, ["objective.vocab_size=32"] if name.startswith("ctc") else [])
        return without_corpus(own).override(encoder=small["encoder"], objective=objective)

    return config


def _cpc(heads: str) -> Callable[[], Config]:
    """Modified CPC as CPC_audio has it, with negatives from all of the batch, as without a sampler by speaker."""
    return lambda: load("cpc-modified", ["objective.negatives=batch", f"objective.heads={heads}"])


def _rows() -> list[Row]:
    def transformers(precision: str, tuned: bool, wanted: float) -> Peer:
        return Peer("transformers", precision, tuned, wanted)

    base, small, ten = _preset("wav2vec2-base"), _preset("wav2vec2-small"), (10.0,)
    bf16_base = (transformers("bf16", True, 1.45), transformers("fp32", False, 3.6))
    fp32_small = (transformers("fp32", True, 2.5), transformers("fp32", False, 4.5))
    bf16_small = (transformers("bf16", True, 2.5), transformers("fp32", False, 7.0))
    hubert = tuple(Peer(toolkit, "fp32", True, 2.3) for toolkit in ("torchaudio", "minimal_hubert"))
    ctc = _small("ctc-10min", freeze_encoder_updates=0)
    return [
        Row("base-fp32", base, ten * 4, "fp32", (transformers("fp32", True, 1.45), transformers("fp32", False, 2.0))),
        Row("base-bf16", base, ten * 4, "bf16", bf16_base),
        Row("small-fp32", small, ten * 8, "fp32", (*fp32_small, Peer("fairseq", "fp32", True, 1.9))),
        Row("small-bf16", small, ten * 8, "bf16", bf16_small),
        Row("var-fp32", small, VARIED, "fp32", (transformers("fp32", True, 3.0),)),
        Row("var-bf16", small, VARIED, "bf16", (transformers("bf16", True, 4.2),)),
        Row("hubert-small", _small("hubert-base-2"), ten * 8, "fp32", hubert),
        Row("cpc-linear", _cpc("linear"), (1.28,) * 8, "fp32", (Peer("cpc_audio", "fp32", True, 2.0),)),
        Row("cpc-transformer", _cpc("transformer"), (1.28,) * 8, "fp32", (Peer("cpc_audio", "fp32", True, 2.0),)),
        Row("ctc-small", ctc, ten * 4, "fp32", (transformers("fp32", True, 1.3),)),
        Row("encode-60-fp32", base, (60.0,), "fp32", (transformers("fp32", True, 1.1),), encode=True),
        Row("encode-60-bf16", base, (60.0,), "bf16", (transformers("bf16", True, 1.1),), encode=True),
        Row("encode-folder-fp32", base, FOLDER, "fp32", (transformers("fp32", True, 1.8),), encode=True),
        Row("encode-folder-bf16", base, FOLDER, "bf16", (transformers("bf16", True, 1.8),), encode=True),
    ]


def measure(row: Row, done: list[dict], rounds: int, steps: int, threads: int, write: Callable[[dict], None]) -> None:
    """Takes the measurements of a row that `done` lacks, in turns; a toolkit that fails has its sentence instead."""
    case = case_of(row.config(), row.seconds, row.precision, steps, threads, encode=row.encode)
    runs: list[tuple[str, Case, dict[str, str]]] = [(f"ours {row.precision}", case, {})]
    for peer in row.peers:
        theirs = replace(case, peer=peer.toolkit, precision=peer.precision, count_flops=False)
        runs.append((peer.label, theirs, {"GLIBC_TUNABLES": KEEP_PAGES} if peer.tuned else {}))
    have = {(found["label"], found["round"]) for found in done if found["row"] == row.name}
    for number in range(rounds):
        if all((label, number) in have for label, _, _ in runs):
            continue
        limit = gemm_limit(row.precision, "cuda" if has_gpu() else "cpu")
        for label, one, environment in runs:
            if (label, number) in have:
                continue
            line: dict = {"row": row.name, "label": label, "round": number, "limit": limit, "machine": machine()}
            try:
                line |= run_apart(one, environment)
            except UserError as error:
                line["error"] = str(error)
            write(line)


def table(rows: list[Row], lines: list[dict]) -> str:
    """A line per peer: medians over rounds, how many times slower than ours, what is wanted, and memory."""
    head = ["row", "against", "ours s", "theirs s", "slower by", "at least", "our memory / theirs", "of GEMM limit"]
    made = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def median(row: str, label: str, *keys: str) -> list[float]:
        found = [x for x in lines if x["row"] == row and x["label"] == label and keys[0] in x]
        return [statistics.median(x[key] for x in found if key in x) for key in keys] if found else []

    for row in rows:
        ours = f"ours {row.precision}"
        for peer in row.peers:
            errors = [x["error"] for x in lines if x["row"] == row.name and x["label"] == peer.label and "error" in x]
            mine, theirs = (median(row.name, label, "step", "peak_gb") for label in (ours, peer.label))
            if not mine or not theirs:
                if errors:
                    made.append(f"| {row.name} | {peer.label} | {errors[-1]} |" + " |" * (len(head) - 3))
                continue
            share = ""
            if not row.encode and (counted := median(row.name, ours, "gflop", "limit")):
                share = f"{counted[0] / mine[0] / counted[1]:.0%}"
            cells = [row.name, peer.label, f"{mine[0]:.3f}", f"{theirs[0]:.3f}", f"{theirs[0] / mine[0]:.2f} x"]
            cells += [f"{peer.wanted:g} x", f"{mine[1] / theirs[1]:.2f}", share]
            made.append("| " + " | ".join(cells) + " |")
    return "\n".join(made)


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON lines, one per measurement; continued where it exists")
    parser.add_argument("--only", action="append", metavar="ROW", help="a row by its name; several: give it again")
    parser.add_argument("--rounds", type=int, default=2, help="times that the toolkits take turns (2)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a turn (2), after one that is not")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    options = parser.parse_args()
    rows = _rows()
    if unknown := set(options.only or ()) - {row.name for row in rows}:
        parser.error(f"no row {sorted(unknown)[0]}; choose of {', '.join(row.name for row in rows)}")
    rows = [row for row in rows if not options.only or row.name in options.only]
    torch.set_num_threads(options.threads)  # of the limit; the toolkits set their own

    def write(line: dict) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{line['row']}, {line['label']}: {line.get('step', line.get('error'))}", flush=True)

    for row in rows:
        measure(row, read(options.out), options.rounds, options.steps, options.threads, write)
    print(table(rows, read(options.out)))


if __name__ == "__main__":
    main()
