"""`TrainState`: everything a resume needs. Saved as safetensors and JSON, whole or not at all; nothing is unpickled.

checkpoints/step-00001000/objective.safetensors    weights, encoder included
                          optimizer.safetensors    moments, by parameter name
                          state.json               step, place in the data, configuration, vocabulary, hashes
checkpoints/best.json                              which step had the best validation
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from speechssl.build import build_objective
from speechssl.config import Config, parse
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.objectives import Objective

FORMAT = 1


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message names the file and what to do."""


@dataclass
class TrainState:
    objective: Objective
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser updates done
    epoch: int = 0  # of the next micro-batch
    batch_in_epoch: int = 0  # of the next micro-batch
    best: float | None = None  # best validation so far


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read for use: `objective` is in eval mode, on the CPU."""

    objective: Objective
    config: Config
    tokenizer: Tokenizer | None
    step: int


# ------------------------------------------------------------------------------------------------------------- writing


def save(state: TrainState, config: Config, folder: Path, *, tokenizer: Tokenizer | None = None, scaler=None) -> Path:
    """Writes `folder`/step-N and returns it: into a temporary folder, flushed to the disk, then renamed."""
    target = folder / f"step-{state.step:08d}"
    if target.exists():  # already saved, for example by a signal at a step that was due anyway
        return target
    temporary = folder / f".{target.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_contiguous(state.objective.state_dict()), temporary / "objective.safetensors")
        save_file(_contiguous(_optimizer_tensors(state)), temporary / "optimizer.safetensors")
        record = {
            "format": FORMAT,
            "step": state.step,
            "epoch": state.epoch,
            "batch_in_epoch": state.batch_in_epoch,
            "best": state.best,
            "config": config.to_dict(),
            "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "sha256": {path.name: _sha256(path) for path in sorted(temporary.glob("*.safetensors"))},
        }
        (temporary / "state.json").write_text(json.dumps(record, ensure_ascii=False, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            _fsync(path)
        temporary.rename(target)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot be saved: {error}; the last good checkpoint is intact. "
            "Free some space and run the same command again to go on from it."
        ) from None
    return target


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Records which step is the best so far."""
    temporary = folder / ".best.json.part"
    temporary.write_text(json.dumps({"step": step, "metric": metric, "value": value}))
    temporary.replace(folder / "best.json")


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` and the best."""
    for path in list_checkpoints(folder)[keep:]:
        if path != best_checkpoint(folder):
            shutil.rmtree(path)


# ------------------------------------------------------------------------------------------------------------- reading


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def best_checkpoint(folder: Path) -> Path | None:
    try:
        return folder / f"step-{json.loads((folder / 'best.json').read_text())['step']:08d}"
    except (OSError, ValueError, KeyError):
        return None


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint from its own path, or the best (else the newest) of a run folder. Raises CheckpointError."""
    path = Path(path)
    if (path / "state.json").is_file():
        return path
    folder = path / "checkpoints"
    best = best_checkpoint(folder)
    if best is not None and best.is_dir():
        return best
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run folder with one; train first.")
    return found[0]


def read_record(path: Path) -> dict:
    """state.json of a checkpoint, its tensors' hashes verified. Raises CheckpointError."""
    try:
        record = json.loads((path / "state.json").read_text())
        broken = [name for name, digest in record["sha256"].items() if _sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}; use an older one.") from None
    if broken:
        raise CheckpointError(f"{path}: {', '.join(broken)} is damaged (its hash differs); use an older checkpoint.")
    return record


def restore(state: TrainState, folder: Path, *, scaler=None) -> list[str]:
    """Puts the newest sound checkpoint of `folder` into `state`, if there is one.

    Returns sentences about newer ones that were damaged; they are renamed, so that the run can save those steps again.
    Raises CheckpointError if all are damaged.
    """
    problems: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            record = read_record(path)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        load_weights(state.objective, load_file(path / "objective.safetensors"), str(path))
        _restore_optimizer(state, load_file(path / "optimizer.safetensors"))
        state.step, state.epoch, state.batch_in_epoch = record["step"], record["epoch"], record["batch_in_epoch"]
        state.best = record["best"]
        if scaler is not None and record["scaler"]:
            scaler.load_state_dict(record["scaler"])
        for damaged in problems:
            with contextlib.suppress(OSError):  # another rank was faster
                damaged.rename(damaged.with_name(f"damaged-{damaged.name}"))
        return list(problems.values())
    if problems:
        raise CheckpointError(f"no checkpoint can be read: {' '.join(problems.values())}")
    return []


def read_config(path: Path) -> Config:
    """The resolved configuration inside a checkpoint. Raises CheckpointError, ConfigError."""
    return parse(Config, read_record(path)["config"], source=str(path / "state.json"))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, or the best of a run folder, for decoding, probing or export. Raises CheckpointError."""
    path = find_checkpoint(path)
    record = read_record(path)
    config = parse(Config, record["config"], source=str(path / "state.json"))
    objective = build_objective(config)
    load_weights(objective, load_file(path / "objective.safetensors"), str(path))
    tokenizer = None if record["tokenizer"] is None else Tokenizer.from_dict(record["tokenizer"])
    return Checkpoint(objective.eval(), config, tokenizer, record["step"])


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a checkpoint or run folder, in eval mode on the CPU. Raises CheckpointError."""
    return load_checkpoint(path).objective.encoder


def load_weights(objective: Objective, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Strict. Raises CheckpointError that names the first tensors that do not fit."""
    problems = _misfits(objective.state_dict(), tensors)
    if problems:
        raise CheckpointError(f"{source}: does not fit this configuration: {_first(problems)}.")
    objective.load_state_dict(tensors)


def initialize(objective: Objective, path: str | Path, part: str = "encoder") -> list[str]:
    """Takes a part of the encoder from another run; with the whole, every other weight of the same name and shape too.

    Args:
        part: "encoder", or "feature_encoder" for its convolutions alone (under another context network).

    Returns:
        The names of the other weights taken (mask embedding, heads).

    Raises:
        CheckpointError: the part does not fit.
    """
    path = find_checkpoint(path)
    read_record(path)
    tensors = load_file(path / "objective.safetensors")
    own = objective.state_dict()
    prefix = "encoder." if part == "encoder" else "encoder.feature_encoder."
    wanted, given = ({k: v for k, v in weights.items() if k.startswith(prefix)} for weights in (own, tensors))
    problems = _misfits(wanted, given)
    if problems:
        raise CheckpointError(f"{path}: its {part} does not fit this configuration: {_first(problems)}.")
    if part == "encoder":
        given |= {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    objective.load_state_dict(given, strict=False)
    return [k for k in given if not k.startswith("encoder.")]


def _misfits(own: dict, given: dict) -> list[str]:
    shapes = [
        f"{k} has shape {tuple(given[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in given and given[k].shape != v.shape
    ]
    return (
        shapes + [f"{k} is missing" for k in own if k not in given] + [f"{k} is unknown" for k in given if k not in own]
    )


def _first(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


def _optimizer_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    moments = state.optimizer.state
    named = [(name, moments[p]) for name, p in state.objective.named_parameters() if p in moments]
    return {f"{name}/{key}": value for name, values in named for key, value in values.items()}


def _restore_optimizer(state: TrainState, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(state.objective.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        owner = parameters[parameter]
        device = torch.device("cpu") if key == "step" and owner.device.type == "cpu" else owner.device
        state.optimizer.state[owner][key] = value.to(device)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().contiguous() for k, v in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
