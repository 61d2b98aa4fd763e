"""Folders that transformers opens: Wav2Vec2, HuBERT, WavLM, Data2VecAudio. Written and read without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from speechssl.data.tokens import Tokenizer
from speechssl.export import keymaps as maps
from speechssl.export import source, speakers
from speechssl.export.card import USAGE, card
from speechssl.export.keymaps import ExportError, some
from speechssl.export.output import new_folder, write_json, write_tensors
from speechssl.export.source import Imported
from speechssl.export.unpickle import only_tensors, read_json, read_pickle, read_safetensors
from speechssl.export.vocabulary import from_symbols, transformers_files

# Our family: their model_type, the start of their class names, and the name of the encoder inside them.
CLASSES = {
    "wav2vec2": ("wav2vec2", "Wav2Vec2", "wav2vec2"),
    "hubert": ("hubert", "Hubert", "hubert"),
    "wavlm": ("wavlm", "WavLM", "wavlm"),
    "data2vec": ("data2vec-audio", "Data2VecAudio", "data2vec_audio"),
}
NUMBERS = {
    "wav2vec2": maps.WAV2VEC2_NUMBERS,
    "hubert": maps.WAV2VEC2_NUMBERS,
    "wavlm": maps.WAVLM_NUMBERS,
    "data2vec": maps.DATA2VEC_NUMBERS,
}
FIXED = {  # numbers of theirs that can only be one thing here
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}


# ------------------------------------------------------------------------------------------------------------- writing


def export_hf(path: Path, out: Path, *, licence: str = "") -> str:
    """Writes a folder that `AutoModel.from_pretrained` opens; CTC and speaker models also open in a pipeline.

    wav2vec 2.0 becomes Wav2Vec2ForPreTraining, a CTC model ...ForCTC with its vocabulary, a speaker model whose head is
    theirs (`speakers`) ...ForSequenceClassification, and everything else whose encoder transformers has, that encoder.

    Returns:
        A sentence about what stays behind; empty: nothing does.

    Raises:
        ExportError: transformers has no such encoder or head, or `out` exists.
        CheckpointError: there is no checkpoint at `path`.
    """
    checkpoint = load_checkpoint(path)
    reason = source.misfit(checkpoint, layer_only=True)
    if reason:
        raise source.refuse(path, reason, "transformers")
    source.one_token_per_frame(path, checkpoint, "transformers")
    name, family = checkpoint.config.objective["name"], source.family(checkpoint)
    model_type, class_, inside = CLASSES[family]
    missing, state = speakers.misfit(checkpoint), checkpoint.objective.state_dict()
    tensors = maps.to_theirs(state, maps.TRANSFORMERS)
    config = _config(checkpoint, family) | {"model_type": model_type}
    if "mask_embedding" not in state:
        config["mask_time_prob"] = 0.0  # else theirs makes one up, and says so
    kind, homes = "Model", ["mask_embedding"]
    if name == "ctc" or (name, family) == ("wav2vec2", "wav2vec2"):
        tensors = maps.prefixed(tensors, f"{inside}.") | maps.to_theirs(state, maps.TRANSFORMERS_HEADS)
        kind = {"wav2vec2": "ForPreTraining", "ctc": "ForCTC"}[name]
        homes += ["quantizer", "prediction", "target_projection", "head"]
    if name == speakers.NAME and not missing:
        tensors = maps.prefixed(tensors, f"{inside}.")
        tensors |= maps.to_theirs(speakers.head(checkpoint), maps.TRANSFORMERS_SPEAKERS)
        config |= speakers.numbers(checkpoint)
        kind, homes = "ForSequenceClassification", [*homes, "embedding", "head", "pooled_norm"]
    config["architectures"] = [class_ + kind]

    data, speaks = checkpoint.config.data, name == "ctc"
    use, task = {
        "ForCTC": ("hf-ctc", "automatic-speech-recognition"),
        "ForSequenceClassification": ("hf-speaker", "audio-classification"),
    }.get(kind, ("hf", "feature-extraction"))
    with new_folder(out) as folder:
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "config.json", config)
        processor: dict[str, Any] = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": data.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": data.normalize,
            "return_attention_mask": config.get("feat_extract_norm") != "group",  # as theirs: else padding is heard
        }
        if speaks:
            assert checkpoint.tokenizer is not None, "a CTC model is saved with its vocabulary"
            processor["processor_class"] = "Wav2Vec2Processor"
            for file, content in transformers_files(checkpoint.tokenizer).items():
                write_json(folder / file, content)
        write_json(folder / "preprocessor_config.json", processor)
        usage = USAGE[use].format(rate=data.sample_rate)
        left = source.homeless(checkpoint, *homes)
        about: dict[str, Any] = {"licence": licence, "library": "transformers", "task": task, "left": left}
        text = card(find_checkpoint(path), checkpoint, usage, **about)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return missing or source.behind(left)


def _config(checkpoint: Checkpoint, family: str) -> dict[str, Any]:
    encoder, objective = source.plain_encoder(checkpoint.objective.encoder.config), checkpoint.objective.config
    config = maps.numbers_to_theirs(encoder, maps.TRANSFORMERS_NUMBERS, NUMBERS[family]) | FIXED
    config |= {"dtype": "float32", "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    name = checkpoint.config.objective["name"]
    if name == "wav2vec2":
        config |= {key: getattr(objective, ours) for key, ours in maps.TRANSFORMERS_PRETRAINING}
        start, span = objective.mask_start_prob, objective.mask_length
        config |= {"mask_time_prob": round(start * span, 6), "mask_time_length": span}  # theirs: share of masked frames
    if name == "ctc":
        time, channel = objective.time_mask_start_prob, objective.channel_mask_start_prob
        config |= {
            "vocab_size": objective.vocab_size,
            "final_dropout": objective.head_dropout,
            "ctc_loss_reduction": "sum",
            "mask_time_prob": round(time * objective.time_mask_length, 6),
            "mask_time_length": objective.time_mask_length,
            "mask_feature_prob": round(channel * objective.channel_mask_length, 6),
            "mask_feature_length": objective.channel_mask_length,
        }
    return config


# ------------------------------------------------------------------------------------------------------------- reading


def read_hf(folder: Path) -> Imported:
    """Reads a folder of transformers. Raises ExportError."""
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    family = next((ours for ours, (theirs, *_) in CLASSES.items() if theirs == model_type), None)
    if family is None:
        known = ", ".join(theirs for theirs, *_ in CLASSES.values())
        raise ExportError(f"{folder}: is a '{model_type}' model, and speechssl knows {known}; import one of these.")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ExportError(
                f"{folder}: its config.json has {key} = {config[key]!r}, and here it can only be {value!r}."
            )
    inside = f"{CLASSES[family][2]}."
    tensors = {name.removeprefix(inside): tensor for name, tensor in _weights(folder).items()}
    speaking = speakers.section(config, tensors)
    heads = maps.TRANSFORMERS_HEADS + (maps.TRANSFORMERS_SPEAKERS if speaking else ())
    ours, unknown = maps.to_ours(tensors, maps.TRANSFORMERS + heads)
    left = [name for name in unknown if name.startswith(maps.TRANSFORMERS_OTHER_HEADS)]
    if len(left) < len(unknown):
        strange = some(name for name in unknown if name not in left)
        raise ExportError(f"{folder}: has weights that no model of speechssl has a place for: {strange}.")

    encoder = maps.numbers_to_ours(config, maps.TRANSFORMERS_NUMBERS, NUMBERS[family])
    if family == "data2vec":
        encoder.setdefault("feature_encoder", {})["norm"] = "layer"
        encoder["context"] = {"position_kernel": 19, "position_layers": 5} | encoder.get("context", {})
    if family == "wavlm":
        encoder["context"] = {"relative_buckets": 320} | encoder.get("context", {})
    encoder["latent_norm"] = config.get("feat_proj_layer_norm", True)
    norm = encoder.get("feature_encoder", {}).get("norm", "group")
    objective = speaking or source.alone(family)
    tokenizer: Tokenizer | None = None
    if "quantizer.codebooks" in ours and family == "wav2vec2":
        objective = source.pretraining(norm, **maps.numbers_to_ours(config, maps.TRANSFORMERS_PRETRAINING))
    elif "head.linear.weight" in ours:
        spelling = _vocabulary(folder)
        if spelling is not None and max(spelling[1]) < len(ours["head.linear.weight"]):
            tokenizer, rows = spelling
            ours |= {name: tensor[rows] for name, tensor in ours.items() if name.startswith("head.linear.")}
            objective = source.ctc(tokenizer)
    ours, homeless = source.fitting(ours, objective["name"])
    return Imported(
        about=f"{model_type} of transformers, from {folder.name}",
        encoder=encoder,
        objective=objective,
        tensors=ours,
        normalize=_processor(folder).get("do_normalize", norm == "layer"),
        sample_rate=_processor(folder).get("sampling_rate", 16_000),
        tokenizer=tokenizer,
        left_behind=tuple(left + homeless),
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    """model.safetensors or pytorch_model.bin, whole or in shards."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickle)):
        files = [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map", {})
            files = [folder / Path(str(shard)).name for shard in sorted(set(shards.values()))]
        if index.is_file() or files[0].is_file():
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ExportError(f"{folder}: {some(missing)} is missing; download the whole folder.")
            return {key: tensor for file in files for key, tensor in only_tensors(read(file), file).items()}
    raise ExportError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin; download the weights as well.")


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def _vocabulary(folder: Path) -> tuple[Tokenizer, list[int]] | None:
    """From vocab.json; None where the head has no vocabulary that we can spell."""
    files = {name: folder / name for name in ("vocab.json", "tokenizer_config.json")}
    if not files["vocab.json"].is_file():
        return None
    places = read_json(files["vocab.json"])
    rules = read_json(files["tokenizer_config.json"]) if files["tokenizer_config.json"].is_file() else {}
    blank, boundary = rules.get("pad_token", "<pad>"), rules.get("word_delimiter_token", "|")
    blank = blank.get("content", "<pad>") if isinstance(blank, dict) else blank
    if sorted(places.values(), key=str) != sorted(range(len(places)), key=str):
        return None
    return from_symbols(sorted(places, key=lambda symbol: places[symbol]), blank=blank, boundary=boundary)
