"""Checkpoints in fairseq's layout (wav2vec 2.0, HuBERT, data2vec, wav2vec, CTC) and that of WavLM's own release.

Neither fairseq nor omegaconf is needed or imported; `unpickle` has made plain data of what they pickled.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.data.tokens import Tokenizer
from speechssl.export import keymaps as maps
from speechssl.export import source
from speechssl.export.fairseq import ENTRIES, INSIDE, MODES, PROJECTION, rows_of
from speechssl.export.keymaps import ExportError, some
from speechssl.export.source import Imported
from speechssl.export.unpickle import only_tensors
from speechssl.export.vocabulary import SPECIAL, from_symbols
from speechssl.nn.lengths import receptive_field

DEFAULT_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
FIXED = {"layer_type": "transformer", "activation_fn": "gelu", "conv_pos_batch_norm": False}


def read_fairseq(path: Path, state: dict[str, Any]) -> Imported:
    """Reads what `read_pickle` made of a checkpoint with entries `model` and `cfg` or `args`. Raises ExportError."""
    tensors, teacher = _tensors(path, state)
    model, task, criterion = _settings(path, state)
    if any(name.startswith("feature_aggregator.") for name in tensors):
        return _read_wav2vec(path, model, task, tensors)
    for key, value in FIXED.items():
        if model.get(key, value) != value:
            raise ExportError(f"{path}: its settings have {key} = {model[key]!r}, and here it can only be {value!r}.")
    encoder, norm = _encoder(path, model), _norm(path, model)
    encoder["project"] = any(name.startswith("post_extract_proj.") for name in tensors)
    projection = maps.below(tensors, PROJECTION)
    ours, unknown = maps.to_ours(tensors, rows_of(norm))
    _check(path, [name for name in unknown if not name.startswith(PROJECTION)])

    name = str(model.get("_name") or model.get("arch") or "WavLM")
    family = _family(name, encoder, ours)
    objective = source.alone(family)
    tokenizer: Tokenizer | None = None
    if projection:
        spelling = _vocabulary(path, state)
        if spelling is not None and max(spelling[1]) < len(projection["weight"]):
            tokenizer, places = spelling
            ours |= {f"head.linear.{kind}": tensor[places] for kind, tensor in projection.items()}
            objective = source.ctc(tokenizer)
    elif "quantizer.codebooks" in ours:
        objective = source.pretraining(norm, **_pretraining(model, criterion, ours))
    elif "unit_embeddings" in ours and "prediction.weight" in ours:
        objective = {"name": "wavlm" if family == "wavlm" else "hubert", **_hubert(model, ours["unit_embeddings"])}
    elif family == "data2vec" and "prediction.weight" in ours:
        averaged, _ = maps.to_ours(teacher, maps.FAIRSEQ_CONTEXT)
        ours |= maps.prefixed(maps.below(ours, "encoder.context.") | averaged, "teacher.module.")
        objective = {"name": "data2vec", **_data2vec(model)}
    ours, left = source.fitting(ours, objective["name"])
    if objective["name"] != "ctc":
        left += [PROJECTION + kind for kind in projection]
    return Imported(
        about=f"{name} in fairseq's layout, from {path.name}",
        encoder=encoder,
        objective=objective,
        tensors=ours,
        normalize=bool(task.get("normalize", model.get("normalize", norm == "layer"))),
        sample_rate=int(task.get("sample_rate") or 16_000),
        tokenizer=tokenizer,
        left_behind=tuple(left),
    )


def _read_wav2vec(path: Path, model: dict[str, Any], task: dict[str, Any], tensors: dict[str, Tensor]) -> Imported:
    """The first wav2vec, with what predicts the steps ahead; trained by another loss (CPC's), its encoder alone."""
    fixed = {
        "aggregator": "cnn",
        "vq_type": "none",
        "activation": "relu",
        "log_compression": True,
        "agg_zero_pad": False,
    }
    fixed |= {"skip_connections_feat": False, "skip_connections_agg": True, "non_affine_group_norm": False}
    for key, value in fixed.items():
        if model.get(key, value) != value:
            raise ExportError(f"{path}: its settings have {key} = {model[key]!r}, and here it can only be {value!r}.")
    head = [name for name in tensors if name.startswith("wav2vec_predictions.")]
    ours, unknown = maps.to_ours({k: v for k, v in tensors.items() if k not in head}, maps.FAIRSEQ_WAV2VEC)
    _check(path, unknown)
    layers = parse_layers(path, str(model.get("conv_aggregator_layers")))
    if len(set(layers["dims"])) > 1 or set(layers["strides"]) != {1}:
        raise ExportError(f"{path}: its aggregator changes its width or its rate, which speechssl lacks.")
    context = {"name": "causal_convolution", "dim": layers["dims"][0], "kernels": layers["kernels"]}
    stack = parse_layers(path, str(model.get("conv_feature_layers")))
    features = {**stack, "bias": False, "norm": "utterance", "activation": "relu", "compression": "log"}
    objective = source.alone("wav2vec")
    if not model.get("infonce") and model.get("num_negatives") and len(head) == 2:
        weight, bias = (tensors[f"wav2vec_predictions.project_to_steps.{kind}"] for kind in ("weight", "bias"))
        steps = weight.shape[-1]
        ours["heads.weight"] = weight.squeeze(2).permute(2, 1, 0).flatten(0, 1)  # (D, C, 1, K) -> (K C, D)
        ours["heads.bias"] = bias.repeat(steps)  # theirs is one for all steps
        first = -(-receptive_field(stack["kernels"], stack["strides"]) // math.prod(stack["strides"]))
        first = first if model.get("offset", "auto") == "auto" else int(model["offset"])
        objective = {
            "name": "wav2vec",
            "num_steps": steps,
            "first_step": first,
            "num_negatives": model["num_negatives"],
        }
        head = []
    return Imported(
        about=f"wav2vec in fairseq's layout, from {path.name}",
        encoder={
            "feature_encoder": features,
            "context": context | {"skip_scale": model.get("residual_scale", 0.5), "dropout": model.get("dropout", 0.0)},
            "latent_norm": False,
            "project": False,
        },
        objective=objective,
        tensors=ours,
        normalize=bool(task.get("normalize", False)),
        left_behind=tuple(head),
    )


def _check(path: Path, unknown: list[str]) -> None:
    if unknown:
        raise ExportError(f"{path}: has weights that no model of speechssl has a place for: {some(unknown)}.")


def _family(name: str, encoder: dict[str, Any], ours: dict[str, Tensor]) -> str:
    if encoder["context"].get("relative_buckets"):
        return "wavlm"
    if encoder["context"].get("position_layers", 1) > 1:
        return "data2vec"
    return "hubert" if "hubert" in name or "unit_embeddings" in ours else "wav2vec2"


def _tensors(path: Path, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's weights, and those of data2vec's teacher; a fine-tuned model's encoder without its prefix."""
    model = state.get("model")
    if not isinstance(model, dict):
        raise ExportError(f"{path}: has no entry 'model' with weights; it is no checkpoint of fairseq or WavLM.")
    model = {str(name).replace(INSIDE, ""): value for name, value in model.items()}
    teacher = model.pop("_ema", None)
    return only_tensors(model, path), only_tensors(teacher, path) if isinstance(teacher, dict) and teacher else {}


def _settings(path: Path, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings of the pretrained model, its task and its loss: nested (`cfg`) or flat (`args`, and WavLM's `cfg`)."""
    settings = state.get("cfg") or state.get("args")
    if not isinstance(settings, dict):
        raise ExportError(f"{path}: says nothing about its architecture (no 'cfg' and no 'args').")
    nested = isinstance(settings.get("model"), dict)
    model = settings["model"] if nested else settings
    inner = model.get("w2v_args")  # a fine-tuned model keeps the settings of the one it came from
    if isinstance(inner, dict):
        found, task, criterion = _settings(path, {"cfg": inner})
        return found | {"_name": model.get("_name") or model.get("arch")}, task, criterion
    parts = [settings.get(name) if nested else settings for name in ("task", "criterion")]
    task, criterion = (part if isinstance(part, dict) else {} for part in parts)
    return model, task, criterion


def _norm(path: Path, model: dict[str, Any]) -> str:
    mode = str(model.get("extractor_mode", "default")).rsplit(".", 1)[-1]
    for ours, theirs in MODES.items():
        if mode == theirs:
            return ours
    raise ExportError(f"{path}: its extractor_mode is {mode!r}, and speechssl knows {', '.join(MODES.values())}.")


def _encoder(path: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Our section from their settings."""
    encoder = maps.numbers_to_ours(model, maps.FAIRSEQ_NUMBERS)
    context = encoder.setdefault("context", {})
    depth = context.get("position_layers", 1)
    if depth > 1:  # their kernel is that of the whole stack
        context["position_kernel"] = max(3, int(context.get("position_kernel", 128)) // depth)
    if model.get("relative_position_embedding"):
        if not model.get("gru_rel_pos", True):
            raise ExportError(f"{path}: its relative position bias is not gated (gru_rel_pos), which speechssl lacks.")
        context |= {"relative_buckets": 320} | maps.numbers_to_ours(model, maps.FAIRSEQ_RELATIVE).get("context", {})
    stack = parse_layers(path, model.get("conv_feature_layers") or DEFAULT_LAYERS)
    encoder["feature_encoder"] = {**encoder.get("feature_encoder", {}), **stack, "norm": _norm(path, model)}
    return encoder


def parse_layers(path: Path, text: str) -> dict[str, Any]:
    """Their convolutions, "[(512, 10, 5)] + [(512, 3, 2)] * 4", read as lists, sums and multiples.

    Nothing is evaluated. Raises ExportError for anything else.
    """

    def read(node: ast.AST) -> list:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return read(node.left) + read(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            times = ast.literal_eval(node.right)
            if not isinstance(times, int) or times > 100:
                raise ValueError
            return read(node.left) * times
        return list(ast.literal_eval(node))  # type: ignore[arg-type]

    try:
        return source.stack_of(read(ast.parse(str(text).strip(), mode="eval").body))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ExportError(
            f"{path}: its convolutions are no list of (channels, kernel, stride): {str(text)[:80]!r}."
        ) from None


def _pretraining(model: dict[str, Any], criterion: dict[str, Any], ours: dict[str, Tensor]) -> dict[str, Any]:
    """wav2vec 2.0's own numbers; the widths come from the weights, since their 0 means "like another one"."""
    numbers = maps.numbers_to_ours(model, maps.FAIRSEQ_PRETRAINING)
    numbers |= {"final_dim": len(ours["prediction.bias"]), "code_dim": ours["target_projection.weight"].shape[1]}
    numbers |= _mask_start(model)
    if isinstance(model.get("latent_temp"), list) and len(model["latent_temp"]) == 3:
        numbers["gumbel_start"] = numbers["gumbel_end"] = model["latent_temp"][1]
    weights = criterion.get("loss_weights")
    if isinstance(weights, list) and weights:
        numbers["diversity_weight"] = weights[0]
        numbers["feature_penalty"] = weights[1] if len(weights) > 1 else 0.0
    return numbers


def _data2vec(model: dict[str, Any]) -> dict[str, Any]:
    """The teacher's decay is that of the end: the model has been trained."""
    numbers = maps.numbers_to_ours(model, maps.FAIRSEQ_DATA2VEC)
    if "decay_end" in numbers:
        numbers["decay_start"] = numbers["decay_end"]
    return numbers | _mask_start(model)


def _mask_start(model: dict[str, Any]) -> dict[str, float]:
    """Theirs is a share of masked frames, if spans did not overlap; ours the probability that one starts."""
    share, span = model.get("mask_prob"), model.get("mask_length")
    return {"mask_start_prob": share / span} if share and span else {}


def _hubert(model: dict[str, Any], units: Tensor) -> dict[str, Any]:
    sizes = {"num_units": len(units), "final_dim": units.shape[1]}
    return sizes | maps.numbers_to_ours(model, maps.FAIRSEQ_HUBERT) | _mask_start(model)


def _vocabulary(path: Path, state: dict[str, Any]) -> tuple[Tokenizer, list[int]] | None:
    """From the dictionary inside the checkpoint, or dict.ltr.txt beside it; their blank is <s>."""
    task = state.get("task_state")
    inside = task.get("target_dictionary") if isinstance(task, dict) else None
    beside = path.with_name("dict.ltr.txt")
    if isinstance(inside, dict) and isinstance(inside.get("symbols"), list):
        symbols = [str(symbol) for symbol in inside["symbols"]]
    elif beside.is_file():
        lines = beside.read_text(encoding="utf-8").splitlines()
        symbols = [*ENTRIES, *(line.rsplit(" ", 1)[0] for line in lines if line)]
    else:
        return None
    return from_symbols([s for s in symbols if s in SPECIAL or not s.startswith("madeupword")], blank=ENTRIES[0])
