"""What weights and numbers are called elsewhere and here: data, read in both directions.

A row is (their name, our name). In both, `#` stands for the same number and `*` for the same of `weight` and `bias`.
Several names on their side are one tensor here, joined along its first axis. Our names are those of an objective; the
encoder is its part `encoder.`
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import UserError

Rows = tuple[tuple[str | tuple[str, ...], str], ...]
Numbers = tuple[tuple[str, str], ...]


class ExportError(UserError):
    """Weights that cannot be taken in or given out. The message names the file, and says what to do."""


# ------------------------------------------------------------------------------------------------------- transformers

TRANSFORMERS: Rows = (
    ("masked_spec_embed", "mask_embedding"),
    ("feature_extractor.conv_layers.#.conv.*", "encoder.feature_encoder.convolutions.layers.#.*"),
    ("feature_extractor.conv_layers.#.layer_norm.*", "encoder.feature_encoder.convolutions.layers.#.norm_*"),
    ("feature_projection.layer_norm.*", "encoder.latent_norm.*"),
    ("feature_projection.projection.*", "encoder.projection.*"),
    ("encoder.pos_conv_embed.conv.weight_g", "encoder.context.positions.weight_g"),
    ("encoder.pos_conv_embed.conv.weight_v", "encoder.context.positions.weight_v"),
    ("encoder.pos_conv_embed.conv.bias", "encoder.context.positions.bias"),
    ("encoder.pos_conv_embed.layers.#.conv.*", "encoder.context.positions.layers.#.*"),
    ("encoder.layer_norm.*", "encoder.context.norm.*"),
    ("encoder.layers.0.attention.rel_attn_embed.weight", "encoder.context.relative.embedding.weight"),
    ("encoder.layers.#.attention.gru_rel_pos_linear.*", "encoder.context.blocks.#.attention.position_gate.linear.*"),
    ("encoder.layers.#.attention.gru_rel_pos_const", "encoder.context.blocks.#.attention.position_gate.scale"),
    (
        tuple(f"encoder.layers.#.attention.{part}_proj.*" for part in "qkv"),
        "encoder.context.blocks.#.attention.qkv.*",
    ),
    ("encoder.layers.#.attention.out_proj.*", "encoder.context.blocks.#.attention.out.*"),
    ("encoder.layers.#.layer_norm.*", "encoder.context.blocks.#.attention_norm.*"),
    ("encoder.layers.#.feed_forward.intermediate_dense.*", "encoder.context.blocks.#.ffn_in.*"),
    ("encoder.layers.#.feed_forward.output_dense.*", "encoder.context.blocks.#.ffn_out.*"),
    ("encoder.layers.#.final_layer_norm.*", "encoder.context.blocks.#.ffn_norm.*"),
)
TRANSFORMERS_HEADS: Rows = (  # beside the encoder, of ...ForPreTraining and ...ForCTC
    ("quantizer.codevectors", "quantizer.codebooks"),
    ("quantizer.weight_proj.*", "quantizer.logits.*"),
    ("project_hid.*", "prediction.*"),
    ("project_q.*", "target_projection.*"),
    ("lm_head.*", "head.linear.*"),
)
TRANSFORMERS_SPEAKERS: Rows = (("projector.*", "embedding.*"), ("classifier.*", "head.*"))  # ForSequenceClassification
XVECTOR_HEAD = ("tdnn.", "objective.", "feature_extractor.weight", "feature_extractor.bias")
TRANSFORMERS_OTHER_HEADS = ("classifier.", "projector.", "layer_weights", *XVECTOR_HEAD)

TRANSFORMERS_NUMBERS: Numbers = (
    ("conv_dim", "feature_encoder.dims"),
    ("conv_kernel", "feature_encoder.kernels"),
    ("conv_stride", "feature_encoder.strides"),
    ("conv_bias", "feature_encoder.bias"),
    ("hidden_size", "context.dim"),
    ("num_hidden_layers", "context.num_layers"),
    ("num_attention_heads", "context.num_heads"),
    ("intermediate_size", "context.ffn_dim"),
    ("num_conv_pos_embedding_groups", "context.position_groups"),
    ("hidden_dropout", "context.dropout"),
    ("attention_dropout", "context.attention_dropout"),
    ("activation_dropout", "context.activation_dropout"),
    ("layerdrop", "context.layer_drop"),
    ("feat_proj_dropout", "dropout"),
)
WAV2VEC2_NUMBERS: Numbers = (
    ("feat_extract_norm", "feature_encoder.norm"),
    ("do_stable_layer_norm", "context.norm_first"),
    ("num_conv_pos_embeddings", "context.position_kernel"),
)
WAVLM_NUMBERS: Numbers = (
    *WAV2VEC2_NUMBERS,
    ("num_buckets", "context.relative_buckets"),
    ("max_bucket_distance", "context.relative_distance"),
)
DATA2VEC_NUMBERS: Numbers = (
    ("conv_pos_kernel_size", "context.position_kernel"),
    ("num_conv_pos_embeddings", "context.position_layers"),
)
TRANSFORMERS_PRETRAINING: Numbers = (  # Wav2Vec2ForPreTraining's, and those of our objective
    ("num_codevector_groups", "num_codebooks"),
    ("num_codevectors_per_group", "codebook_size"),
    ("codevector_dim", "code_dim"),
    ("proj_codevector_dim", "final_dim"),
    ("num_negatives", "num_negatives"),
    ("contrastive_logits_temperature", "logit_temperature"),
    ("diversity_loss_weight", "diversity_weight"),
    ("feat_quantizer_dropout", "quantizer_dropout"),
)

# --------------------------------------------------------------------------------------------------------- torchaudio


def _torchaudio(name: str) -> str:
    """Its names are those of transformers, save that everything behind the convolutions belongs to `encoder`."""
    return re.sub(r"^encoder\.", "encoder.transformer.", name).replace(
        "feature_projection.", "encoder.feature_projection."
    )


TORCHAUDIO: Rows = (
    *(
        (_torchaudio(theirs) if isinstance(theirs, str) else tuple(map(_torchaudio, theirs)), ours)
        for theirs, ours in TRANSFORMERS[1:]  # it has no mask embedding
    ),
    ("aux.*", "head.linear.*"),
)
TORCHAUDIO_WAVLM: Rows = (  # wavlm_model keeps the three projections in one
    (
        "encoder.transformer.layers.#.attention.attention.in_proj_weight",
        "encoder.context.blocks.#.attention.qkv.weight",
    ),
    ("encoder.transformer.layers.#.attention.attention.in_proj_bias", "encoder.context.blocks.#.attention.qkv.bias"),
    ("encoder.transformer.layers.#.attention.attention.out_proj.*", "encoder.context.blocks.#.attention.out.*"),
    *(row for row in TORCHAUDIO if not row[1].endswith(("attention.qkv.*", "attention.out.*"))),
)
TORCHAUDIO_NUMBERS: Numbers = (
    ("extractor_conv_bias", "feature_encoder.bias"),
    ("encoder_embed_dim", "context.dim"),
    ("encoder_projection_dropout", "dropout"),
    ("encoder_pos_conv_kernel", "context.position_kernel"),
    ("encoder_pos_conv_groups", "context.position_groups"),
    ("encoder_num_layers", "context.num_layers"),
    ("encoder_num_heads", "context.num_heads"),
    ("encoder_attention_dropout", "context.attention_dropout"),
    ("encoder_ff_interm_features", "context.ffn_dim"),
    ("encoder_ff_interm_dropout", "context.activation_dropout"),
    ("encoder_dropout", "context.dropout"),
    ("encoder_layer_norm_first", "context.norm_first"),
    ("encoder_layer_drop", "context.layer_drop"),
)
TORCHAUDIO_WAVLM_NUMBERS: Numbers = (
    ("encoder_num_buckets", "context.relative_buckets"),
    ("encoder_max_distance", "context.relative_distance"),
)

# ------------------------------------------------------------------------------ fairseq, and WavLM's own release

FAIRSEQ_NORMS: dict[str, Rows] = {  # of the convolutions, by their kind
    "group": (("feature_extractor.conv_layers.#.2.*", "encoder.feature_encoder.convolutions.layers.#.norm_*"),),
    "layer": (("feature_extractor.conv_layers.#.2.1.*", "encoder.feature_encoder.convolutions.layers.#.norm_*"),),
}
FAIRSEQ_CONTEXT: Rows = (  # `encoder.` of theirs; data2vec's teacher has the same names under `_ema`
    ("pos_conv.0.weight_g", "positions.weight_g"),
    ("pos_conv.0.weight_v", "positions.weight_v"),
    ("pos_conv.0.bias", "positions.bias"),
    ("pos_conv.#.0.*", "positions.layers.#.*"),
    ("layer_norm.*", "norm.*"),
    ("layers.0.self_attn.relative_attention_bias.weight", "relative.embedding.weight"),
    ("layers.#.self_attn.grep_linear.*", "blocks.#.attention.position_gate.linear.*"),
    ("layers.#.self_attn.grep_a", "blocks.#.attention.position_gate.scale"),
    (tuple(f"layers.#.self_attn.{part}_proj.*" for part in "qkv"), "blocks.#.attention.qkv.*"),
    ("layers.#.self_attn.out_proj.*", "blocks.#.attention.out.*"),
    ("layers.#.self_attn_layer_norm.*", "blocks.#.attention_norm.*"),
    ("layers.#.fc1.*", "blocks.#.ffn_in.*"),
    ("layers.#.fc2.*", "blocks.#.ffn_out.*"),
    ("layers.#.final_layer_norm.*", "blocks.#.ffn_norm.*"),
)
FAIRSEQ: Rows = (
    ("mask_emb", "mask_embedding"),
    ("feature_extractor.conv_layers.#.0.*", "encoder.feature_encoder.convolutions.layers.#.*"),
    ("layer_norm.*", "encoder.latent_norm.*"),
    ("post_extract_proj.*", "encoder.projection.*"),
)
FAIRSEQ_HEADS: Rows = (  # of wav2vec 2.0, data2vec and HuBERT
    ("quantizer.vars", "quantizer.codebooks"),
    ("quantizer.weight_proj.*", "quantizer.logits.*"),
    ("project_q.*", "target_projection.*"),
    ("final_proj.*", "prediction.*"),
    ("label_embs_concat", "unit_embeddings"),
)
FAIRSEQ_NUMBERS: Numbers = (
    ("conv_bias", "feature_encoder.bias"),
    ("encoder_embed_dim", "context.dim"),
    ("encoder_layers", "context.num_layers"),
    ("encoder_attention_heads", "context.num_heads"),
    ("encoder_ffn_embed_dim", "context.ffn_dim"),
    ("layer_norm_first", "context.norm_first"),
    ("conv_pos", "context.position_kernel"),
    ("conv_pos_groups", "context.position_groups"),
    ("pos_conv_depth", "context.position_layers"),
    ("dropout", "context.dropout"),
    ("attention_dropout", "context.attention_dropout"),
    ("activation_dropout", "context.activation_dropout"),
    ("encoder_layerdrop", "context.layer_drop"),
    ("dropout_input", "dropout"),
)
FAIRSEQ_RELATIVE: Numbers = (
    ("num_buckets", "context.relative_buckets"),
    ("max_distance", "context.relative_distance"),
)
FAIRSEQ_PRETRAINING: Numbers = (
    ("latent_groups", "num_codebooks"),
    ("latent_vars", "codebook_size"),
    ("num_negatives", "num_negatives"),
    ("logit_temp", "logit_temperature"),
    ("mask_length", "mask_length"),
    ("feature_grad_mult", "feature_gradient"),
    ("dropout_features", "quantizer_dropout"),
)
FAIRSEQ_HUBERT: Numbers = (
    ("logit_temp", "logit_temperature"),
    ("mask_length", "mask_length"),
    ("feature_grad_mult", "feature_gradient"),
)
FAIRSEQ_DATA2VEC: Numbers = (
    ("average_top_k_layers", "top_layers"),
    ("mask_length", "mask_length"),
    ("loss_beta", "beta"),
    ("ema_decay", "decay_start"),
    ("ema_end_decay", "decay_end"),
    ("ema_anneal_end_step", "decay_updates"),
)
FAIRSEQ_WAV2VEC: Rows = (  # its first model, with an aggregator of causal convolutions
    ("feature_extractor.conv_layers.#.0.weight", "encoder.feature_encoder.convolutions.layers.#.weight"),
    ("feature_extractor.conv_layers.#.2.*", "encoder.feature_encoder.convolutions.layers.#.norm_*"),
    ("feature_aggregator.conv_layers.#.1.*", "encoder.context.blocks.#.convolution.*"),
    ("feature_aggregator.conv_layers.#.3.*", "encoder.context.blocks.#.norm_*"),
    ("feature_aggregator.residual_proj.#.weight", "encoder.context.blocks.#.skip.weight"),
)

RECURRENT = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CPC: Rows = (  # of CPC_audio
    ("gEncoder.conv#.*", "encoder.feature_encoder.convolutions.layers.#.*"),
    ("gEncoder.batchNorm#.*", "encoder.feature_encoder.convolutions.layers.#.norm_*"),
    *((f"gAR.baseNet.{name}_l#", f"encoder.context.blocks.#.{name}_l0") for name in RECURRENT),
)

# --------------------------------------------------------------------------------------------------- how maps are read

SHAPES = {  # theirs, where ours has another; -1: the rest; None: as long as our last axis
    "quantizer.codebooks": (1, -1, None),
    "encoder.context.blocks.#.attention.position_gate.scale": (1, -1, 1, 1),
    "encoder.context.blocks.#.skip.weight": (-1, None, 1),
}
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def to_ours(tensors: Mapping[str, Tensor], rows: Rows) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors under our names, and the names that no row knows. Either naming of weight norm is understood."""
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        plain = functools.reduce(lambda text, pair: text.replace(*pair), WEIGHT_NORM.items(), name)
        for theirs, target in rows:
            names = (theirs,) if isinstance(theirs, str) else theirs
            found = [(place, _match(part, plain)) for place, part in enumerate(names)]
            place, values = next(((place, values) for place, values in found if values is not None), (0, None))
            if values is None:
                continue
            if len(names) == 1:
                ours[_fill(target, values)] = tensor
            else:
                parts.setdefault(_fill(target, values), {})[place] = tensor
            break
        else:
            unknown.append(name)
    ours |= {name: torch.cat([found[place] for place in sorted(found)]) for name, found in parts.items()}
    return ours, unknown


def to_theirs(tensors: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Our tensors under their names; those that no row knows are left out."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for names, ours in rows:
            values = _match(ours, name)
            if values is None:
                continue
            shape = next((shape for pattern, shape in SHAPES.items() if _match(pattern, name) is not None), None)
            if shape is not None:
                tensor = tensor.reshape([tensor.shape[-1] if size is None else size for size in shape])
            if isinstance(names, str):
                theirs[_fill(names, values)] = tensor
            else:
                theirs |= {_fill(n, values): part for n, part in zip(names, tensor.chunk(len(names)), strict=True)}
            break
    return theirs


def reshape_like(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names, those of SHAPES in the shape they have in `own`."""
    shaped = {name for name in tensors for pattern in SHAPES if _match(pattern, name) is not None and name in own}
    fits = {name for name in shaped if tensors[name].numel() == own[name].numel()}
    return {name: t.reshape(own[name].shape) if name in fits else t for name, t in tensors.items()}


def numbers_to_ours(theirs: Mapping[str, Any], *tables: Numbers) -> dict[str, Any]:
    """Their numbers in nested sections of ours; what they do not say is left out."""
    ours: dict[str, Any] = {}
    for key, path in (row for table in tables for row in table):
        if theirs.get(key) is not None:
            *sections, last = path.split(".")
            functools.reduce(lambda part, name: part.setdefault(name, {}), sections, ours)[last] = theirs[key]
    return ours


def numbers_to_theirs(ours: Mapping[str, Any], *tables: Numbers) -> dict[str, Any]:
    """Our nested sections as their flat numbers."""
    return {
        key: functools.reduce(lambda part, name: part[name], path.split("."), ours)
        for table in tables
        for key, path in table
    }


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\#", r"(?P<number>\d+)").replace(r"\*", "(?P<kind>weight|bias)"))


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def _fill(template: str, values: dict[str, str]) -> str:
    return template.replace("#", values.get("number", "")).replace("*", values.get("kind", ""))
