"""What a reader of another format hands over, and what every writer of one asks first."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint import Checkpoint, CheckpointError, find_checkpoint, read_config
from speechssl.config import Config, ConfigError
from speechssl.data.tokens import Tokenizer
from speechssl.export.bare import NAME as BARE
from speechssl.export.keymaps import ExportError
from speechssl.nn.encoder import EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.transformer import TransformerConfig

PARTS = {  # what an imported objective holds beside its encoder
    BARE: ("mask_embedding",),
    "ctc": ("mask_embedding", "head."),
    "speaker": ("embedding.", "head."),
    "wav2vec2": ("mask_embedding", "quantizer.", "prediction.", "target_projection."),
    "hubert": ("mask_embedding", "prediction.", "unit_embeddings"),
    "wavlm": ("mask_embedding", "prediction.", "unit_embeddings"),
    "data2vec": ("mask_embedding", "prediction.", "teacher."),
}


@dataclass(frozen=True)
class Imported:
    """Weights of another program in our words.

    Attributes:
        about: what they are, for a person.
        encoder, objective: sections of a configuration.
        tensors: under our names, float32.
        normalize: whether the encoder wants zero mean and unit variance.
        tokenizer: of a CTC head.
        left_behind: their names of weights that have no place here.
    """

    about: str
    encoder: dict[str, Any]
    objective: dict[str, Any]
    tensors: dict[str, Tensor]
    normalize: bool
    sample_rate: int = 16_000
    tokenizer: Tokenizer | None = None
    left_behind: tuple[str, ...] = field(default=())


def alone(family: str) -> dict[str, Any]:
    """The objective section of an encoder without heads."""
    return {"name": BARE, "family": family}


def ctc(tokenizer: Tokenizer) -> dict[str, Any]:
    """The objective section of a CTC head."""
    return {"name": "ctc", "vocab_size": len(tokenizer), "word_boundary": tokenizer.boundary}


def pretraining(norm: str, **numbers: Any) -> dict[str, Any]:
    """wav2vec 2.0's section for a model that has been pretrained: the codes are drawn as at the end of its training.

    What formats do not store is as published for the kind it is: group norm as Base, layer norm as Large.
    """
    end = 0.5 if norm == "group" else 0.1
    base = {"feature_penalty": 10.0, "feature_gradient": 0.1} if norm == "group" else {"feature_penalty": 0.0}
    large = {} if norm == "group" else {"feature_gradient": 1.0}
    return {"name": "wav2vec2", "gumbel_start": end, "gumbel_end": end, **base, **large, **numbers}


def fitting(tensors: dict[str, Tensor], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that an objective of this name has, and the names of the others."""
    kept = {key: tensor for key, tensor in tensors.items() if key.startswith(("encoder.", *PARTS[name]))}
    return kept, [key for key in tensors if key not in kept]


def plain_encoder(config: EncoderConfig) -> dict[str, Any]:
    """Every number of an encoder in nested sections."""
    return dataclasses.asdict(config)


def conv_layers(encoder: dict[str, Any]) -> list[list[int]]:
    """[channels, kernel, stride] of each convolution, as torchaudio and fairseq write them."""
    stack = encoder["feature_encoder"]
    return [list(row) for row in zip(stack["dims"], stack["kernels"], stack["strides"], strict=True)]


def stack_of(layers: list) -> dict[str, Any]:
    """The inverse of `conv_layers`. Raises ValueError, TypeError for anything but triples of numbers."""
    rows = [tuple(int(number) for number in row) for row in layers]
    if not rows or any(len(row) != 3 for row in rows):
        raise ValueError("convolutions are not triples of numbers")
    return dict(zip(("dims", "kernels", "strides"), zip(*rows, strict=True), strict=True))


def family(checkpoint: Checkpoint) -> str:
    """wav2vec2, hubert, wavlm or data2vec: by the encoder's parts, its objective, or the run that it started from."""
    return _family(checkpoint.config, checkpoint.objective.encoder.config)


def _family(config: Config, encoder: EncoderConfig) -> str:
    context, name = encoder.context, config.objective.get("name", "")
    if isinstance(context, TransformerConfig) and context.relative_buckets:
        return "wavlm"
    if isinstance(context, TransformerConfig) and context.position_layers > 1:
        return "data2vec"
    if name in ("hubert", "wavlm") or (name == BARE and config.objective.get("family") == "hubert"):
        return "hubert"
    if config.init and name not in (
        "wav2vec2",
        BARE,
    ):  # wav2vec 2.0 and HuBERT are one network; only where it came from tells them apart
        try:
            return _family(read_config(find_checkpoint(config.init)), encoder)
        except (CheckpointError, ConfigError, OSError):
            pass
    return "wav2vec2"


def misfit(checkpoint: Checkpoint, *, stack: bool = True, layer_only: bool = False) -> str:
    """Why an encoder is none of the Transformers that other toolkits have; empty if it is one.

    Args:
        stack: they have data2vec's positional convolutions; layer_only: under layer norm in the feature encoder only.
    """
    config = checkpoint.objective.encoder.config
    features, context = config.feature_encoder, config.context
    if not isinstance(features, WaveformConfig):
        return "its encoder reads a filterbank and not waveforms"
    if features.channels > 1:
        return f"its encoder reads series of {features.channels} channels and not waveforms"
    if not isinstance(context, TransformerConfig):
        return f"its context network is '{context.name}' and no Transformer"
    if features.norm not in ("group", "layer") or features.activation != "gelu" or features.compression != "none":
        return "its convolutions are normalised or activated in another way"
    if not config.latent_norm or not config.project:
        return "its latents reach the Transformer without a norm and a projection"
    if context.causal:
        return "its Transformer is causal"
    if context.relative_buckets and context.position_layers > 1:
        return "it has both a relative position bias and more than one positional convolution"
    if context.position_layers > 1:
        if not stack:
            return "it has more than one positional convolution"
        if context.norm_first or (layer_only and features.norm != "layer"):
            return "it has data2vec's positional convolutions under other norms than data2vec"
    return ""


def homeless(checkpoint: Checkpoint, *homes: str) -> str:
    """The parts of an objective that have no place in another format, beside its encoder and `homes`."""
    parts = dict.fromkeys(name.split(".")[0] for name in checkpoint.objective.state_dict())
    return ", ".join(part for part in parts if part not in ("encoder", *homes))


def behind(parts: str) -> str:
    """A sentence about `homeless` parts; empty if there are none."""
    return f"Stays behind, for want of a place there: {parts}." if parts else ""


def refuse(path: Path, reason: str, target: str, instead: str = "onnx or torch-export") -> ExportError:
    return ExportError(f"{path}: {reason}, which {target} lacks; export it with --format {instead}.")


def one_token_per_frame(path: Path, checkpoint: Checkpoint, target: str) -> None:
    """Raises ExportError for a CTC head that spells several tokens per frame."""
    symbols = getattr(checkpoint.objective.config, "symbols_per_frame", 1)
    if symbols > 1:
        raise refuse(path, f"its head spells {symbols} tokens per frame (objective.symbols_per_frame)", target, "onnx")
