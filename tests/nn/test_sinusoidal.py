"""The context with fixed positions: their formula, and that frames may be left out."""

import math

import pytest
import torch
from parity import shake
from tiny import tiny_encoder

from speechssl.nn.sinusoidal import Sinusoidal, SinusoidalConfig, sinusoids


def context(**numbers) -> Sinusoidal:
    sizes = {"dim": 16, "num_layers": 3, "num_heads": 2, "ffn_dim": 24}
    net = Sinusoidal(SinusoidalConfig(**(sizes | numbers)), 16).eval()
    shake(net)
    return net


def test_positions_against_the_formula():
    ours = sinusoids(torch.tensor([[0, 3, 1500]]), 8)
    for place, row in zip((0, 3, 1500), ours[0], strict=True):
        for i in range(4):
            angle = place / 10_000 ** (2 * i / 8)
            assert float(row[i]) == pytest.approx(math.sin(angle), abs=2e-4)
            assert float(row[4 + i]) == pytest.approx(math.cos(angle), abs=2e-4)


@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_layers_have_one_meaning(norm_first):
    net, x = context(norm_first=norm_first), torch.randn(2, 9, 16)
    hidden, layers = net(x)
    assert len(layers) == 4
    torch.testing.assert_close(layers[2], net.blocks[1](layers[1]))
    torch.testing.assert_close(hidden, net.norm(layers[3]) if norm_first else layers[3])
    early, some = net(x, num_layers=1)
    torch.testing.assert_close(some, layers[:2])
    torch.testing.assert_close(early, layers[1])


@torch.no_grad()
def test_frames_may_be_left_out():
    """Alone with their places, some frames give what they would give if nobody attended to the others."""
    net, x = context(), torch.randn(1, 9, 16)
    places = torch.tensor([[0, 2, 3, 7]])
    keys = torch.zeros(9, dtype=torch.bool)
    keys[places[0]] = True
    full = x + sinusoids(torch.arange(9)[None], 16)
    for block in net.blocks:
        full = block(full, keys[None, None, None])
    sparse, _ = net(x[:, places[0]], places=places)
    torch.testing.assert_close(sparse, net.norm(full)[:, places[0]], atol=1e-5, rtol=1e-5)
    moved, _ = net(x[:, places[0]], places=places + 1)
    assert not torch.allclose(moved, sparse, atol=1e-2)


@torch.no_grad()
def test_padding_does_not_matter_and_nothing_is_nan():
    net, x = context(), torch.randn(3, 9, 16)
    output, _ = net(x, torch.tensor([9, 5, 0]))
    torch.testing.assert_close(output[1, :5], net(x[1:2, :5])[0][0], atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, torch.tensor([9, 5, 0]))[0].isfinite().all()


def test_layers_are_dropped_while_training():
    net = context(layer_drop=1.0).train()
    _, layers = net(torch.randn(1, 5, 16))
    assert all(layer.equal(layers[0]) for layer in layers)
    layers[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in net.blocks.parameters())
    _, layers = net.eval()(torch.randn(1, 5, 16))
    assert not layers[1].equal(layers[0])


def test_the_exported_encoder_is_like_any_other():
    encoder = tiny_encoder("patches").eval()
    output = encoder(torch.randn(2, 8000), torch.tensor([8000, 5000]))
    assert output.hidden.shape == (2, encoder.frame_lengths(8000), encoder.dim)
    assert output.lengths.tolist() == [encoder.frame_lengths(8000), encoder.frame_lengths(5000)]
    assert len(output.layers) == encoder.num_layers + 1


def test_sizes_that_cannot_work():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        SinusoidalConfig(dim=30, num_heads=4)
    with pytest.raises(ValueError, match=r"set encoder\.project"):
        Sinusoidal(SinusoidalConfig(dim=16, num_heads=2), 8)
