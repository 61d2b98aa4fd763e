"""Feature encoders against torch's and torchaudio's own layers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parity import shake
from tiny import STACK, tiny_encoder
from torch import nn

from speechssl.nn.frontend import LogMelConfig, LogMelEncoder, WaveformConfig, WaveformEncoder
from speechssl.nn.norms import channel_norm

SMALL_MEL = LogMelConfig(num_bins=20, dims=(8, 8))


def by_torch(layer, x, norm):
    """One ConvLayer as torch's modules compute it; x: (B, C, T)."""
    y = F.conv1d(x, layer.weight, layer.bias, stride=layer.stride)
    if norm == "group":
        y = F.group_norm(y, y.shape[1], layer.norm_weight, layer.norm_bias)
    elif norm == "layer":
        y = F.layer_norm(y.transpose(1, 2), y.shape[1:2], layer.norm_weight, layer.norm_bias).transpose(1, 2)
    return F.gelu(y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_convolutions_are_torchs(norm, bias):
    encoder = WaveformEncoder(WaveformConfig(**STACK, norm=norm, bias=bias))
    shake(encoder)
    waveforms = torch.randn(2, 1000)
    expected = waveforms[:, None]
    for i, layer in enumerate(encoder.convolutions.layers):
        expected = by_torch(layer, expected, norm if norm == "layer" or i == 0 else "none")
    latents, lengths = encoder(waveforms)
    assert lengths is None
    torch.testing.assert_close(latents, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert [name for name, _ in encoder.named_parameters() if name.endswith(".bias")] == [
        f"convolutions.layers.{i}.bias" for i in range(3) if bias
    ]


def test_the_first_wav2vec_is_torchs():
    """One norm over channels and time behind each convolution, ReLU, then the logarithm (Schneider et al. 2019)."""
    config = WaveformConfig(**STACK, norm="utterance", activation="relu", compression="log")
    encoder = WaveformEncoder(config)
    shake(encoder)
    waveforms = torch.randn(2, 1000)
    x = waveforms[:, None]
    for layer in encoder.convolutions.layers:
        x = F.conv1d(x, layer.weight, stride=layer.stride)
        x = F.relu(F.group_norm(x, 1, layer.norm_weight, layer.norm_bias))
    latents, _ = encoder(waveforms)
    torch.testing.assert_close(latents, (1 + x.abs()).log().transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert latents.min() >= 0


def test_compression_stays_wide_under_autocast():
    encoder = WaveformEncoder(WaveformConfig(**STACK, norm="none", compression="log"))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(torch.randn(2, 1000))[0].dtype == torch.float32


def test_log_mel_is_torchaudios():
    transforms = pytest.importorskip("torchaudio.transforms")
    waveforms = torch.randn(2, 6000)
    mel = transforms.MelSpectrogram(16_000, n_fft=400, win_length=400, hop_length=160, n_mels=80, center=False)
    expected = (mel(waveforms) + 1e-6).log()
    expected = F.instance_norm(expected).transpose(1, 2)  # per utterance and bin, over time
    ours, lengths = LogMelEncoder(LogMelConfig()).log_mel(waveforms)
    assert lengths is None
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_fixed_normalisation_keeps_the_level_and_knows_no_neighbours():
    encoder = LogMelEncoder(LogMelConfig(normalize="fixed"))
    waveforms = torch.randn(1, 6000)
    mel, _ = encoder.log_mel(waveforms)
    louder, _ = encoder.log_mel(10 * waveforms)
    torch.testing.assert_close(louder - mel, torch.full_like(mel, math.log(100) / 4.8), atol=1e-3, rtol=0)
    first, _ = encoder.log_mel(waveforms[:, :3000])
    torch.testing.assert_close(first, mel[:, : first.shape[1]])


@pytest.mark.parametrize("normalize", ["utterance", "fixed"])
def test_log_mel_of_silence_is_finite(normalize):
    latents, _ = LogMelEncoder(replace(SMALL_MEL, normalize=normalize))(torch.zeros(1, 4000))
    assert latents.isfinite().all()


@pytest.mark.parametrize("make", [lambda: tiny_encoder("layer").feature_encoder, lambda: LogMelEncoder(SMALL_MEL)])
def test_frames_are_as_many_as_promised(make):
    encoder = make()
    field, hop = encoder.receptive_field, encoder.hop
    for samples in (field, field + 1, field + hop - 1, field + hop, 5000):
        frames = encoder(torch.randn(1, samples))[0].shape[1]
        assert frames == encoder.frame_lengths(samples) == (samples - field) // hop + 1
    assert encoder.frame_lengths(torch.tensor([field - 1, 5000])).tolist() == [0, encoder.frame_lengths(5000)]


@pytest.mark.parametrize("kind", ["group", "layer", "utterance", "none", "logmel", "fixed logmel"])
def test_what_lies_behind_the_end_does_not_matter(kind):
    """Not even noise there: a frame exists only where its whole receptive field is inside the utterance."""
    if "logmel" in kind:
        encoder = LogMelEncoder(replace(SMALL_MEL, normalize="fixed" if kind == "fixed logmel" else "utterance"))
    else:
        encoder = WaveformEncoder(WaveformConfig(**STACK, norm=kind))
    shake(encoder)
    lengths = torch.tensor([6000, 4321, 3000])
    waveforms = torch.randn(3, 6000)
    latents, frames = encoder(waveforms, lengths)
    assert frames.tolist() == encoder.frame_lengths(lengths).tolist()
    for i, length in enumerate(lengths):
        alone, _ = encoder(waveforms[i : i + 1, :length])
        torch.testing.assert_close(latents[i : i + 1, : frames[i]], alone, atol=1e-5, rtol=0)


def test_channel_norm():
    x = torch.randn(2, 9, 4) * 3 + 1
    weight, bias = torch.randn(4), torch.randn(4)
    expected = nn.functional.group_norm(x.transpose(1, 2), 4, weight, bias).transpose(1, 2)
    torch.testing.assert_close(channel_norm(x, None, weight, bias), expected)
    lengths = torch.tensor([9, 5])
    normed = channel_norm(x, lengths, weight, bias)
    torch.testing.assert_close(normed[0], expected[0])
    torch.testing.assert_close(normed[1:, :5], channel_norm(x[1:, :5], None, weight, bias))


def test_channel_norm_of_nothing_is_finite():
    x = torch.randn(2, 9, 4, requires_grad=True)
    y = channel_norm(x, torch.tensor([9, 0]), torch.ones(4), torch.zeros(4))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="same number"):
        WaveformConfig(dims=(8, 8), kernels=(3,), strides=(2, 2))
    with pytest.raises(ValueError, match="same number"):
        LogMelConfig(dims=(8,))
