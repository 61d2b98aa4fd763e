"""Tiny encoders of the objectives that predict, rebuild or order: wav2vec, APC, autoencoder, temporal order."""

from tiny import STACK

from speechssl.nn.causal import CausalConvolutionConfig
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import LogMelConfig, WaveformConfig
from speechssl.nn.recurrent import RecurrentConfig

PLAIN = {"latent_norm": False, "project": False}


def wav2vec_encoder(dropout: float = 0.0) -> Encoder:
    """As published, but for its size: one norm over channels and time, ReLU, log compression, causal convolutions."""
    features = WaveformConfig(**STACK, norm="utterance", activation="relu", compression="log")
    context = CausalConvolutionConfig(dim=24, kernels=(2, 3, 4), dropout=dropout)
    return Encoder(EncoderConfig(feature_encoder=features, context=context, dropout=dropout, **PLAIN))


def apc_encoder(dropout: float = 0.0, **context) -> Encoder:
    """Log-mel frames of 400 samples without convolutions, and a residual GRU."""
    features = LogMelConfig(num_bins=8, hop=400, dims=(), kernels=(), strides=())
    numbers = {"dim": 48, "num_layers": 3, "residual": True, "codebook_size": 24} | context
    recurrent = RecurrentConfig(**numbers, dropout=dropout)
    return Encoder(EncoderConfig(feature_encoder=features, context=recurrent, dropout=dropout, **PLAIN))


def plain_encoder(dropout: float = 0.0) -> Encoder:
    """Convolutions without norms and no context: 12 numbers for 8 samples."""
    features = WaveformConfig(dims=(16, 12), kernels=(8, 4), strides=(4, 2), bias=True, norm="none")
    return Encoder(
        EncoderConfig(feature_encoder=features, context=RecurrentConfig(num_layers=0), dropout=dropout, **PLAIN)
    )
