"""Random models of transformers and torchaudio, small but of every shape, and the same speech through them and ours."""

from __future__ import annotations

from pathlib import Path

import torch
from parity import shake
from tiny_run import talkative
from torch import Tensor

from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.config import Config, parse
from speechssl.data.tokens import Tokenizer
from speechssl.nn.encoder import Encoder
from speechssl.objectives import Objective

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
STRIDES = {"kernels": (10, 3, 3, 3, 3, 2, 2), "strides": (5, 2, 2, 2, 2, 2, 2)}  # as published
SIZES: dict[str, dict] = {
    "base": {"norm": "group", "bias": False, "dims": (24,) * 7, **STRIDES, "layers": 12, "dim": 32, "heads": 4},
    "large": {"norm": "layer", "bias": True, "dims": (24,) * 7, **STRIDES, "layers": 24, "dim": 48, "heads": 6},
    "tiny": {
        "norm": "layer",
        "bias": False,
        "dims": (8, 12),
        "kernels": (10, 8),
        "strides": (5, 8),
        "layers": 2,
        "dim": 16,
        "heads": 2,
    },
}
FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec")
NUMBERS = {"num_codebooks": 2, "codebook_size": 3, "code_dim": 12, "final_dim": 10, "num_negatives": 7}
LETTERS = Tokenizer.train(["it's a test of letters"])
SPEAKERS = ("Ada", "Bob", "Çelik")


def encoder_section(family: str, size: str) -> dict:
    """Of a configuration of ours."""
    numbers = SIZES[size]
    features = {key: numbers[key] for key in ("norm", "bias", "dims", "kernels", "strides")}
    context = {
        "name": "transformer",
        "dim": numbers["dim"],
        "num_layers": numbers["layers"],
        "num_heads": numbers["heads"],
        "ffn_dim": 40,
        "position_kernel": 8,
        "position_groups": 4,
        "norm_first": size == "large",
    }
    if family == "wavlm":
        context |= {"relative_buckets": 8, "relative_distance": 16}
    if family == "data2vec":  # its blocks always have norms last, its convolutions layer norm
        features["norm"] = "layer"
        context |= {"position_layers": 3, "position_kernel": 5, "norm_first": False}
    return {"feature_encoder": {"name": "waveform", **features}, "context": context}


def objective_section(name: str) -> dict:
    return {
        "wav2vec2": {"name": "wav2vec2", **NUMBERS},
        "hubert": {"name": "hubert", "num_units": 5, "final_dim": 10},
        "wavlm": {"name": "wavlm", "num_units": 5, "final_dim": 10},
        "data2vec": {"name": "data2vec", "top_layers": 2},
        "ctc": {"name": "ctc", "vocab_size": len(LETTERS), "word_boundary": LETTERS.boundary},
        "speaker": {"name": "speaker", "speakers": SPEAKERS, "embedding_dim": 6},
    }[name]


def our_checkpoint(
    folder: Path, family: str, size: str, *, name: str = "", seed: int = 5, numbers: dict | None = None, **data
) -> Objective:
    """Saves random weights in `folder`, of objective `name` (the family's own by default) with these `numbers`."""
    section = objective_section(name or family) | (numbers or {})
    plain = {"name": "noise", "data": data, "encoder": encoder_section(family, size), "objective": section}
    config = parse(Config, plain, source="test")
    with talkative():
        objective = build_objective(config).eval()
    torch.manual_seed(seed)
    shake(objective)
    for name, statistics in objective.named_buffers():
        if name.startswith("pooled_norm."):
            statistics += torch.rand_like(statistics)
    folder.mkdir(parents=True)
    save_model(objective, config, folder, tokenizer=LETTERS if section["name"] == "ctc" else None)
    return objective


def their_model(family: str, size: str, kind: str = "Model", **more):
    """A random model of transformers; kind: Model, ForPreTraining, ForCTC."""
    import transformers

    class_ = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "data2vec": "Data2VecAudio"}[family]
    numbers = SIZES[size]
    config: dict = {
        "conv_dim": numbers["dims"],
        "conv_kernel": numbers["kernels"],
        "conv_stride": numbers["strides"],
        "conv_bias": numbers["bias"],
        "hidden_size": numbers["dim"],
        "num_hidden_layers": numbers["layers"],
        "num_attention_heads": numbers["heads"],
        "intermediate_size": 40,
        "num_conv_pos_embedding_groups": 4,
        **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0),
        "layerdrop": 0.0,
    }
    if family == "data2vec":
        config |= {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
    else:
        config |= {"num_conv_pos_embeddings": 8, "feat_extract_norm": numbers["norm"]}
        config["do_stable_layer_norm"] = size == "large"
    if family == "wavlm":
        config |= {"num_buckets": 8, "max_bucket_distance": 16}
    torch.manual_seed(6)
    model = getattr(transformers, class_ + kind)(getattr(transformers, f"{class_}Config")(**config, **more)).eval()
    shake(model)
    return model


def torchaudio_arguments(family: str, size: str, labels: int | None = None) -> dict:
    numbers = SIZES[size]
    arguments = {
        "extractor_mode": f"{numbers['norm']}_norm",
        "extractor_conv_layer_config": list(zip(*(numbers[k] for k in ("dims", "kernels", "strides")), strict=True)),
        "extractor_conv_bias": numbers["bias"],
        "encoder_embed_dim": numbers["dim"],
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": numbers["layers"],
        "encoder_num_heads": numbers["heads"],
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 40,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": size == "large",
        "encoder_layer_drop": 0.0,
        "aux_num_out": labels,
    }
    return arguments | ({"encoder_num_buckets": 8, "encoder_max_distance": 16} if family == "wavlm" else {})


def with_layers(blocks, forward):
    """Runs `forward` and returns its result, what entered the first block, and what left each of them."""
    layers: list[Tensor] = []
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: layers.append(args[0]))]
    hooks += [
        block.register_forward_hook(lambda m, a, out: layers.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    result = forward()
    for hook in hooks:
        hook.remove()
    return result, layers


def noise(*lengths: int) -> tuple[Tensor, Tensor]:
    """Waveforms, zero behind each end, and where they are present."""
    torch.manual_seed(7)
    present = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(present.shape) * present, present


@torch.no_grad()
def assert_same_layers(encoder: Encoder, blocks, forward, waveforms: Tensor) -> None:
    """Every layer and the output of ours are those of theirs; forward: waveforms -> their last hidden state."""
    hidden, layers = with_layers(blocks, lambda: forward(waveforms.clone()))
    output = encoder(waveforms)
    assert len(layers) == len(output.layers)
    for mine, theirs in zip(output.layers, layers, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    torch.testing.assert_close(output.hidden, hidden, **CLOSE)


@torch.no_grad()
def assert_padding_is_unheard(encoder: Encoder) -> None:
    """Ours batched = ours one by one."""
    waveforms, present = noise(4000, 2500)
    lengths = present.sum(1)
    together = encoder(waveforms, lengths)
    for i, length in enumerate(lengths):
        alone = encoder(waveforms[i : i + 1, :length]).hidden[0]
        torch.testing.assert_close(together.hidden[i, : len(alone)], alone, **CLOSE)


def assert_same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different
