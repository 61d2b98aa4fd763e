"""Encoders and batches small enough for a test. One frame is 80 samples (log-mel: 640)."""

import torch

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import LogMelConfig, WaveformConfig
from speechssl.nn.recurrent import RecurrentConfig
from speechssl.nn.sinusoidal import SinusoidalConfig
from speechssl.nn.transformer import TransformerConfig

STACK = {"dims": (16, 16, 16), "kernels": (10, 4, 4), "strides": (5, 4, 4)}


def tiny_transformer(**numbers) -> TransformerConfig:
    numbers = {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0} | numbers
    sizes = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "position_kernel": 8, "position_groups": 4}
    return TransformerConfig(**(sizes | numbers))


def tiny_encoder(kind: str = "group", dropout: float = 0.0, **numbers) -> Encoder:
    """kind: "group" or "layer" (norm of the convolutions), "logmel", "patches" (of it), or "recurrent" (CPC's)."""
    if kind == "recurrent":
        return Encoder(
            EncoderConfig(
                feature_encoder=WaveformConfig(**STACK, bias=True, norm="none"),
                context=RecurrentConfig(dim=24, dropout=dropout, **numbers),
                latent_norm=False,
                project=False,
                dropout=dropout,
            )
        )
    if kind == "patches":
        patches = LogMelConfig(num_bins=20, dims=(16,), kernels=(4,), strides=(4,))
        context = SinusoidalConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=48, dropout=dropout)
        return Encoder(EncoderConfig(feature_encoder=patches, context=context, dropout=dropout))
    if kind == "logmel":
        features = LogMelConfig(num_bins=20, dims=(16, 16))
    else:
        features = WaveformConfig(**STACK, bias=kind == "layer", norm=kind)
    context = tiny_transformer(norm_first=kind == "layer", dropout=dropout, **numbers)
    return Encoder(EncoderConfig(feature_encoder=features, context=context, dropout=dropout))


def tiny_batch(*lengths: int, tokens: list[list[int]] | None = None, speakers=None, size: int = 0) -> Batch:
    """Noise of these lengths in samples; size: samples of the padded batch, at least the longest."""
    longest = max(*lengths, size, 1)
    waveforms = torch.zeros(len(lengths), longest)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = torch.randn(length, generator=generator)
    numbers: dict = {}
    if tokens is not None:
        most = max(len(ids) for ids in tokens)
        numbers["tokens"] = torch.tensor([ids + [0] * (most - len(ids)) for ids in tokens])
        numbers["token_lengths"] = torch.tensor([len(ids) for ids in tokens])
    if speakers is not None:
        numbers["speakers"] = torch.tensor(speakers)
    return Batch(
        ids=tuple(f"utterance-{i}" for i in range(len(lengths))),
        waveforms=waveforms,
        lengths=torch.tensor(lengths),
        padded=min(lengths) < longest,
        **numbers,
    )


def lengthen(batch: Batch, samples: int) -> Batch:
    """The same utterances with more padding."""
    return Batch(
        ids=batch.ids,
        waveforms=torch.nn.functional.pad(batch.waveforms, (0, samples)),
        lengths=batch.lengths,
        tokens=batch.tokens,
        token_lengths=batch.token_lengths,
        speakers=batch.speakers,
    )
