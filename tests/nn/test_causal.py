"""wav2vec's causal convolutions against torch's own layers."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from parity import shake

from speechssl.nn.causal import CausalBlock, CausalConvolution, CausalConvolutionConfig
from speechssl.nn.context import build_context, is_causal
from speechssl.nn.recurrent import RecurrentConfig
from speechssl.nn.transformer import TransformerConfig


def small(dim_in: int = 8, **numbers) -> CausalConvolution:
    context = CausalConvolution(CausalConvolutionConfig(**({"dim": 8, "kernels": (2, 3, 5)} | numbers)), dim_in)
    shake(context)
    return context.eval()


@pytest.mark.parametrize("dim_in", [8, 6])
def test_a_block_is_torchs(dim_in):
    block = CausalBlock(dim_in, 8, 4, skip_scale=0.5, dropout=0.0)
    shake(block)
    x = torch.randn(2, 11, dim_in)
    padded = F.pad(x.transpose(1, 2), (3, 0), mode="replicate")
    y = F.conv1d(padded, block.convolution.weight, block.convolution.bias)
    y = F.relu(F.group_norm(y, 1, block.norm_weight, block.norm_bias)).transpose(1, 2)
    skip = x if dim_in == 8 else x @ block.skip.weight.T
    torch.testing.assert_close(block(x), (y + skip) * 0.5**0.5)


def test_a_block_of_one_tap_needs_nothing_before():
    block = CausalBlock(8, 8, 1, skip_scale=0.5, dropout=0.0)
    assert block(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_nothing_but_the_norm_sees_the_future():
    context, x = small(), torch.randn(1, 20, 8)
    changed = x.clone()
    changed[:, 12:] += 1
    with mock.patch("speechssl.nn.causal.utterance_norm", lambda y, lengths, weight, bias: y * weight + bias):
        before, after = context(x)[0], context(changed)[0]
        torch.testing.assert_close(before[:, :12], after[:, :12])
        assert (before[:, 12:] != after[:, 12:]).any()


def test_it_sees_so_far_back_and_no_farther():
    context, x = small(), torch.randn(1, 20, 8)
    with mock.patch("speechssl.nn.causal.utterance_norm", lambda y, lengths, weight, bias: y * weight + bias):
        expected = context(x)[0]
        for back, seen in ((7, True), (8, False)):  # kernels 2, 3 and 5: 1 + 2 + 4 frames
            changed = x.clone()
            changed[:, 19 - back] += 1
            assert torch.equal(context(changed)[0][:, 19], expected[:, 19]) != seen


def test_padding_changes_nothing():
    context, x = small(dim_in=6), torch.randn(3, 15, 6)
    lengths = torch.tensor([15, 9, 1])
    hidden, layers = context(x, lengths)
    for i, length in enumerate(lengths):
        alone, alone_layers = context(x[i : i + 1, :length])
        torch.testing.assert_close(hidden[i : i + 1, :length], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers[2][i : i + 1, :length], alone_layers[2], atol=1e-5, rtol=1e-5)
    assert context(x, torch.tensor([15, 0, 3]))[0].isfinite().all()


def test_layers_have_one_meaning():
    context, x = small(), torch.randn(2, 9, 8)
    hidden, layers = context(x)
    assert layers[0] is x
    assert hidden is layers[3]
    for i, block in enumerate(context.blocks):
        torch.testing.assert_close(layers[i + 1], block(layers[i]))
        early, some = context(x, num_layers=i)
        torch.testing.assert_close(some, layers[: i + 1])
        torch.testing.assert_close(early, layers[i])


def test_published_size():
    """12 layers that see 810 ms of audio in frames of 10 ms: 79 frames, and the 30 ms that a frame sees."""
    config = CausalConvolutionConfig()
    assert 1 + sum(kernel - 1 for kernel in config.kernels) == 79
    with torch.device("meta"):
        context = build_context(config, 512)
    assert len(context.blocks) == 12
    assert sum(p.numel() for p in context.parameters()) == 512 * 512 * 90 + 12 * 3 * 512


def test_layers_must_exist():
    for kernels in ((), (2, 0)):
        with pytest.raises(ValueError, match="at least one layer"):
            CausalConvolutionConfig(kernels=kernels)


def test_which_contexts_are_causal():
    assert is_causal(CausalConvolutionConfig())
    assert is_causal(RecurrentConfig())
    assert not is_causal(TransformerConfig())
    assert is_causal(TransformerConfig(causal=True))
