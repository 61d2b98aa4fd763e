#!/usr/bin/env python
"""Breaks a tiny training run in every way that a week on shared machines does, and writes down what happened.

    python tools/faults.py                        prints the table
    python tools/faults.py --write docs/reliability.md      and puts it between the marks of that file

Every fault is real where it can be made so: signals, a file system of a megabyte (tmpfs, as root; else a limit on the
size of files), a pipe that nobody writes to, deleted and damaged files. Only read errors of a disk (EIO) are pretended.
"The same command again" is run without the fault and compared with an undisturbed run, weights and moments, to the bit.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ACCELERATE_USE_CPU"] = "true"

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from tiny_training import RATE, UPDATES, Scene, put_table

import speechssl.train  # noqa: F401  (the children find it imported)
from speechssl.data import audio

BEGIN, END = "<!-- faults: made by tools/faults.py -->", "<!-- /faults -->"


@dataclass(frozen=True)
class Fault:
    name: str
    happens: Callable[[Scene], int]  # returns the exit status
    goes_away: Callable[[Scene], None] | None = None  # None: the command is not given again
    equal: bool = True  # whether the same command again must end as the undisturbed run does


# ------------------------------------------------------------------------------------------------------- what happens


def by_signal(number: signal.Signals) -> Callable[[Scene], int]:
    def happens(scene: Scene) -> int:
        scene.start()
        scene.until(7)
        os.kill(scene.children[0], number)
        return scene.end()

    return happens


def full_disk(scene: Scene, *, forever: bool, **numbers) -> int:
    """A megabyte for the run, and something else that fills it from update 7 on; numbers: of `train`."""
    scene.run.mkdir()
    mounted = _mount(scene.run)

    def limit() -> None:
        if not mounted and forever:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))

    scene.start(scene.config(train=numbers), prepare=limit)
    scene.until(7)
    if mounted:
        _fill(scene.run / "somebody.elses.part")
        if not forever:
            scene.until(13)
            (scene.run / "somebody.elses.part").unlink()
    return scene.end()


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def room_again(scene: Scene) -> None:
    (scene.run / "somebody.elses.part").unlink(missing_ok=True)


def read_errors(scene: Scene, *, times: int) -> int:
    """The system says EIO whenever one file is opened, this many times."""
    bad, left, real = scene.utterances[3].audio, [times], soundfile.SoundFile

    def opened(file, *arguments):
        if file == bad and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, *arguments)

    def prepare() -> None:
        audio.soundfile.SoundFile = opened
        audio.WAITS = (0.01, 0.01, 0.01)

    scene.start(prepare=prepare)
    return scene.end()


def newest_checkpoint(scene: Scene, harm: Callable[[Path], None], *, every: bool = False) -> int:
    """A run killed between two saves, whose newest checkpoint (or every one) is then damaged, goes on."""
    scene.start()
    scene.until(14)
    os.kill(scene.children[0], signal.SIGKILL)
    scene.end()
    for path in scene.saved() if every else scene.saved()[-1:]:
        harm(path)
    scene.start()
    return scene.end()


def cut_short(path: Path) -> None:
    os.truncate(path / "optimizer.safetensors", 2000)


def flip_a_bit(path: Path) -> None:
    file = path / "objective.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def another_digit(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace('"epoch": ', '"epoch": 1'))


def rotten(scene: Scene, count: int) -> int:
    """Cut short, emptied and deleted before the run."""
    for number, utterance in enumerate(scene.utterances[4 : 4 + count]):
        path = Path(utterance.audio)
        (path.unlink, lambda p=path: os.truncate(p, 3000), lambda p=path: p.write_bytes(b""))[number % 3]()
    scene.start(scene.config(train={"updates": 60}))
    return scene.end()


def deleted(scene: Scene, *, every: bool) -> int:
    """Audio that vanishes while the run reads it."""
    scene.start()
    scene.until(5)
    scene.run.with_name("elsewhere").mkdir()
    for utterance in scene.utterances if every else scene.utterances[4:5]:
        shutil.move(utterance.audio, scene.run.with_name("elsewhere"))
    return scene.end()


def audio_is_back(scene: Scene) -> None:
    for path in scene.run.with_name("elsewhere").iterdir():
        shutil.move(path, scene.corpus)


def overflow(scene: Scene, *, every: bool) -> int:
    """Samples that are finite and so large that nothing computed from them is."""
    for utterance in scene.utterances if every else scene.utterances[4:5]:
        samples = 3.4e38 * np.ones(utterance.num_samples)
        soundfile.write(utterance.audio, samples, RATE, format="WAV", subtype="FLOAT")
    config = scene.config(data={"valid": ""}, train={"seconds_per_update": 2.5, "max_skipped": 5})
    scene.start(config)
    return scene.end()


def stalled(scene: Scene) -> int:
    """One of the files is a pipe that nobody writes to: reading it never ends."""
    path = Path(scene.utterances[4].audio)
    path.unlink()
    os.mkfifo(path)
    scene.start(scene.config(data={"workers": 1, "valid": ""}, train={"stall_seconds": 2.0}))
    return scene.end()


def reader_killed(scene: Scene) -> int:
    scene.start(scene.config(data={"workers": 1}))
    scene.until(5)
    readers = Path(f"/proc/{scene.children[0]}/task/{scene.children[0]}/children").read_text().split()
    os.kill(int(readers[0]), signal.SIGKILL)
    return scene.end()


def other_rank(scene: Scene, number: signal.Signals) -> int:
    scene.start(scene.config(train={"rank_seconds": 3.0, "updates": 10_000}), world=2)
    scene.until(5)
    os.kill(scene.children[1], number)
    return scene.end()


def collapse(scene: Scene, on_collapse: str) -> int:
    train = {"collapse_patience": 5, "on_collapse": on_collapse, "updates": 60}
    scene.start(scene.config(objective={"diversity_weight": -20.0}, optim={"lr": 0.03}, train=train))
    return scene.end()


def nothing(scene: Scene) -> None:
    """The fault has gone by itself."""


FAULTS = [
    Fault("SIGTERM or SIGUSR1 (time is up, preemption)", by_signal(signal.SIGTERM), nothing),
    Fault("Ctrl-C", by_signal(signal.SIGINT), nothing),
    Fault("SIGKILL (out of memory, power)", by_signal(signal.SIGKILL), nothing),
    Fault("disk full for a while", lambda scene: full_disk(scene, forever=False), room_again),
    Fault("disk full to the end", lambda scene: full_disk(scene, forever=True), room_again),
    Fault("disk full, max_unsaved=2", lambda scene: full_disk(scene, forever=True, max_unsaved=2), room_again),
    Fault("read error (EIO), twice", lambda scene: read_errors(scene, times=2), nothing),
    Fault("read error (EIO) of one file for ever", lambda scene: read_errors(scene, times=10**9)),
    Fault("newest checkpoint cut short", lambda scene: newest_checkpoint(scene, cut_short), nothing),
    Fault("newest checkpoint, one bit of the weights", lambda scene: newest_checkpoint(scene, flip_a_bit), nothing),
    Fault("newest checkpoint, one digit of state.json", lambda scene: newest_checkpoint(scene, another_digit), nothing),
    Fault("every checkpoint damaged", lambda scene: newest_checkpoint(scene, flip_a_bit, every=True)),
    Fault("1 of 24 audio files deleted during training", lambda scene: deleted(scene, every=False)),
    Fault("all audio gone during training", lambda scene: deleted(scene, every=True), audio_is_back),
    Fault("1 of 24 audio files rotten", lambda scene: rotten(scene, 1)),
    Fault("8 of 24 audio files rotten", lambda scene: rotten(scene, 8)),
    Fault("loss not finite for one utterance", lambda scene: overflow(scene, every=False)),
    Fault("loss not finite for all", lambda scene: overflow(scene, every=True)),
    Fault("a disk that hangs", stalled),
    Fault("a reader process killed", reader_killed, nothing),
    Fault("another process of the run hangs", lambda scene: other_rank(scene, signal.SIGSTOP)),
    Fault("another process of the run killed", lambda scene: other_rank(scene, signal.SIGKILL)),
    Fault("collapse, on_collapse=warn", lambda scene: collapse(scene, "warn")),
    Fault("collapse, on_collapse=stop", lambda scene: collapse(scene, "stop")),
]


# ----------------------------------------------------------------------------------------------------------- the table


def play(fault: Fault, folder: Path, whole: dict[str, torch.Tensor]) -> tuple[list[str], bool]:
    """A row of the table, and whether the same command again did what it must."""
    scene = Scene(folder)
    try:
        status, said = fault.happens(scene), scene.said()
        after = f"update {scene.done()}" + (f", {scene.saved()[-1].name} saved" if scene.saved() else ", nothing saved")
        again, good = "", True
        if fault.goes_away is not None:
            fault.goes_away(scene)
            scene.start()
            second = scene.end()
            path = scene.run / "checkpoints" / f"step-{UPDATES:08d}"
            good = second == 0 and path.is_dir() and same(final(path), whole)
            again = "equal to the bit" if good else f"DIFFERENT (status {second}): {scene.said()}"
        shown = f"killed by {signal.Signals(-status).name}" if status < 0 else str(status)
        return [fault.name, shown, said.replace("|", "\\|"), after, again], good
    finally:
        subprocess.run(["umount", str(scene.run)], capture_output=True)


def final(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "objective.safetensors") | load_file(path / "optimizer.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file whose table is replaced")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, bad = [["fault", "exit status", "what it says", "state afterwards", "the same command again"]], 0
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        undisturbed = Scene(Path(temporary) / "undisturbed")
        undisturbed.start()
        assert undisturbed.end() == 0, undisturbed.log.read_text()
        whole = final(undisturbed.run / "checkpoints" / f"step-{UPDATES:08d}")
        for number, fault in enumerate(FAULTS):
            if arguments.only in fault.name:
                row, good = play(fault, Path(temporary) / str(number), whole)
                print(json.dumps(row), flush=True)
                rows.append(row)
                bad += not good
    if arguments.write:
        put_table(rows, arguments.write, BEGIN, END)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
