"""Runs the micro-batches of an update again and finds the module where the first value that is not finite appears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl import checkpoint
from speechssl.batch import Batch
from speechssl.build import seed_everything
from speechssl.config import Config, read_run
from speechssl.data.audio import AudioError
from speechssl.errors import UserError
from speechssl.objectives import Objective
from speechssl.run import read_dataset


def replay_update(folder: str | Path, update: int | None = None) -> Iterator[str]:
    """Sentences about each micro-batch of an update.

    Args:
        folder: a run's, with the incidents.jsonl that says what its updates held.
        update: which one (from 1); None: the last one recorded.

    Raises:
        UserError: nothing is recorded, or its utterances are not in the manifest any more.
        CheckpointError, ConfigError, ManifestError: as in training.
    """
    folder = Path(folder)
    incidents = _incidents(folder)
    wanted = [incident for incident in incidents if "micro_batches" in incident and update in (None, incident["step"])]
    if not wanted:
        raise UserError(f"{folder / 'incidents.jsonl'}: records no update {update or 'to replay'}.")
    incident, step = wanted[-1], wanted[-1]["step"] - 1
    config = read_run(folder)
    skipped = {incident["step"] for incident in incidents if incident["kind"] == "not finite"}
    source, same = _weights(folder, step, skipped)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = checkpoint.load_checkpoint(source)
    scale = (checkpoint.read_record(source).get("scaler") or {}).get("scale", 1.0)
    objective = loaded.objective.to(device).train()
    data = read_dataset(config.data.train, config, objective, loaded.tokenizer)
    numbers = {utterance.id: i for i, utterance in enumerate(data.utterances)}
    caution = "" if same else " (not those it met, which were not saved: it may not come again)"
    yield f"update {step + 1}, {incident['kind']}, with the weights of {source.name}{caution}"
    objective.before_step(step)
    for recorded in incident["micro_batches"]:
        missing = [name for name in recorded["ids"] if name not in numbers]
        if missing:
            raise UserError(f"{config.data.train}: {missing[0]} is not in it any more; bring the manifest back.")
        indices = np.array([numbers[name] for name in recorded["ids"]])
        read = data[recorded["epoch"], indices]
        if read.batch is None:
            read = data.instead_of(recorded["epoch"], indices)
        if read.batch is None:
            raise AudioError(f"no utterance of micro-batch {recorded['number']} can be read.")
        seed_everything(incident["seed"], step, recorded["number"])
        names = ", ".join(recorded["ids"][:5]) + (" ..." if len(recorded["ids"]) > 5 else "")
        yield f"micro-batch {recorded['number']} ({names}): {_run(objective, read.batch.to(device), config, scale)}"


def _run(objective: Objective, batch: Batch, config: Config, scale: float) -> str:
    """Forward and backward; what was not finite first, or the size of loss and gradient."""
    first: list[str] = []
    watched = [module.register_forward_hook(_look(name, first)) for name, module in objective.named_modules() if name]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    try:
        for name, parameter in objective.named_parameters():
            parameter.grad = None
            if not torch.isfinite(parameter).all():
                return f"the weights themselves are not finite: {name}"
        if not torch.isfinite(batch.waveforms).all():
            return "its waveforms are not finite"
        with torch.autocast(batch.waveforms.device.type, dtype, enabled=dtype is not None):
            output = objective(batch)
        if not first and not torch.isfinite(output.loss):
            first.append("the loss itself is the first value that is not finite: all modules' outputs are finite")
        if not first:
            (output.loss * scale).backward()
    finally:
        for hook in watched:
            hook.remove()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if bad and not first:
        first.append(f"all values are finite, and the gradient of {bad[-1]} is the first that is not")
    if first:
        return first[0]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
    targets = output.num_targets.clamp(min=1.0)
    loss, norm = float(output.loss.detach() / targets), float(norm / targets / scale)
    return f"finite; loss {loss:.4g}, gradient norm {norm:.4g} per target"


def _look(name: str, first: list[str]):
    """A forward hook that notes the first module whose output is not finite, forwards and backwards."""

    def hook(module, inputs, output) -> None:
        finite = all(map(_all_finite, _tensors(output)))
        if not finite and not first:
            came_in = "its inputs are finite" if all(map(_all_finite, _tensors(inputs))) else "so are its inputs"
            first.append(f"the first value that is not finite comes out of {name} ({came_in})")
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(_look_back(name, first))

    return hook


def _look_back(name: str, first: list[str]):
    def hook(gradient: Tensor) -> None:
        if not first and not _all_finite(gradient):
            first.append(f"all values are finite, and the gradient at the output of {name} is the first that is not")

    return hook


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from _tensors([getattr(value, name) for name in value.__dataclass_fields__])


def _incidents(folder: Path) -> list[dict]:
    """Raises UserError."""
    path = folder / "incidents.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; nothing went wrong in this run, or it is no run folder.") from None
    except ValueError:
        raise UserError(f"{path}: not what a run writes; nothing can be replayed.") from None


def _weights(folder: Path, step: int, skipped: set[int]) -> tuple[Path, bool]:
    """The checkpoint for update `step` (from 0), and whether its weights are those that the update met.

    They are if only skipped updates lie between the two: a run that stops for them saves behind them.
    """
    paths = checkpoint.list_checkpoints(folder / "checkpoints") or [checkpoint.find_checkpoint(folder)]
    steps = {int(path.name.removeprefix("step-")): path for path in paths}
    same = [s for s in steps if set(range(min(s, step) + 1, max(s, step) + 1)) <= skipped]
    older = [s for s in steps if s <= step]
    return steps[max(same or older or steps)], bool(same)
