"""The files of a checkpoint: tensors as safetensors and a record as JSON that holds the hashes of all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from speechssl.errors import UserError

WEIGHTS, MOMENTS, RECORD = "objective.safetensors", "optimizer.safetensors", "state.json"


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message names the file and what to do."""


def write_files(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], record: dict) -> None:
    """Writes file -> name -> tensor, and the record. Raises OSError, SafetensorError."""
    for file, named in tensors.items():
        save_file(named, folder / file)
    record = json.loads(json.dumps(record | {"sha256": {file: _sha256(folder / file) for file in tensors}}))
    record["check"] = _check(record)
    (folder / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")


def read_record(path: Path) -> dict:
    """state.json of a checkpoint; it and the tensors' files are compared with their hashes. Raises CheckpointError."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if record.pop("check", None) not in (_check(record), None):  # None: of a version that wrote none
            raise ValueError(f"{RECORD} is damaged (its hash differs)")
        hashes, place = record["sha256"], [record[key] for key in ("step", "epoch", "batch_in_epoch")]
        if not {WEIGHTS} <= set(hashes) <= {WEIGHTS, MOMENTS} or any(type(n) is not int or n < 0 for n in place):
            raise ValueError(f"{RECORD} is not what speechssl writes")
        broken = [name for name, digest in hashes.items() if _sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}; use an older one.") from None
    if broken:
        raise CheckpointError(f"{path}: {', '.join(broken)} is damaged (its hash differs); use an older checkpoint.")
    return record


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of one file, on the CPU. Raises CheckpointError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; use another checkpoint.") from None


def _check(record: dict) -> str:
    """A hash of the record's contents."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
