#!/usr/bin/env python
"""Kills a tiny training run at random moments, goes on, kills it again, and compares it with an undisturbed one.

    python tools/chaos.py --kills 50
    python tools/chaos.py --kills 10 --signal TERM --processes 2

Half of the moments are drawn from the whole of a life (start, updates, validation), half from the milliseconds in which
a checkpoint is being written. A run that comes to its end is compared, and another one takes the remaining kills. What
must come out: the same weights and moments to the bit, the same metrics, no line missing or twice, nothing left behind.
Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ACCELERATE_USE_CPU"] = "true"

import torch
from safetensors.torch import load_file
from tiny_training import fork_training, make_corpus, tiny_config

from speechssl.claim import LOCK
from speechssl.config import Config
from speechssl.stored import CheckpointError, read_record

SAVE_EVERY = 5  # updates; validation, which may save too, is every ten
TIMING = {"audio_per_second", "wait", "seconds"}  # what no two runs share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument(
        "--processes", type=int, default=1, help="TERM goes to one of them once they train, else to all"
    )
    parser.add_argument("--updates", type=int, default=30, help="of each run")
    parser.add_argument("--workers", type=int, default=0, help="reader processes of each training process")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep everything here; default: a temporary folder")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        return torment(arguments, arguments.folder)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return torment(arguments, Path(folder))


def torment(arguments: argparse.Namespace, folder: Path) -> int:
    torch.set_num_threads(1)
    make_corpus(folder / "corpus")
    config = tiny_config(
        folder / "corpus",
        data={"workers": arguments.workers},
        train={"updates": arguments.updates, "save_every": SAVE_EVERY, "rank_seconds": 30.0},
    )
    whole = Life(config, folder / "undisturbed", arguments.processes)
    statuses = whole.wait()
    if any(statuses):
        print(f"the undisturbed run failed with status {statuses}:\n{whole.log.read_text()}", file=sys.stderr)
        return 1
    print(f"undisturbed: {arguments.updates} updates in {whole.age():.1f} s")
    chance, moments, differences = random.Random(arguments.seed), Counter[str](), []
    run, runs, kills = folder / "run-1", 1, 0
    while True:
        life = Life(config, run, arguments.processes)
        if kills < arguments.kills:
            moment = life.until_a_moment(chance, horizon=whole.age())
            if moment:
                life.kill(getattr(signal, f"SIG{arguments.signal}"), chance)
                kills += 1
                moments[moment] += 1
                differences += sound(run)
                continue
        statuses = life.wait()
        found = [f"status {statuses}: {life.log.read_text()[-2000:]}"] if any(statuses) else compare(whole.folder, run)
        differences += [f"run {runs}: {difference}" for difference in found]
        if kills >= arguments.kills or any(statuses):
            break
        shutil.rmtree(run)
        runs += 1
        run = folder / f"run-{runs}"
    said = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    print(f"{kills} times SIG{arguments.signal} ({said}), {runs} runs brought to their end")
    for difference in differences:
        print(f"DIFFERENT: {difference}")
    if not differences:
        print("all of them are equal to the undisturbed run to the bit; their metrics have no gaps and no doubles")
    return int(bool(differences))


class Life:
    """One start of a run, on one or several processes."""

    def __init__(self, config: Config, folder: Path, processes: int):
        self.folder, self.log, self.born = folder, folder.with_name(f"{folder.name}.log"), time.monotonic()
        self.told = len(self.log.read_text()) if self.log.exists() else 0  # by earlier lives
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.children = [
            fork_training(config, folder, self.log, world=processes, rank=rank, port=port) for rank in range(processes)
        ]
        self.ended: dict[int, int] = {}

    def age(self) -> float:
        return (self.died if self.ended else time.monotonic()) - self.born

    def wait(self) -> list[int]:
        """Exit statuses; negative: the signal that ended it."""
        for child in self.children:
            if child not in self.ended:
                self.ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.died = time.monotonic()
        return [self.ended[child] for child in self.children]

    def until_a_moment(self, chance: random.Random, horizon: float) -> str:
        """Waits for a moment to strike and says which it is; empty: the run came to its end before."""
        if chance.random() < 0.5:
            strikes, wanted = time.monotonic() + chance.uniform(0, horizon / 3), ""
        else:
            strikes, wanted = float("inf"), f".step-{self._some_save(chance):08d}.part"
        while time.monotonic() < strikes:
            if self._is_over():
                return ""
            if wanted and (self.folder / "checkpoints" / wanted).exists():
                time.sleep(chance.uniform(0, 0.004))
                break
            time.sleep(0.0003)
        if list((self.folder / "checkpoints").glob(".*.part")):
            return "while saving"
        return "between saves" if (self.folder / "metrics.jsonl").exists() else "before the first update"

    def kill(self, number: int, chance: random.Random) -> None:
        trains = self.log.exists() and "train " in self.log.read_text()[self.told :]
        for child in [chance.choice(self.children)] if number == signal.SIGTERM and trains else self.children:
            if child not in self.ended:
                os.kill(child, number)
        statuses = self.wait()
        allowed = {-number, 0} | ({75} if number == signal.SIGTERM else set())  # 0: it had just come to its end
        assert set(statuses) <= allowed, (statuses, self.log.read_text()[-2000:])

    def _some_save(self, chance: random.Random) -> int:
        saved = [int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")]
        return max(saved, default=0) // SAVE_EVERY * SAVE_EVERY + SAVE_EVERY * chance.randint(1, 2)

    def _is_over(self) -> bool:
        for child in self.children:
            if child not in self.ended:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    self.ended[child] = os.waitstatus_to_exitcode(status)
        return len(self.ended) == len(self.children)


def sound(run: Path) -> list[str]:
    """Every checkpoint that a killed run shows must be whole."""
    problems = []
    for path in (run / "checkpoints").glob("step-*"):
        try:
            read_record(path)
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def compare(whole: Path, run: Path) -> list[str]:
    """What differs between two finished runs."""
    names = [path.name for path in run.rglob("*") if path.name != LOCK]
    left = [name for name in names if name.startswith((".", "damaged")) or name.endswith(".part")]
    problems = [f"{name} is left behind" for name in left]
    last = max((whole / "checkpoints").glob("step-*"))
    for file in last.glob("*.safetensors"):  # after a SIGTERM there are other checkpoints besides
        one, other = load_file(file), load_file(run / file.relative_to(whole))
        different = [name for name in one if not one[name].equal(other[name])]
        problems += [f"{last.name}/{file.name}: {name}" for name in different]
    best = [json.loads((folder / "checkpoints" / "best.json").read_text()) for folder in (whole, run)]
    if best[0] != best[1]:
        problems.append(f"best.json is {best[1]}, not {best[0]}")
    expected, written = lines(whole), lines(run)
    places = [(line["split"], line["step"]) for line in written]
    problems += [f"metrics.jsonl: {place} comes {n} times" for place, n in Counter(places).items() if n > 1]
    if expected != written:
        problems.append(f"metrics.jsonl: {len(written)} lines differ from {len(expected)}")
    return problems


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without what only measures time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


if __name__ == "__main__":
    sys.exit(main())
