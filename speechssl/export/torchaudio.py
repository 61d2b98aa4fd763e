"""State dicts and arguments for `torchaudio.models.wav2vec2_model` and `wavlm_model`. Needs torchaudio for neither."""

from __future__ import annotations

from pathlib import Path

import torch

from speechssl.checkpoint import find_checkpoint, load_checkpoint
from speechssl.data.tokens import Tokenizer
from speechssl.export import keymaps as maps
from speechssl.export import source
from speechssl.export.card import USAGE, card
from speechssl.export.keymaps import ExportError, some
from speechssl.export.output import new_folder, write_json
from speechssl.export.source import Imported
from speechssl.export.unpickle import only_tensors, read_json, read_pickle
from speechssl.export.vocabulary import from_symbols

MODES = {"group": "group_norm", "layer": "layer_norm"}


def export_torchaudio(path: Path, out: Path, *, licence: str = "") -> str:
    """Writes a folder with model.pt (a state dict), arguments.json and processing.json.

    Returns:
        A sentence about what stays behind; empty: nothing does.

    Raises:
        ExportError: torchaudio has no such encoder, or `out` exists.
        CheckpointError: there is no checkpoint at `path`.
    """
    checkpoint = load_checkpoint(path)
    reason = source.misfit(checkpoint, stack=False)
    if reason:
        raise source.refuse(path, reason, "torchaudio")
    source.one_token_per_frame(path, checkpoint, "torchaudio")
    encoder = source.plain_encoder(checkpoint.objective.encoder.config)
    wavlm = encoder["context"]["relative_buckets"] > 0
    data, speaks = checkpoint.config.data, checkpoint.config.objective["name"] == "ctc"
    tokenizer = checkpoint.tokenizer if speaks else None
    parts = ("encoder.", "head.") if speaks else ("encoder.",)  # `aux` is of CTC models alone
    state = {name: tensor for name, tensor in checkpoint.objective.state_dict().items() if name.startswith(parts)}
    tensors = maps.to_theirs(state, maps.TORCHAUDIO_WAVLM if wavlm else maps.TORCHAUDIO)
    arguments = {
        "extractor_mode": MODES[encoder["feature_encoder"]["norm"]],
        "extractor_conv_layer_config": source.conv_layers(encoder),
        **maps.numbers_to_theirs(encoder, maps.TORCHAUDIO_NUMBERS, maps.TORCHAUDIO_WAVLM_NUMBERS if wavlm else ()),
        "aux_num_out": len(tensors["aux.weight"]) if speaks else None,
    }
    processing = {
        "sample_rate": data.sample_rate,
        "normalize": data.normalize,
        "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
    }
    function = "wavlm_model" if wavlm else "wav2vec2_model"
    with new_folder(out) as folder:
        torch.save({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "model.pt")
        write_json(folder / "arguments.json", arguments)
        write_json(folder / "processing.json", processing)
        normalised = ", zero mean and unit variance" if data.normalize else ""
        usage = USAGE["torchaudio"].format(function=function, rate=data.sample_rate, normalised=normalised)
        left = source.homeless(checkpoint, *(["head"] if speaks else []))
        text = card(find_checkpoint(path), checkpoint, usage, licence=licence, library="torchaudio", left=left)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return source.behind(left)


def read_torchaudio(path: Path) -> Imported:
    """Reads a state dict with arguments.json beside it, or the folder of both. Raises ExportError."""
    weights = path / "model.pt" if path.is_dir() else path
    settings = weights.with_name("arguments.json")
    if not settings.is_file():
        raise ExportError(
            f"{weights}: a state dict does not say how many heads and strides its model has; write the arguments of "
            "torchaudio.models.wav2vec2_model (a bundle's `_params`) as JSON to arguments.json beside it."
        )
    arguments = read_json(settings)
    wavlm = "encoder_num_buckets" in arguments
    tensors = only_tensors(read_pickle(weights), weights)
    ours, unknown = maps.to_ours(tensors, maps.TORCHAUDIO_WAVLM if wavlm else maps.TORCHAUDIO)
    if unknown:
        raise ExportError(f"{weights}: has weights that no model of speechssl has a place for: {some(unknown)}.")
    encoder = maps.numbers_to_ours(arguments, maps.TORCHAUDIO_NUMBERS, maps.TORCHAUDIO_WAVLM_NUMBERS)
    norm = next((ours for ours, theirs in MODES.items() if theirs == arguments.get("extractor_mode")), "group")
    try:
        stack = source.stack_of(arguments.get("extractor_conv_layer_config") or DEFAULT_LAYERS)
    except (TypeError, ValueError):
        raise ExportError(
            f"{settings}: extractor_conv_layer_config is no list of [channels, kernel, stride]."
        ) from None
    encoder["feature_encoder"] = {**encoder.get("feature_encoder", {}), **stack, "norm": norm}

    beside = weights.with_name("processing.json")
    processing = read_json(beside) if beside.is_file() else {}
    objective = source.alone("wavlm" if wavlm else "wav2vec2")
    tokenizer: Tokenizer | None = None
    if "head.linear.weight" in ours:
        spelling = _vocabulary(processing, weights)
        if spelling is not None:
            tokenizer, rows = spelling
            ours |= {name: tensor[rows] for name, tensor in ours.items() if name.startswith("head.linear.")}
            objective = source.ctc(tokenizer)
    ours, left = source.fitting(ours, objective["name"])
    return Imported(
        about=f"{'wavlm_model' if wavlm else 'wav2vec2_model'} of torchaudio, from {weights.name}",
        encoder=encoder,
        objective=objective,
        tensors=ours,
        normalize=processing.get("normalize", norm == "layer"),
        sample_rate=processing.get("sample_rate", 16_000),
        tokenizer=tokenizer,
        left_behind=tuple(left),
    )


DEFAULT_LAYERS = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]


def _vocabulary(processing: dict, weights: Path) -> tuple[Tokenizer, list[int]] | None:
    """Our own export's, or a list of labels beside the weights (a bundle's `get_labels()`, whose blank is "-")."""
    if processing.get("tokenizer"):
        tokenizer = Tokenizer.from_dict(processing["tokenizer"], source=str(weights.with_name("processing.json")))
        return tokenizer, list(range(len(tokenizer)))
    labels = processing.get("labels")
    return from_symbols([str(label) for label in labels], blank="-") if isinstance(labels, list) else None
