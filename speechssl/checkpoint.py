"""`TrainState`: everything a resume needs. Saved as safetensors and JSON, whole or not at all; nothing is unpickled.

checkpoints/step-00001000/objective.safetensors    weights, encoder included
                          optimizer.safetensors    moments, by parameter name
                          state.json               step, place in the data, configuration, vocabulary, hashes
checkpoints/best.json                              which step had the best validation
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from speechssl.build import build_objective
from speechssl.config import Config, parse
from speechssl.data.tokens import Tokenizer
from speechssl.files import flush_to_disk, write_whole
from speechssl.objectives import Objective
from speechssl.sharding import divided_as, whole
from speechssl.stored import MOMENTS, WEIGHTS, CheckpointError, read_record, read_tensors, write_files
from speechssl.watch import Counts

FORMAT = 1
QUANTIZER = "encoder.context.quantizer."


@dataclass
class TrainState:
    objective: Objective
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser updates done
    epoch: int = 0  # of the next micro-batch
    batch_in_epoch: int = 0  # of the next micro-batch
    best: float | None = None  # best validation so far, and ...
    best_step: int | None = None  # ... when it was
    counts: Counts = field(default_factory=Counts)  # of the watchdogs


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read for use: `objective` is in eval mode, on the CPU."""

    objective: Objective
    config: Config
    tokenizer: Tokenizer | None
    step: int


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Snapshot:
    """A state on its way to the disk."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]  # file -> name -> tensor
    record: dict  # state.json, but for the hashes


def save(state: TrainState, config: Config, folder: Path, *, tokenizer: Tokenizer | None = None, scaler=None) -> Path:
    """Writes `folder`/step-N and returns it. Raises CheckpointError."""
    return write(snapshot(state, config, tokenizer=tokenizer, scaler=scaler, copy=False), folder)


def snapshot(
    state: TrainState, config: Config, *, tokenizer: Tokenizer | None = None, scaler=None, copy: bool = True
) -> Snapshot:
    """The state of this moment; copy: in memory of its own, so that training may go on while it is written.

    Where it is divided among processes, all of them must call this.
    """
    tensors = {WEIGHTS: state.objective.state_dict(), MOMENTS: _optimizer_tensors(state)}
    place = {"step": state.step, "epoch": state.epoch, "batch_in_epoch": state.batch_in_epoch}
    rest = {"best": state.best, "best_step": state.best_step, "counts": asdict(state.counts)}
    record = _record(config, tokenizer, **place, **rest, scaler=None if scaler is None else scaler.state_dict())
    return Snapshot(state.step, {file: _on_host(named, copy=copy) for file, named in tensors.items()}, record)


def num_bytes(state: TrainState) -> int:
    """What a copy of the state takes in memory."""
    tensors = [*state.objective.state_dict().values(), *_optimizer_tensors(state).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write(snapshot: Snapshot, folder: Path) -> Path:
    """Writes `folder`/step-N and returns it: into a temporary folder, flushed to the disk, then renamed.

    Raises CheckpointError; nothing is left of the try then.
    """
    target = folder / name_of(snapshot.step)
    if target.exists():  # already saved, for example by a signal at a step that was due anyway
        return target
    temporary = folder / f".{target.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_files(temporary, snapshot.tensors, snapshot.record)
        for path in [*temporary.iterdir(), temporary]:
            flush_to_disk(path)
        temporary.rename(target)
        flush_to_disk(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot be saved: {error}; the last good checkpoint is intact. Free some space."
        ) from None
    return target


def save_model(objective: Objective, config: Config, folder: Path, *, tokenizer: Tokenizer | None = None) -> None:
    """Writes weights alone into `folder`: a checkpoint to start from (`--init`) or to use, and not to go on from."""
    record = _record(config, tokenizer, step=0, epoch=0, batch_in_epoch=0, best=None, scaler=None)
    write_files(folder, {WEIGHTS: _on_host(objective.state_dict(), copy=False)}, record)


def _record(config: Config, tokenizer: Tokenizer | None, **state) -> dict:
    spelling = None if tokenizer is None else tokenizer.to_dict()
    return {"format": FORMAT, **state, "config": config.to_dict(), "tokenizer": spelling}


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Records which step is the best so far."""
    write_whole(folder / "best.json", json.dumps({"step": step, "metric": metric, "value": value}))


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` and the best; none, unless one of those that stay is sound."""
    paths, best = list_checkpoints(folder), best_checkpoint(folder)
    gone = [path for path in paths[keep:] if path != best]
    if gone and any(_is_sound(path) for path in paths[:keep]):
        for path in gone:
            part = path.rename(folder / f".{path.name}.part")  # a process killed on the way leaves no half checkpoint
            shutil.rmtree(part)


def _is_sound(path: Path) -> bool:
    try:
        return bool(read_record(path))
    except CheckpointError:
        return False


# ------------------------------------------------------------------------------------------------------------- reading


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def best_checkpoint(folder: Path) -> Path | None:
    try:
        return folder / name_of(json.loads((folder / "best.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
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
        load_weights(state.objective, read_tensors(path / WEIGHTS), str(path))
        _restore_optimizer(state, read_tensors(path / MOMENTS))
        state.step, state.epoch, state.batch_in_epoch = record["step"], record["epoch"], record["batch_in_epoch"]
        state.best, state.best_step = record["best"], record.get("best_step")
        state.counts = Counts(**record.get("counts", {}))
        if scaler is not None and record["scaler"]:
            scaler.load_state_dict(record["scaler"])
        if state.best_step is not None and (folder / name_of(state.best_step)).is_dir():
            with contextlib.suppress(OSError):  # a process killed between the checkpoint and this line marked it not
                mark_best(folder, state.best_step, record["config"]["train"]["best"], state.best or 0.0)
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
    config = parse(Config, record.get("config"), source=str(path / "state.json"))
    _refuse_strange_code(config, path)
    objective = build_objective(config)
    load_weights(objective, read_tensors(path / WEIGHTS), str(path))
    spelling = record.get("tokenizer")
    tokenizer = None if spelling is None else Tokenizer.from_dict(spelling, source=str(path / "state.json"))
    return Checkpoint(objective.eval(), config, tokenizer, record["step"])


def _refuse_strange_code(config: Config, path: Path) -> None:
    """A checkpoint may come from anybody, and may name code to import. Raises CheckpointError."""
    module, colon, _ = str(config.objective.get("name")).partition(":")
    known = module in sys.modules or module.startswith("speechssl.")
    if colon and not known and module != os.environ.get("SPEECHSSL_TRUST"):
        raise CheckpointError(
            f"{path}: its objective is code outside speechssl, in the module '{module}'; if you trust it, set the "
            f"environment variable SPEECHSSL_TRUST={module}."
        )


def load_weights(objective: Objective, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Strict. Raises CheckpointError that names the first tensors that do not fit."""
    problems = _misfits(objective.state_dict(), tensors)
    if problems:
        raise CheckpointError(f"{source}: does not fit this configuration: {_first(problems)}.")
    objective.load_state_dict({name: divided_as(own, tensors[name]) for name, own in objective.state_dict().items()})


def initialize(objective: Objective, path: str | Path, part: str = "encoder") -> list[str]:
    """Takes a part of the encoder from another run; with the whole, every other weight of the same name and shape too.

    The objective is told which names were taken (`Objective.initialized`).

    Args:
        part: "encoder", or "feature_encoder" for its convolutions alone (under another context network).

    Returns:
        The names of the other weights taken (mask embedding, heads).

    Raises:
        CheckpointError: the part does not fit.
    """
    path = find_checkpoint(path)
    read_record(path)
    tensors = read_tensors(path / WEIGHTS)
    own = objective.state_dict()
    prefix = "encoder." if part == "encoder" else "encoder.feature_encoder."
    wanted, given = ({k: v for k, v in weights.items() if k.startswith(prefix)} for weights in (own, tensors))
    if not any(k.startswith(QUANTIZER) for k in wanted):  # only VQ-APC's prediction needs it
        given = {k: v for k, v in given.items() if not k.startswith(QUANTIZER)}
    problems = _misfits(wanted, given)
    if problems:
        raise CheckpointError(f"{path}: its {part} does not fit this configuration: {_first(problems)}.")
    if part == "encoder":
        given |= {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    objective.load_state_dict(given, strict=False)
    objective.initialized(given)
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
        value = value.to(device)
        state.optimizer.state[owner][key] = divided_as(owner, value) if value.shape else value  # the step is whole


def _on_host(tensors: dict[str, torch.Tensor], *, copy: bool) -> dict[str, torch.Tensor]:
    return {name: whole(tensor.detach()).to("cpu", copy=copy).contiguous() for name, tensor in tensors.items()}
