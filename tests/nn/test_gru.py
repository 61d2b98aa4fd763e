"""GRUs by hand against torch's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechssl.nn import steps
from speechssl.nn.gru import grus


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 7), st.data())
def test_states_and_gradients_are_torchs(number, batch, frames, dim_in, dim, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layers = [nn.GRU(dim_in, dim, batch_first=True).double() for _ in range(number)]
    inputs = [torch.randn(batch, frames, dim_in, dtype=torch.double, requires_grad=True) for _ in layers]
    asked = [p for layer in layers for p in layer.parameters()] + inputs
    expected = [layer(x)[0] for layer, x in zip(layers, inputs, strict=True)]
    ours = grus(layers, inputs)
    torch.testing.assert_close(ours, expected)
    wanted = [torch.randn_like(states) for states in expected]
    torch.testing.assert_close(torch.autograd.grad(ours, asked, wanted), torch.autograd.grad(expected, asked, wanted))


def test_nothing_in_nothing_out():
    layer = nn.GRU(3, 4, batch_first=True)
    for shape in ((2, 0, 3), (0, 5, 3)):
        x = torch.zeros(shape, requires_grad=True)
        (states,) = grus([layer], [x])
        assert states.shape == (*shape[:2], 4)
        states.sum().backward()
        assert x.grad.shape == shape


def test_it_is_for_wide_numbers_on_a_cpu(monkeypatch):
    used = []
    monkeypatch.setattr(steps, "grus", lambda layers, inputs: used.append(len(layers)) or grus(layers, inputs))
    layers, x = (nn.GRU(3, 4, batch_first=True), nn.GRU(3, 4, batch_first=True)), torch.randn(2, 5, 3)
    expected = [layer(x)[0] for layer in layers]
    torch.testing.assert_close(steps.recurrent_pair(layers, (x, x)), expected)
    torch.testing.assert_close(steps.recurrent(layers[0], x), expected[0])
    assert used == [2, 1]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = steps.recurrent_pair(layers, (x, x))
    assert used == [2, 1]
    torch.testing.assert_close([states.float() for states in narrow], expected, atol=0.05, rtol=0)
