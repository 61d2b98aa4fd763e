#!/usr/bin/env python
"""Runs a command for so many minutes and watches its memory, open files and processes; then says whether they grow.

    python tools/soak.py soak.jsonl --minutes 62 -- python -m speechssl pretrain --preset wav2vec2-tiny-mel ...

A line of the file is one look at the command and everything it started: resident memory in MB (`rss`, where pages that
processes share count for each; `pss`, where they count once, if the system tells it), `files` open, `processes`. After
the last minute the command gets SIGTERM. Status 1: it had ended before, ended badly, or left processes. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

MARKS = (2, 5, 10, 20, 40, 60)  # minutes of the summary
AROUND = 1.0  # minutes on either side of a mark whose median is taken
SETTLED = 10.0  # minutes (or a third of a shorter soak) after which the slope is fitted
PATIENCE = 300.0  # seconds for the command to end after SIGTERM
STATUSES = (0, 75, -signal.SIGTERM)  # 75: saved, and may be started again
Process = tuple[int, int]  # id, and when it started: ids are used again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines; written anew")
    parser.add_argument("--minutes", type=float, default=62.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the command ends with this one
    with arguments.output.open("w") as file:
        looks, status, left = soak(arguments.command, arguments.minutes, arguments.every, file)
    print("\n".join(summary(looks)))
    print(f"the command ended with status {status}")
    for process, name in left.items():
        print(f"LEFT BEHIND: process {process[0]} ({name})")
    early = not looks or looks[-1]["minute"] < arguments.minutes - 2 * arguments.every / 60
    if early:
        print("it ended before its time")
    return int(early or bool(left) or status not in STATUSES)


def soak(command: list[str], minutes: float, every: float, file) -> tuple[list[dict], int, dict[Process, str]]:
    """What was seen, the exit status, and the processes that outlived the command (which are killed)."""
    began, child, seen = time.monotonic(), subprocess.Popen(command), dict[Process, str]()
    looks: list[dict] = []
    try:
        while child.poll() is None and time.monotonic() - began < minutes * 60:
            tree = family(child.pid)
            seen |= tree
            looks.append({"minute": round((time.monotonic() - began) / 60, 3), **measure(tree)})
            file.write(json.dumps(looks[-1]) + "\n")
            file.flush()
            time.sleep(every)
        seen |= family(child.pid)
        child.terminate()
        status = child.wait(PATIENCE)
    finally:
        child.kill()
        child.wait()
    time.sleep(1.0)  # for the system to bury the dead
    left = {process: name for process, name in seen.items() if _born(process[0]) == process[1]}
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    return looks, status, left


def family(root: int) -> dict[Process, str]:
    """A process and all that descend from it, with their names."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        if (fields := _stat(int(path.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, waiting = dict[Process, str](), [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        if (born := _born(pid)) is not None:
            found[pid, born] = _read(pid, "comm").strip()
    return found


def measure(tree: dict[Process, str]) -> dict[str, float]:
    """Megabytes, open files and processes of a family."""
    sums = {"rss": 0.0, "pss": 0.0, "files": 0, "processes": len(tree)}
    for pid, _ in tree:
        rows = [line.split() for line in _read(pid, "smaps_rollup").splitlines()[1:]]
        kilobytes = {row[0]: int(row[1]) for row in rows}
        pages = (_read(pid, "statm").split() or ["0", "0"])[1]
        sums["rss"] += kilobytes.get("Rss:", int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024) / 1024
        sums["pss"] += kilobytes.get("Pss:", 0) / 1024
        try:
            sums["files"] += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:  # it has just ended
            continue
    return {name: round(value, 1) for name, value in sums.items() if name != "pss" or value}


def summary(looks: list[dict]) -> list[str]:
    """Medians around the marks as a table, and how memory goes after the first minutes."""
    names = [name for name in ("rss", "pss", "files", "processes") if looks and name in looks[-1]]
    lines = [f"| minute | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for mark in MARKS:
        near = [look for look in looks if abs(look["minute"] - mark) <= AROUND]
        if near and looks[-1]["minute"] >= mark:
            values = [statistics.median(look.get(name, 0) for look in near) for name in names]
            lines.append(f"| {mark} | {' | '.join(f'{value:.0f}' for value in values)} |")
    last = looks[-1]["minute"] if looks else 0.0
    settled = [look for look in looks if look["minute"] >= min(SETTLED, last / 3)]
    for name in names[:-2]:
        if len(settled) > 2:
            slope = np.polyfit([look["minute"] for look in settled], [look.get(name, 0) for look in settled], 1)[0]
            first, most = settled[0]["minute"], max(look.get(name, 0) for look in looks)
            lines.append(f"{name}: {slope:+.2f} MB a minute from minute {first:.0f} on; at most {most:.0f} MB")
    return lines


def _born(pid: int) -> int | None:
    """When a living process started, in the system's ticks; None: it is dead."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (the state) on."""
    return _read(pid, "stat").rpartition(")")[2].split() or None


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
