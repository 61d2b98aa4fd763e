"""The plain ways, of which graphs for other programs are made, against the quick ones."""

import pytest
import torch
from cases import CASES, make
from hypothesis import given
from hypothesis import strategies as st
from parity import shake
from tiny import tiny_batch
from torch import nn

from speechssl.nn.attention import attend
from speechssl.nn.exporting import exporting, plainly
from speechssl.nn.frontend import LogMelConfig, LogMelEncoder
from speechssl.nn.recurrent import RecurrentConfig
from speechssl.nn.steps import _gru_step, _lstm_step

KINDS = {repr(make(name).encoder.config): name for name in reversed(CASES)}.values()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_encoders(name):
    encoder = make(name).encoder.eval()
    if isinstance(encoder.config.context, RecurrentConfig):
        encoder.context.blocks = nn.ModuleList()  # see below
    shake(encoder)
    batch = tiny_batch(8000, 6000, 30, size=9000)
    quick = encoder(batch.waveforms, batch.lengths)
    with plainly():
        plain = encoder(batch.waveforms, batch.lengths)
    assert not exporting()
    assert torch.equal(plain.lengths, quick.lengths)
    for row, count in enumerate(quick.lengths):
        torch.testing.assert_close(plain.hidden[row, :count], quick.hidden[row, :count], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain.latents, quick.latents, atol=1e-4, rtol=1e-4)
    assert plain.hidden.isfinite().all()


@pytest.mark.parametrize(("kind", "step"), [(nn.GRU, _gru_step), (nn.LSTM, _lstm_step)])
@torch.no_grad()
def test_recurrent_steps_are_torchs(kind, step):
    layer = kind(5, 7, batch_first=True)
    x = torch.randn(3, 9, 5)
    state = torch.zeros(3, 7) if kind is nn.GRU else (torch.zeros(3, 7), torch.zeros(3, 7))
    outputs = []
    for frame in x.unbind(1):
        gates = nn.functional.linear(frame, layer.weight_ih_l0, layer.bias_ih_l0)
        state, output = step(state, gates, layer.weight_hh_l0, layer.bias_hh_l0)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(x)[0])


@given(st.sampled_from([64, 100, 400]), st.sampled_from([40, 64, 160]), st.integers(400, 1500))
def test_powers_by_convolution_are_those_of_fourier(window, hop, samples):
    encoder = LogMelEncoder(LogMelConfig(window=window, hop=hop, num_bins=8))
    waveforms = torch.randn(2, samples)
    power = encoder._power(waveforms)
    torch.testing.assert_close(encoder._convolved_power(waveforms), power, atol=1e-4 * float(power.max()), rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_a_bias(causal):
    heads = torch.randn(2, 9, 3, 4, 8)
    bias, keys = torch.randn(2, 4, 9, 9), torch.arange(9)[None, None, None] < torch.tensor([9, 5])[:, None, None, None]
    quick = attend(heads, keys, 0.0, causal, bias)
    with plainly():
        plain = attend(heads, keys, 0.0, causal, bias)
    torch.testing.assert_close(plain, quick)
