"""What APC adds to the recurrent context: residual connections, and a quantizer between layers (VQ-APC)."""

import pytest
import torch
from parity import shake

from speechssl.nn.recurrent import Recurrent, RecurrentConfig


def small(dim_in: int = 6, **numbers) -> Recurrent:
    context = Recurrent(RecurrentConfig(**({"dim": 8, "num_layers": 3, "codebook_size": 5} | numbers)), dim_in)
    shake(context)
    return context.eval()


@pytest.mark.parametrize(("dim_in", "added"), [(6, [False, True, True]), (8, [True, True, True])])
def test_residual_where_widths_agree(dim_in, added):
    context, x = small(dim_in, residual=True), torch.randn(2, 9, dim_in)
    hidden, layers = context(x)
    for i, block in enumerate(context.blocks):
        y = block(layers[i])[0]
        torch.testing.assert_close(layers[i + 1], layers[i] + y if added[i] else y)
    assert hidden is layers[3]
    torch.testing.assert_close(small(dim_in)(x)[1][0], x)


def test_dropout_is_of_what_leaves_every_layer_but_the_last():
    context, x = small(dropout=0.999).train(), torch.randn(2, 9, 6)
    layers = context(x)[1]
    assert (layers[1] == 0).float().mean() > 0.9
    assert (layers[2] == 0).float().mean() > 0.9
    assert (layers[3] != 0).all()


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_a_quantizer_between_layers(after, residual):
    """The layer keeps what it gave; what goes on is the vector of its most probable code."""
    context, x = small(quantize_after=after, residual=residual, num_codebooks=2), torch.randn(2, 9, 6)
    hidden, layers = context(x)
    assert len(layers) == 4
    seen = list(layers)
    logits = context.quantizer.logits(layers[after]).view(2, 9, 2, 5)
    books, codes = context.quantizer.codebooks, logits.argmax(-1)
    seen[after] = torch.cat([books[g, codes[..., g]] for g in range(2)], -1)
    for i, block in enumerate(context.blocks):
        y = block(seen[i])[0]
        torch.testing.assert_close(layers[i + 1], y + seen[i] if residual and i else y)
    torch.testing.assert_close(hidden, seen[3])
    for count in range(3):  # stopping early gives what a layer itself gives
        early, some = context(x, num_layers=count)
        torch.testing.assert_close(some, layers[: count + 1])
        torch.testing.assert_close(early, layers[count])


def test_gradient_reaches_the_layers_below_the_quantizer():
    context = small(quantize_after=2).train()
    context(torch.randn(2, 9, 6))[0].square().sum().backward()
    assert all(p.grad.any() for p in context.parameters())


def test_temperature_is_configured():
    assert small(quantize_after=1, quantizer_temperature=0.7).quantizer.temperature == 0.7
    assert small().quantizer is None


@pytest.mark.parametrize("quantize_after", [0, 2])
def test_padding_and_the_future_change_nothing(quantize_after):
    context, x = small(quantize_after=quantize_after, residual=True), torch.randn(1, 9, 6)
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(context(x)[0][:, :5], context(changed)[0][:, :5])
    torch.testing.assert_close(context(x)[0][:, :5], context(x[:, :5])[0])


def test_a_quantizer_needs_a_layer():
    for numbers in ({"quantize_after": 4}, {"quantize_after": -1}, {"quantize_after": 1, "num_codebooks": 3}):
        with pytest.raises(ValueError, match="must be"):
            RecurrentConfig(dim=8, num_layers=3, **numbers)
