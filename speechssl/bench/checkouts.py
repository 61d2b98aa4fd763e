"""Toolkits that no package index has in a state that installs: imported from checkouts under $PEERS_DIR.

    git clone https://github.com/facebookresearch/fairseq        # pip install omegaconf hydra-core bitarray sacrebleu
    git clone https://github.com/facebookresearch/CPC_audio      # pip install progressbar2
    git clone https://github.com/mxmpl/minimal_hubert            # and https://github.com/facebookresearch/spidr:
                                                                 # pip install polars torchcodec; Python 3.12

Nothing of them is needed for anything but to be timed beside ours.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from speechssl.bench.peers import check_known
from speechssl.bench.step import Candidate, Case, waveforms
from speechssl.build import build_objective
from speechssl.errors import UserError

CPC_KERNELS, CPC_STRIDES = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2)  # CPC_audio has no others


def _add_path(folder: str) -> None:
    """Puts a checkout's folder before everything that is installed. Raises UserError."""
    peers = os.environ.get("PEERS_DIR", "")
    path = Path(peers, folder)
    if not peers or not path.is_dir():
        raise UserError(f"there is no {folder} under PEERS_DIR ('{peers}'); see speechssl/bench/checkouts.py.")
    sys.path.insert(0, str(path))


@contextmanager
def _hashable_dataclasses(package: str) -> Iterator[None]:
    """Lets a package use instances of its own dataclasses as defaults, which Python forbids since 3.11."""
    original: Any = dataclasses.dataclass

    def dataclass(cls=None, /, **options):
        def make(one):
            own = one.__module__.partition(".")[0] == package and not options.get("frozen")
            return original(one, **options | ({"unsafe_hash": True} if own else {}))

        return make if cls is None else make(cls)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


def fairseq(case: Case, device: str) -> Candidate:
    """Wav2Vec2Model with the loss of its criterion.

    Raises UserError for a configuration that it cannot express, and without its checkout.
    """
    objective = build_objective(case.resolved())
    check_known(objective, "fairseq", ("wav2vec2",))
    _add_path("fairseq")
    with _hashable_dataclasses("fairseq"):
        module = importlib.import_module("fairseq.models.wav2vec.wav2vec2")
    numbers, context = objective.config, objective.encoder.config
    features: Any = context.feature_encoder
    body: Any = context.context
    layers = list(zip(features.dims, features.kernels, features.strides, strict=True))
    config = module.Wav2Vec2Config(
        extractor_mode="default" if features.norm == "group" else "layer_norm",
        conv_feature_layers=str(layers),
        conv_bias=features.bias,
        encoder_layers=body.num_layers,
        encoder_embed_dim=body.dim,
        encoder_ffn_embed_dim=body.ffn_dim,
        encoder_attention_heads=body.num_heads,
        layer_norm_first=body.norm_first,
        dropout=body.dropout,
        attention_dropout=body.attention_dropout,
        activation_dropout=body.activation_dropout,
        encoder_layerdrop=0.0,
        dropout_input=context.dropout,
        dropout_features=numbers.quantizer_dropout,
        final_dim=numbers.final_dim,
        quantize_targets=True,
        latent_vars=numbers.codebook_size,
        latent_groups=numbers.num_codebooks,
        latent_dim=numbers.code_dim,
        num_negatives=numbers.num_negatives,
        mask_prob=numbers.mask_start_prob * numbers.mask_length,
        mask_length=numbers.mask_length,
        conv_pos=body.position_kernel,
        conv_pos_groups=body.position_groups,
        feature_grad_mult=numbers.feature_gradient,
    )
    model = module.Wav2Vec2Model(config).to(device)
    sound, lengths = waveforms(case)
    padding = torch.arange(sound.shape[1]) >= lengths[:, None]
    padding_on_device = padding.to(device) if padding.any() else None
    sound = sound.to(device)

    def loss() -> Tensor:
        output = model(sound, padding_mask=padding_on_device)
        logits, target = model.get_logits(output).float(), model.get_targets(None, output)
        diversity, penalty = model.get_extra_losses(output)[:2]
        extra = numbers.diversity_weight * diversity + numbers.feature_penalty * penalty
        return cross_entropy(logits, target) + extra

    return Candidate(model, loss, {"convolutions": model.feature_extractor, "context": model.encoder})


def cpc_audio(case: Case, device: str) -> Candidate:
    """CPCModel and its criterion.

    Raises UserError for a configuration that it cannot express, and without its checkout.
    """
    objective = build_objective(case.resolved())
    numbers, context = objective.config, objective.encoder.config
    features: Any = context.feature_encoder
    body: Any = context.context
    known = numbers.name == "cpc" and features.name == "waveform" and body.name == "recurrent"
    if not known or (tuple(features.kernels), tuple(features.strides)) != (CPC_KERNELS, CPC_STRIDES):
        raise UserError("CPC_audio is compared on cpc presets with a recurrent context and its own convolutions.")
    _add_path("CPC_audio")
    _add_path("CPC_audio/cpc")  # where its criterion looks for a module `transformers`
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        del sys.modules[name]
    criteria, models = (importlib.import_module(f"cpc.{name}") for name in ("criterion.criterion", "model"))
    sound, lengths = waveforms(case)
    frames = int(lengths[0]) // objective.encoder.hop
    encoder = models.CPCEncoder(features.dims[0], "layerNorm")
    recurrent = models.CPCAR(features.dims[-1], body.dim, False, body.num_layers, mode=body.kind.upper())
    model = models.CPCModel(encoder, recurrent)
    criterion = criteria.CPCUnsupersivedCriterion(
        numbers.num_steps,
        body.dim,
        features.dims[-1],
        numbers.num_negatives,
        rnnMode="transformer" if numbers.heads == "transformer" else "none",
        dropout=False,
        sizeInputSeq=frames,
    )
    both = torch.nn.ModuleList([model, criterion]).to(device)
    sound, speakers = sound[:, None].to(device), torch.zeros(len(sound), dtype=torch.long, device=device)

    def loss() -> Tensor:
        context, latents, labels = model(sound, speakers)
        return criterion(context, latents, labels)[0].sum()

    return Candidate(both, loss, {"convolutions": model.gEncoder, "context": model.gAR})


def minimal_hubert(case: Case, device: str) -> Candidate:
    """HuBERTPretrain, with the masks of its collator.

    Raises UserError for a configuration that it cannot express, and without its checkouts.
    """
    objective = build_objective(case.resolved())
    check_known(objective, "minimal_hubert", ("hubert",))
    _add_path("spidr/src")
    _add_path("minimal_hubert/src")
    names = ("minimal_hubert.model", "minimal_hubert.config", "spidr.data.masks")
    models, configs, masks = (importlib.import_module(name) for name in names)
    numbers, context = objective.config, objective.encoder.config
    features: Any = context.feature_encoder
    body: Any = context.context
    config = configs.HuBERTConfig(
        "base",
        f"{features.norm}_norm",
        body.dim,
        body.num_layers,
        body.num_heads,
        body.ffn_dim,
        body.norm_first,
        numbers.final_dim,
        context.dropout,
        body.attention_dropout,
        body.activation_dropout,
        body.dropout,
        0.0,
    )
    configs.HuBERTConfig.from_size = classmethod(lambda cls, size: config)
    layers = list(zip(features.dims, features.kernels, features.strides, strict=True))
    models.DEFAULT_CONV_LAYER_CONFIG = layers  # type: ignore[attr-defined]
    model = models.HuBERTPretrain(numbers.num_units).to(device)
    sound, lengths = waveforms(case)
    frames = objective.encoder.frame_lengths(lengths)
    shape = (len(lengths), int(frames.max()))
    padding = torch.arange(shape[1]) >= frames[:, None]
    attended = (~padding)[:, None, None].expand(-1, 1, shape[1], -1).to(device) if padding.any() else None
    units, sound = torch.randint(0, numbers.num_units, shape, device=device), sound.to(device)
    probability, length = numbers.mask_start_prob * numbers.mask_length, numbers.mask_length

    def loss() -> Tensor:
        mask = masks.compute_mask_indices(
            shape,
            padding if padding.any() else None,
            probability,
            length,
            "static",
            0.0,
            2,
            1,
            no_overlap=False,
            generator=None,
        ).to(device)
        return model(sound, units, mask=mask, attention_mask=attended)[0].sum() / mask.sum()

    return Candidate(model, loss, {"convolutions": model.feature_extractor, "context": model.encoder})
