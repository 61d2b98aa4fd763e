"""What a run folder says about itself: its configuration, metrics, incidents, scores and probes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from speechssl.asr.files import read_settings
from speechssl.build import build_objective
from speechssl.checkpoint import Checkpoint, load_checkpoint
from speechssl.config import Config, read_run
from speechssl.errors import UserError
from speechssl.page.charts import Point

Curves = dict[str, list[Point]]
TEXTS = ("id", "words", "substitutions", "insertions", "deletions", "reference", "hypothesis")  # per_utterance.tsv


class PageError(UserError):
    """A page that cannot be made. The message names the folder or the file and what to do."""


@dataclass(frozen=True)
class Spoken:
    """One scored utterance."""

    id: str
    words: int
    errors: int
    reference: str
    hypothesis: str

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


@dataclass(frozen=True)
class Scored:
    """What `speechssl score` wrote into one folder.

    Attributes:
        set: the folder's name.
        numbers: score.json.
        utterances: of per_utterance.tsv, in its order.
        made_with: settings of the decode file; empty if they are lost.
    """

    set: str
    numbers: dict[str, Any]
    utterances: list[Spoken]
    made_with: dict[str, Any]

    @property
    def manifest(self) -> str:
        return str(self.made_with.get("manifest") or "")


@dataclass(frozen=True)
class RunRecord:
    """A run folder. `colour` is its place on the page."""

    name: str
    folder: Path
    colour: int
    config: Config
    train: Curves
    valid: Curves
    incidents: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)

    @property
    def objective(self) -> str:
        return str(self.config.objective.get("name", ""))

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The best, else the newest; None: there is none that can be used (`problem` says why)."""
        try:
            return load_checkpoint(self.folder)
        except UserError as error:
            self.__dict__["problem"] = str(error)
            return None

    @cached_property
    def problem(self) -> str:
        return "" if self.checkpoint else self.__dict__["problem"]

    @cached_property
    def chance(self) -> dict[str, float]:
        """What each metric is when nothing has been learnt; empty where the objective cannot be built."""
        if self.checkpoint is not None:
            return self.checkpoint.objective.chance()
        if ":" in self.objective:  # somebody's code, of which only a checkpoint may ask to be trusted
            return {}
        try:
            return build_objective(self.config).chance()
        except UserError:
            return {}


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The run folders themselves, or those that lie in the folders named. Raises PageError."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        found = [path] if (path / "config.yaml").is_file() else _children(path)
        if not found:
            raise PageError(f"{path}: neither a run folder nor a folder of runs (no config.yaml); train first.")
        folders |= dict.fromkeys(found)
    names = _names(list(folders))
    return [_read(folder, name, colour) for colour, (folder, name) in enumerate(zip(folders, names, strict=True))]


def _children(path: Path) -> list[Path]:
    return sorted(config.parent for config in path.glob("*/config.yaml")) if path.is_dir() else []


def _names(folders: list[Path]) -> list[str]:
    """The last parts of the paths: as few as tell them apart."""
    for depth in range(1, 8):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str, colour: int) -> RunRecord:
    train, valid = read_metrics(folder / "metrics.jsonl")
    scores = [_read_score(path) for path in sorted(folder.glob("score/*/score.json"))]
    return RunRecord(name, folder, colour, read_run(folder), train, valid, _incidents(folder), scores)


def read_metrics(path: Path) -> tuple[Curves, Curves]:
    """Every number of metrics.jsonl by name: (training, validation). Lines that cannot be read are passed over."""
    curves: dict[str, Curves] = {"train": {}, "valid": {}}
    for row in _lines(path):
        split, step = row.get("split"), row.get("step")
        if split in curves and isinstance(step, int):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    curves[split].setdefault(name, []).append((step, value))
    return curves["train"], curves["valid"]


def _incidents(folder: Path) -> list[dict[str, Any]]:
    return [row for row in _lines(folder / "incidents.jsonl") if "sentence" in row]


def _lines(path: Path):
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # the half line of a run that goes on, or was killed
                continue
            if isinstance(row, dict):
                yield row


def _read_score(path: Path) -> Scored:
    """Raises PageError: files that `speechssl score` did not write so."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        for name in ("wer", "low", "high", "cer", "words", "utterances"):
            float(numbers[name])
        lines = (path.parent / "per_utterance.tsv").read_text(encoding="utf-8").splitlines()
        utterances = [_spoken(dict(zip(TEXTS, line.split("\t"), strict=True))) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError):
        raise PageError(f"{path.parent}: not what `speechssl score` writes; score this set again.") from None
    made_with = numbers.get("made_with") or read_settings(path.parents[2] / "decode" / f"{path.parent.name}.jsonl")
    return Scored(path.parent.name, numbers, utterances, made_with)


def _spoken(row: dict[str, str]) -> Spoken:
    errors = sum(int(row[name]) for name in ("substitutions", "insertions", "deletions"))
    return Spoken(row["id"], int(row["words"]), errors, row["reference"], row["hypothesis"])
