#!/usr/bin/env python
"""The faults of tools/faults.py for transformers' run_wav2vec2_pretraining_no_trainer.py, and what it does with each.

    python tools/peer_faults.py run_wav2vec2_pretraining_no_trainer.py
    python tools/peer_faults.py run_wav2vec2_pretraining_no_trainer.py --write docs/reliability.md

The script is in transformers' repository (examples/pytorch/speech-pretraining) and needs `datasets` of a version that
decodes audio with soundfile (3.6). It trains a small model on 24 short files, on the CPU, and saves after every third
update; the table has the form of ours, and goes between the marks of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="peer-faults-")

import datasets  # noqa: F401  (the children find it imported)
import numpy as np
import soundfile
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_training import RATE, make_corpus, put_table

BEGIN, END = "<!-- peer faults: made by tools/peer_faults.py -->", "<!-- /peer faults -->"
UPDATES, SAVED_EVERY, STRUCK = 24, 3, 16
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_negatives": 5}
SIZES |= {"num_codevectors_per_group": 8, "codevector_dim": 8, "proj_codevector_dim": 8}
SIZES |= {"num_feat_extract_layers": 3, "conv_dim": (12, 12, 16), "conv_kernel": (10, 4, 4), "conv_stride": (5, 4, 4)}
SIZES |= {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "mask_time_length": 3}


class Scene:
    """A corpus, a model to begin with, and a run of its own."""

    def __init__(self, folder: Path, script: Path):
        self.corpus, self.run, self.log, self.script = folder / "corpus", folder / "run", folder / "log", script
        self.utterances = make_corpus(self.corpus)
        for manifest in self.corpus.glob("*.jsonl"):
            manifest.unlink()
        model = folder / "model"
        transformers.Wav2Vec2Config(**SIZES).save_pretrained(model)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(model)
        numbers: dict[str, Any] = {"max_train_steps": UPDATES, "saving_steps": SAVED_EVERY, "logging_steps": 1}
        numbers |= {"per_device_train_batch_size": 2, "min_duration_in_seconds": 0.1, "validation_split_percentage": 10}
        numbers |= {"dataset_name": self.corpus, "dataset_config_names": "default", "dataset_split_names": "train"}
        numbers |= {"model_name_or_path": model, "output_dir": self.run, "cache_dir": folder / "cache", "seed": 1}
        numbers |= {"learning_rate": 1e-3, "num_warmup_steps": 5}
        self.arguments = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        self.child, self.told = 0, 0

    def start(self) -> None:
        """In a process forked from this one, which has imported everything."""
        self.told = len(self.log.read_text()) if self.log.exists() else 0
        self.child = os.fork()
        if self.child:
            return
        status = 1
        try:
            with self.log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            sys.argv = [str(self.script), *self.arguments]
            runpy.run_path(str(self.script), run_name="__main__")
            status = 0
        except BaseException as error:
            status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1  # as Python itself does
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def done(self) -> int:
        """Updates that the last start has told of."""
        return self.log.read_text()[self.told :].count("| loss: ") if self.log.exists() else 0

    def until(self, update: int) -> None:
        while self.done() < update and os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    def said(self) -> str:
        """The last line of the last start that speaks of an error."""
        lines = [line.strip() for line in self.log.read_text()[self.told :].splitlines()]
        found = [line for line in lines if "Error" in line.split(":")[0]]
        return found[-1].replace(str(self.corpus), "corpus").replace(str(self.run), "run") if found else ""

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the checkpoint; empty if there is none that can be read."""
        try:
            return load_file(self.run / "model.safetensors")
        except (OSError, SafetensorError):
            return {}


@dataclass(frozen=True)
class Fault:
    name: str
    happens: Callable[[Scene], int]  # returns the exit status
    again: bool = True  # whether the same command is given again


def struck(number: signal.Signals, harm: Callable[[Scene], None] = lambda scene: None) -> Callable[[Scene], int]:
    def happens(scene: Scene) -> int:
        scene.start()
        scene.until(STRUCK)
        os.kill(scene.child, number)
        status = scene.end()
        harm(scene)
        return status

    return happens


def cut_checkpoint(scene: Scene) -> None:
    os.truncate(scene.run / "model.safetensors", 2000)


def with_audio(change: Callable[[Path], None]) -> Callable[[Scene], int]:
    """One of the 24 files is like that from the start."""

    def happens(scene: Scene) -> int:
        change(Path(scene.utterances[4].audio))
        scene.start()
        return scene.end()

    return happens


def cut_audio(path: Path) -> None:
    os.truncate(path, 3000)


def empty_audio(path: Path) -> None:
    path.write_bytes(b"")


def nan_audio(path: Path) -> None:
    soundfile.write(path, np.full(RATE // 2, np.nan, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    path.rename(path.with_suffix(".wav"))


FAULTS = [
    Fault("SIGKILL (out of memory, power)", struck(signal.SIGKILL)),
    Fault("SIGTERM (time is up, preemption)", struck(signal.SIGTERM)),
    Fault("Ctrl-C", struck(signal.SIGINT)),
    Fault("SIGKILL, and its checkpoint cut short", struck(signal.SIGKILL, cut_checkpoint)),
    Fault("1 of 24 audio files cut short", with_audio(cut_audio), again=False),
    Fault("1 of 24 audio files empty", with_audio(empty_audio), again=False),
    Fault("1 of 24 audio files holds NaN", with_audio(nan_audio), again=False),
]


def play(fault: Fault, folder: Path, script: Path, whole: dict[str, torch.Tensor]) -> list[str]:
    scene = Scene(folder, script)
    status, said = fault.happens(scene), scene.said()
    weights, shown = scene.weights(), signal.Signals(-status).name if status < 0 else str(status)
    rotten = sum(not tensor.isfinite().all() for tensor in weights.values())
    state = f"update {scene.done()}, " + ("weights saved" if weights else "nothing that can be read")
    state += f", {rotten} of {len(weights)} tensors not finite" if rotten else ""
    again = ""
    if fault.again:
        scene.start()
        second = scene.end()
        final = scene.weights()
        equal = final.keys() == whole.keys() and all(final[name].equal(whole[name]) for name in whole)
        began = UPDATES - scene.done()
        again = f"status {second}; begins at update {began}; " + ("equal to the bit" if equal else "other weights")
    return [fault.name, f"killed by {shown}" if status < 0 else shown, said.replace("|", "\\|"), state, again]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="run_wav2vec2_pretraining_no_trainer.py")
    parser.add_argument("--write", type=Path, help="file whose table is replaced")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [["fault", "exit status", "what it says", "state afterwards", "the same command again"]]
    with tempfile.TemporaryDirectory(prefix="peer-faults-") as temporary:
        undisturbed = Scene(Path(temporary) / "undisturbed", arguments.script)
        undisturbed.start()
        if status := undisturbed.end():
            print(f"the undisturbed run failed with status {status}:\n{undisturbed.log.read_text()[-4000:]}")
            return 1
        whole = undisturbed.weights()
        for number, fault in enumerate(FAULTS):
            if arguments.only in fault.name:
                rows.append(play(fault, Path(temporary) / str(number), arguments.script, whole))
                print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    if arguments.write:
        put_table(rows, arguments.write, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
