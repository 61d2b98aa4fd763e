"""A features folder: what an encoder's layer, or MFCC, says about every frame of a manifest. Sharded, memory-mapped.

    features.json       what they are: kind, checkpoint and layer, hop (samples), sample_rate (Hz), dim, manifest
    shard-00003.npy     (frames, dim) of neighbouring utterances of the manifest
    shard-00003.jsonl   one line per utterance: {"id": ..., "first": its first row, "count": rows}; written last

A shard without its .jsonl is not finished; the next call makes it again. Frame i begins at sample i * hop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from speechssl.data.manifest import Manifest
from speechssl.errors import UserError
from speechssl.files import whole_file, write_whole

FORMAT = 1
RECORD = "features.json"
LAYERS = "0 = input of the context network's first block, i = output of block i after residual and norm"


class FeaturesError(UserError):
    """Features that cannot be made or used. The message names the folder, the manifest or the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class FeaturesRecord:
    """
    kind: "mfcc" or "layer".
    hop: samples from one frame to the next, at sample_rate (Hz).
    sees: samples that a frame sees, from i * hop on; 0: not known.
    manifest: hash of the utterances they are of.
    checkpoint: the run or checkpoint, and its weights' hash; layer: which, by `layers`; for kind "layer" only.
    precision: of the encoder's products.
    window, context: seconds, by which the encoder read utterances longer than `window`; 0: there were none.
    num_shards: how many the folder has when it is finished.
    cmvn: whether every coefficient of MFCC has mean 0 and variance 1 over its utterance.
    """

    kind: Literal["mfcc", "layer"]
    hop: int
    sample_rate: int
    dim: int
    num_shards: int
    manifest: str
    checkpoint: str = ""
    weights: str = ""
    layer: int = -1
    layers: str = LAYERS
    sees: int = 0
    precision: str = "fp32"
    window: float = 0.0
    context: float = 0.0
    cmvn: bool = False

    def source(self) -> dict:
        """What the numbers mean, whatever utterances they are of: equal for train and validation."""
        names = ["kind", "hop", "sample_rate", "dim"] + ["weights", "layer", "layers"] * (self.kind == "layer")
        names += ["cmvn"] * self.cmvn  # clusters of before it know nothing of it
        return {name: getattr(self, name) for name in names}


def manifest_hash(manifest: Manifest) -> str:
    """Of ids and lengths, in order: equal for the same speech, wherever it lies."""
    digest = hashlib.sha256()
    for utterance in manifest:
        digest.update(f"{utterance.id}\t{utterance.num_samples}\t{utterance.sample_rate}\n".encode())
    return digest.hexdigest()


def shards_of(manifest: Manifest, hours_per_shard: float) -> list[Manifest]:
    """Neighbouring utterances, about so many hours each; a function of the arguments alone."""
    shards: list[list] = [[]]
    seconds = 0.0
    for utterance in manifest:
        if shards[-1] and seconds + utterance.seconds > hours_per_shard * 3600:
            shards.append([])
            seconds = 0.0
        shards[-1].append(utterance)
        seconds += utterance.seconds
    return [Manifest.of(shard) for shard in shards]


def shard_path(folder: Path, number: int) -> Path:
    """Of its array; `.jsonl` instead of `.npy` for its index."""
    return folder / f"shard-{number:05d}.npy"


def claim(folder: Path, record: FeaturesRecord) -> None:
    """Makes the folder, or checks that what lies in it is the same work begun. Raises FeaturesError."""
    if (folder / RECORD).is_file():
        old, new = asdict(read_record(folder)), asdict(record)
        changed = [name for name in new if old[name] != new[name] and name not in ("checkpoint", "sees")]
        if changed:
            name = changed[0]
            raise FeaturesError(
                f"{folder}: holds other features ({name} is {old[name]!r} there and {new[name]!r} here); "
                "choose another folder."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise FeaturesError(f"{folder}: holds files, and no features of speechssl; choose another folder.")
    write_whole(folder / RECORD, json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n")


def write_index(folder: Path, number: int, rows: list[tuple[str, int, int]]) -> None:
    """Says that a shard is finished: (id, first row, rows) of each of its utterances."""
    with whole_file(shard_path(folder, number).with_suffix(".jsonl")) as file:
        for utterance, first, count in rows:
            file.write(json.dumps({"id": utterance, "first": first, "count": count}, ensure_ascii=False) + "\n")


def is_finished(folder: Path, number: int) -> bool:
    path = shard_path(folder, number)
    return path.is_file() and path.with_suffix(".jsonl").is_file()


# ------------------------------------------------------------------------------------------------------------- reading


def read_record(folder: str | Path) -> FeaturesRecord:
    """Raises FeaturesError."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FeaturesError(f"{folder}: not a features folder (no {RECORD}); make one with `speechssl features`.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise FeaturesError(f"{path}: written by another version of speechssl; make the features again.")
        return FeaturesRecord(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FeaturesError):
            raise
        raise FeaturesError(f"{path}: cannot be read: {error}; make the features again.") from None


class Features:
    """Reads a finished features folder, utterance by utterance; arrays are mapped, never loaded whole.

    Raises FeaturesError: not a features folder, not finished, or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        missing = [n for n in range(self.record.num_shards) if not is_finished(self.folder, n)]
        if missing:
            raise FeaturesError(
                f"{self.folder}: {len(missing)} of {self.record.num_shards} shards are not finished; "
                "run the same `speechssl features` again to go on."
            )
        self.index: list[tuple[str, int, int, int]] = []  # id, shard, first row, rows
        for number in range(self.record.num_shards):
            path = shard_path(self.folder, number).with_suffix(".jsonl")
            try:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                self.index += [(row["id"], number, row["first"], row["count"]) for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise FeaturesError(f"{path}: cannot be read: {error}; remove it and make the shard again.") from None
        self._shard: tuple[int, np.ndarray] | None = None  # the one mapped last

    @property
    def num_frames(self) -> int:
        return sum(count for *_, count in self.index)

    def __len__(self) -> int:
        """How many utterances."""
        return len(self.index)

    def read(self, place: int) -> np.ndarray:
        """(frames, dim) float32 of utterance number `place` of `index`."""
        _, shard, first, count = self.index[place]
        if self._shard is None or self._shard[0] != shard:
            path = shard_path(self.folder, shard)
            try:
                self._shard = (shard, np.load(path, mmap_mode="r"))
            except (OSError, ValueError, EOFError) as error:
                raise FeaturesError(f"{path}: cannot be read: {error}; remove it and make the shard again.") from None
        array = self._shard[1]
        if array.ndim != 2 or array.shape[1] != self.record.dim or first + count > len(array):
            raise FeaturesError(f"{shard_path(self.folder, shard)}: does not fit its index; make the shard again.")
        return np.array(array[first : first + count], dtype=np.float32)

    def utterances(self) -> Iterator[tuple[str, np.ndarray]]:
        """Ids and frames (n, dim), in order."""
        for place, (utterance, *_) in enumerate(self.index):
            yield utterance, self.read(place)
