"""One .pt file in fairseq's layout (wav2vec 2.0, HuBERT, data2vec, CTC), or in that of WavLM's own release.

Names and settings are those of the published models; fairseq is not needed. `fairseq_read` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoint import Checkpoint, load_checkpoint
from speechssl.export import keymaps as maps
from speechssl.export import source
from speechssl.export.keymaps import Rows
from speechssl.export.output import refuse_to_overwrite
from speechssl.files import write_whole

MODES = {"group": "default", "layer": "layer_norm"}  # what our norms of the convolutions are called
INSIDE, PROJECTION = "w2v_encoder.w2v_model.", "w2v_encoder.proj."  # of fine-tuned models
ENTRIES = ("<s>", "<pad>", "</s>", "<unk>")  # with which every dictionary of theirs begins; <s> is the blank


def rows_of(norm: str) -> Rows:
    """The rows of an encoder whose convolutions are normalised as `norm` says, and of all heads."""
    context = tuple(
        (
            f"encoder.{names}" if isinstance(names, str) else tuple(f"encoder.{n}" for n in names),
            f"encoder.context.{ours}",
        )
        for names, ours in maps.FAIRSEQ_CONTEXT
    )
    return maps.FAIRSEQ + maps.FAIRSEQ_NORMS[norm] + context + maps.FAIRSEQ_HEADS


def export_fairseq(path: Path, out: Path, *, licence: str = "") -> None:
    """Writes one .pt file that fairseq reads (WavLM's own code, where the model has its position bias).

    Of a CTC model also dict.ltr.txt beside it, where fairseq looks for the letters.

    The settings are plain dictionaries, so `torch.load(weights_only=True)` opens it as well.

    Raises:
        ExportError: fairseq has no such encoder or head, or `out` exists.
        CheckpointError: there is no checkpoint at `path`.
    """
    dictionary = out.with_name("dict.ltr.txt")
    refuse_to_overwrite(out)
    checkpoint = load_checkpoint(path)
    speaks = checkpoint.config.objective["name"] == "ctc"
    if speaks:
        refuse_to_overwrite(dictionary)
    encoder = checkpoint.objective.encoder
    reason = source.misfit(checkpoint)
    family = source.family(checkpoint) if not reason else ""
    if not reason and encoder.latent_dim == encoder.dim and family != "data2vec":
        reason = f"its projection maps {encoder.dim} channels to as many"
    if not reason and getattr(checkpoint.objective.config, "targets_per_frame", 1) > 1:
        reason = "its head predicts several units per frame"
    if family == "wavlm" and speaks:
        raise source.refuse(path, "it is a WavLM model with a CTC head", "its release", "hf or torchaudio")
    if reason:
        raise source.refuse(path, reason, "fairseq")
    source.one_token_per_frame(path, checkpoint, "fairseq")
    state = checkpoint.objective.state_dict()
    if checkpoint.config.objective["name"] not in ("wav2vec2", "hubert", "data2vec", "ctc"):  # heads of other kinds
        state = {name: tensor for name, tensor in state.items() if name.startswith(("encoder.", "mask_embedding"))}
    tensors = maps.to_theirs(state, rows_of(encoder.config.feature_encoder.norm))  # type: ignore[union-attr]
    saved = _layout(checkpoint, family, tensors, state)
    saved["speechssl"] = {"licence": licence, "preset": checkpoint.config.name, "step": checkpoint.step}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    try:
        torch.save(saved, temporary)
        if speaks:
            assert checkpoint.tokenizer is not None, "a CTC model is saved with its vocabulary"
            write_whole(dictionary, "".join(f"{symbol} 1\n" for symbol in checkpoint.tokenizer.symbols[1:]))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _layout(checkpoint: Checkpoint, family: str, tensors: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """`cfg` and `model` as the release of each family has them."""
    name, objective = checkpoint.config.objective["name"], checkpoint.objective.config
    data, model = checkpoint.config.data, _architecture(checkpoint, family)
    if family == "wavlm":  # released without heads, and with flat settings
        model |= {"relative_position_embedding": True, "gru_rel_pos": True, "normalize": data.normalize}
        heads = maps.to_theirs(state, maps.FAIRSEQ_HEADS)
        return {"cfg": model, "model": {name: tensor for name, tensor in tensors.items() if name not in heads}}
    model |= {"_name": {"data2vec": "data2vec_audio"}.get(family, family)}
    task: dict[str, Any] = {"_name": "audio_pretraining", "data": ""}
    task |= {"sample_rate": data.sample_rate, "normalize": data.normalize}
    cfg: dict[str, Any] = {"_name": None, "model": model, "task": task, "criterion": None}
    saved: dict[str, Any] = {
        "args": None,
        "cfg": cfg,
        "model": tensors,
        "criterion": None,
        "optimizer_history": [],
        "task_state": {},
    }
    if name in ("wav2vec2", "hubert", "data2vec"):
        model |= {"mask_length": objective.mask_length, "mask_prob": objective.mask_start_prob * objective.mask_length}
    if name == "wav2vec2":
        model |= {key: getattr(objective, ours) for key, ours in maps.FAIRSEQ_PRETRAINING}
        model |= {"quantize_targets": True, "latent_dim": objective.code_dim, "final_dim": objective.final_dim}
        model["latent_temp"] = [objective.gumbel_start, objective.gumbel_end, objective.gumbel_decay]
        cfg["criterion"] = {"_name": "wav2vec", "loss_weights": [objective.diversity_weight, objective.feature_penalty]}
    if name == "hubert":
        model |= {key: getattr(objective, ours) for key, ours in maps.FAIRSEQ_HUBERT}
        model |= {"final_dim": objective.final_dim, "label_rate": data.sample_rate / checkpoint.objective.encoder.hop}
        task |= {"_name": "hubert_pretraining", "label_rate": model["label_rate"]}
    if name == "data2vec":
        model |= {key: getattr(objective, ours) for key, ours in maps.FAIRSEQ_DATA2VEC}
        tensors["_ema"] = maps.to_theirs(maps.below(state, "teacher.module."), maps.FAIRSEQ_CONTEXT)
    if name == "ctc":
        _add_letters(saved, checkpoint, "hubert_ctc" if family == "hubert" else "wav2vec_ctc")
    return saved


def _add_letters(saved: dict[str, Any], checkpoint: Checkpoint, model_name: str) -> None:
    """A fine-tuned model: the encoder and its settings inside, and the head; fairseq finds the letters in a file."""
    linear: Any = checkpoint.objective.head.linear  # type: ignore[union-attr]
    # Our blank is the first of their ENTRIES, and the other three are never predicted.
    never = {"weight": torch.zeros_like(linear.weight[:3]), "bias": torch.full_like(linear.bias[:3], -1e4)}
    head = {
        PROJECTION + kind: torch.cat((getattr(linear, kind)[:1], never[kind], getattr(linear, kind)[1:])).detach()
        for kind in ("weight", "bias")
    }
    cfg, normalize = saved["cfg"], checkpoint.config.data.normalize
    saved["model"] = maps.prefixed(saved["model"], INSIDE) | head
    saved["cfg"] = {
        **cfg,
        "model": {"_name": model_name, "normalize": normalize, "w2v_path": "", "w2v_args": dict(cfg)},
        "task": {**cfg["task"], "_name": "audio_finetuning", "labels": "ltr"},
    }


def _architecture(checkpoint: Checkpoint, family: str) -> dict[str, Any]:
    encoder = source.plain_encoder(checkpoint.objective.encoder.config)
    model = maps.numbers_to_theirs(encoder, maps.FAIRSEQ_NUMBERS, maps.FAIRSEQ_RELATIVE if family == "wavlm" else ())
    model["conv_pos"] *= model["pos_conv_depth"]  # theirs is that of the whole stack
    layers = ", ".join(str(tuple(row)) for row in source.conv_layers(encoder))
    return model | {
        "extractor_mode": MODES[encoder["feature_encoder"]["norm"]],
        "conv_feature_layers": f"[{layers}]",
        "layer_type": "transformer",
        "activation_fn": "gelu",
    }
