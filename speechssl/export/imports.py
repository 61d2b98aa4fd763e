"""`import_weights`: whatever another program saved -> an ordinary checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from speechssl.build import build_objective
from speechssl.checkpoint import load_weights, save_model
from speechssl.config import Config, parse, write
from speechssl.export.cpc import read_cpc, weights_of
from speechssl.export.fairseq_read import read_fairseq
from speechssl.export.hf import read_hf
from speechssl.export.keymaps import ExportError, reshape_like
from speechssl.export.output import new_folder
from speechssl.export.source import Imported
from speechssl.export.torchaudio import read_torchaudio
from speechssl.export.unpickle import read_pickle


def import_weights(path: Path, out: Path) -> Imported:
    """Makes a checkpoint folder of released weights: objective.safetensors, state.json and config.yaml.

    `pretrain --init`, `finetune --init`, `decode` and `load_encoder` read it like one of their own, and config.yaml is
    a preset of exactly its architecture.

    Args:
        path: a folder of transformers or torchaudio, a .pt file in fairseq's, WavLM's or CPC_audio's layout, or a state
            dict of torchaudio with arguments.json beside it.
        out: a folder that does not exist yet.

    Raises:
        ExportError, ConfigError, CheckpointError: each with one clear sentence.
    """
    found = read(path)
    config = parse(
        Config,
        {
            "name": out.name,
            "about": found.about,
            "data": {"sample_rate": found.sample_rate, "normalize": found.normalize, "crop": found.tokenizer is None},
            "encoder": found.encoder,
            "objective": found.objective,
        },
        source=str(path),
    )
    objective = build_objective(config)
    own = objective.state_dict()
    tensors: dict[str, Tensor] = reshape_like(found.tensors, own)
    if "mask_embedding" in own:
        tensors.setdefault("mask_embedding", own["mask_embedding"])  # torchaudio has none: masked frames start afresh
    load_weights(objective, tensors, str(path))
    with new_folder(out) as folder:
        save_model(objective, config, folder, tokenizer=found.tokenizer)
        write(config, folder / "config.yaml")
    return found


def read(path: Path) -> Imported:
    """Which format it is, by what lies there. Raises ExportError."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return read_hf(path)
        if (path / "arguments.json").is_file():
            return read_torchaudio(path)
        raise ExportError(
            f"{path}: holds neither config.json (transformers) nor arguments.json (torchaudio); give such a folder, or "
            "a .pt file of fairseq or WavLM."
        )
    if not path.is_file():
        raise ExportError(f"{path}: no such file or folder.")
    if path.suffix == ".safetensors" or path.with_name("config.json").is_file():
        raise ExportError(f"{path}: give the folder that it lies in, with its config.json.")
    state = read_pickle(path)
    if (weights := weights_of(state)) is not None:
        return read_cpc(path, weights)
    if isinstance(state, dict) and "model" in state:
        return read_fairseq(path, state)
    return read_torchaudio(path)
