"""Key maps for parity tests: names of transformers' and torchaudio's wav2vec 2.0 -> ours.

They work on any dictionary of tensors by name, so gradients are compared by the same map as parameters.
"""

import re

import torch
from torch import Tensor

ENCODER = [  # applied in order; the first two make torchaudio's names those of transformers
    (r"^encoder\.feature_projection\.", "feature_projection."),
    (r"^encoder\.transformer\.", "encoder."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_encoder.convolutions.layers.\1."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"feature_encoder.convolutions.layers.\1.norm_"),
    (r"^feature_projection\.layer_norm\.", "latent_norm."),
    (r"^feature_projection\.projection\.", "projection."),
    (r"^encoder\.pos_conv_embed\.conv\.", "context.positions."),
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
    (r"^encoder\.layer_norm\.", "context.norm."),
    (r"^encoder\.layers\.", "context.blocks."),
    (r"\.attention\.out_proj\.", ".attention.out."),
    (r"(blocks\.\d+)\.layer_norm\.", r"\1.attention_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".ffn_in."),
    (r"\.feed_forward\.output_dense\.", ".ffn_out."),
    (r"\.final_layer_norm\.", ".ffn_norm."),
]

OBJECTIVE = {  # transformers' Wav2Vec2ForPreTraining -> ours, beside the encoder
    "wav2vec2.masked_spec_embed": "mask_embedding",
    "quantizer.weight_proj.weight": "quantizer.logits.weight",
    "quantizer.weight_proj.bias": "quantizer.logits.bias",
    "project_hid.weight": "prediction.weight",
    "project_hid.bias": "prediction.bias",
    "project_q.weight": "target_projection.weight",
    "project_q.bias": "target_projection.bias",
}


def encoder_tensors(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wav2Vec2Model of transformers or torchaudio -> Encoder. The three projections of attention become one."""
    renamed = {}
    for name, tensor in theirs.items():
        if name == "masked_spec_embed":
            continue
        for pattern, ours in ENCODER:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return renamed


def pretraining_tensors(theirs: dict[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """Wav2Vec2ForPreTraining of transformers -> Wav2Vec2."""
    encoder = {k.removeprefix("wav2vec2."): v for k, v in theirs.items() if k.startswith("wav2vec2.")}
    ours = {f"encoder.{name}": tensor for name, tensor in encoder_tensors(encoder).items()}
    ours |= {name: theirs[key] for key, name in OBJECTIVE.items()}
    codevectors = theirs["quantizer.codevectors"]  # (1, G * V, Q / G)
    ours["quantizer.codebooks"] = codevectors.reshape(num_codebooks, -1, codevectors.shape[-1])
    return ours


@torch.no_grad()
def shake(module: torch.nn.Module, amount: float = 0.1) -> None:
    """Adds noise to every parameter, so that no norm is the identity and no bias is zero."""
    for parameter in module.parameters():
        parameter += amount * torch.randn_like(parameter)
