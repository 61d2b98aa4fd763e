"""Utterance mixing, against loops over WavLM's algorithm 1; and the laws of its draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn.mixing import Mixture, coloured_noise, draw_mixture, mix

NUMBERS = {"prob": 0.5, "noise_prob": 0.5, "speech_ratio": (-5.0, 5.0), "noise_ratio": (-5.0, 20.0)}


def padded(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = torch.randn(len(lengths), max(lengths))
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    return waveforms, torch.tensor(lengths)


def test_mix_by_loops():
    waveforms, lengths = padded(50, 40, 30)
    noise = torch.randn(3, 50)
    mixture = Mixture(
        mixed=torch.tensor([True, True, False]),
        noise=torch.tensor([False, True, False]),
        other=torch.tensor([2, 0, 1]),
        ratio=torch.tensor([3.0, 10.0, 0.0]),
        length=torch.tensor([20, 15, 10]),
        start=torch.tensor([30, 5, 0]),
        other_start=torch.tensor([4, 25, 0]),
    )
    result = mix(waveforms, lengths, mixture, noise)
    expected = waveforms.clone()
    for i in range(2):
        other = noise[i, : lengths[i]] if mixture.noise[i] else waveforms[mixture.other[i], : lengths[mixture.other[i]]]
        own_energy = waveforms[i, : lengths[i]].square().mean()
        scale = (own_energy / (10 ** (mixture.ratio[i] / 10) * other.square().mean())).sqrt()
        for sample in range(mixture.length[i]):
            expected[i, mixture.start[i] + sample] += scale * other[mixture.other_start[i] + sample]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert result[2].equal(waveforms[2])


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 1000))
def test_draws_stay_inside(lengths, seed):
    torch.manual_seed(seed)
    lengths = torch.tensor(lengths)
    mixture = draw_mixture(lengths, **NUMBERS)
    source = torch.where(mixture.noise, lengths, lengths[mixture.other])
    assert (mixture.length <= lengths.clamp(min=2) / 2).all()
    assert (mixture.start >= 0).all()
    assert (mixture.start + mixture.length <= lengths).all()
    assert (mixture.other_start + mixture.length <= source).all()
    low = torch.tensor(-5.0)
    high = torch.where(mixture.noise, 20.0, 5.0)
    assert ((mixture.ratio >= low) & (mixture.ratio <= high)).all()
    waveforms = torch.randn(len(lengths), max(int(lengths.max()), 1)) * (
        torch.arange(max(int(lengths.max()), 1)) < lengths[:, None]
    )
    result = mix(waveforms, lengths, mixture, coloured_noise(waveforms.shape[1] + 1, len(lengths), "cpu")[:, :-1])
    assert result.isfinite().all()
    assert not result[torch.arange(waveforms.shape[1]) >= lengths[:, None]].any(), "silence behind each end"
    assert result[~mixture.mixed].equal(waveforms[~mixture.mixed])


def test_shares_and_lengths():
    mixture = draw_mixture(torch.full((4000,), 1000), **(NUMBERS | {"prob": 0.2, "noise_prob": 0.1}))
    assert mixture.mixed.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert mixture.noise.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert mixture.length.float().mean().item() == pytest.approx(250, abs=10)
    assert len(mixture.other.unique()) > 2000


def test_silence_is_mixed_in_without_harm():
    waveforms = torch.zeros(2, 100)
    waveforms[0] = torch.randn(100)
    every = {"prob": 1.0, "noise_prob": 0.0}
    for seed in range(5):
        torch.manual_seed(seed)
        lengths = torch.tensor([100, 100])
        result = mix(waveforms, lengths, draw_mixture(lengths, **(NUMBERS | every)), torch.zeros(2, 100))
        assert result.isfinite().all()
        assert result[1].eq(0).all(), "what has no energy asks for none"


def test_noise_is_of_many_colours():
    noise = coloured_noise(8000, 64, "cpu")
    power = torch.fft.rfft(noise).abs().square()
    tilt = power[:, 1:100].mean(1) / power[:, 2000:].mean(1)  # low over high
    assert noise.shape == (64, 8000)
    assert tilt.min() < 10
    assert tilt.max() > 1000
