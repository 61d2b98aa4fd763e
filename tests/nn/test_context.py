"""Context networks against torch's own modules, and LayerDrop."""

import pytest
import torch
import torch.nn.functional as F
from parity import shake
from tiny import tiny_transformer
from torch import nn

from speechssl.build import seed_everything
from speechssl.nn.attention import attend
from speechssl.nn.lengths import padding_mask
from speechssl.nn.recurrent import Recurrent, RecurrentConfig
from speechssl.nn.transformer import Attention, Block, PositionalConvolution, Transformer, TransformerConfig


@pytest.mark.parametrize("kernel", [5, 8])
def test_positions_are_a_weight_normed_convolution(kernel):
    ours = PositionalConvolution(16, kernel, groups=4)
    shake(ours)
    conv = nn.Conv1d(16, 16, kernel, padding=kernel // 2, groups=4)
    conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
    weight = conv.parametrizations.weight
    with torch.no_grad():
        weight.original0.copy_(ours.weight_g)
        weight.original1.copy_(ours.weight_v)
        conv.bias.copy_(ours.bias)
    x = torch.randn(2, 11, 16)
    expected = torch.nn.functional.gelu(conv(x.transpose(1, 2))[:, :, :11]).transpose(1, 2)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal):
    ours = Attention(16, num_heads=4, dropout=0.0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    shake(ours)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(3, 7, 16)
    if causal:
        mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
        torch.testing.assert_close(ours(x, None, causal=True), theirs(x, x, x, attn_mask=mask)[0])
        return
    torch.testing.assert_close(ours(x, None), theirs(x, x, x)[0])
    padding = padding_mask(torch.tensor([7, 3, 1]), 7)
    expected = theirs(x, x, x, key_padding_mask=padding)[0]
    torch.testing.assert_close(ours(x, ~padding[:, None, None]), expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_block_is_torchs_encoder_layer(norm_first):
    ours = Block(tiny_transformer(norm_first=norm_first))
    theirs = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    shake(ours)
    names = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj",
        "attention_norm": "norm1",
        "ffn_in": "linear1",
        "ffn_out": "linear2",
        "ffn_norm": "norm2",
    }
    state = {}
    for name, tensor in ours.state_dict().items():
        for mine, torchs in names.items():
            name = name.replace(mine, torchs)
        state[name] = tensor
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_causal_block_does_not_see_the_future():
    block = Block(tiny_transformer(), causal=True).eval()
    x = torch.randn(1, 9, 32)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = block(x), block(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_have_one_meaning(norm_first):
    """layers[i] leaves block i; stopping early gives the same layers, and the last of them as `hidden`."""
    context = Transformer(tiny_transformer(norm_first=norm_first, num_layers=3), 32).eval()
    shake(context)
    x = torch.randn(2, 9, 32)
    hidden, layers = context(x)
    assert len(layers) == 4
    torch.testing.assert_close(layers[2], context.blocks[1](layers[1]))
    torch.testing.assert_close(hidden, context.norm(layers[3]) if norm_first else layers[3])
    for count in range(3):
        early, some = context(x, num_layers=count)
        assert len(some) == count + 1
        torch.testing.assert_close(some, layers[: count + 1])
        torch.testing.assert_close(early, layers[count])


def test_a_transformer_reads_its_own_width():
    with pytest.raises(ValueError, match=r"set encoder\.project"):
        Transformer(tiny_transformer(), 16)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        TransformerConfig(dim=30, num_heads=4)


# ------------------------------------------------------------------------------------------------------------ recurrent


@pytest.mark.parametrize(("kind", "module"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_is_torchs(kind, module):
    ours = Recurrent(RecurrentConfig(kind=kind, dim=12, num_layers=2), 8)
    theirs = module(8, 12, num_layers=2, batch_first=True)
    state = {
        f"{name[:-1]}{i}": tensor for i, block in enumerate(ours.blocks) for name, tensor in block.state_dict().items()
    }
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, 8)
    hidden, layers = ours(x)
    torch.testing.assert_close(hidden, theirs(x)[0])
    assert [layer.shape[-1] for layer in layers] == [8, 12, 12]
    torch.testing.assert_close(ours(x, num_layers=1)[0], layers[1])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_does_not_see_the_future(kind):
    context = Recurrent(RecurrentConfig(kind=kind, dim=12), 8)
    x = torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(context(x)[0][:, :5], context(changed)[0][:, :5])


def test_recurrent_without_layers_keeps_its_input():
    context = Recurrent(RecurrentConfig(num_layers=0), 8)
    x = torch.randn(1, 9, 8)
    assert context.dim == 8
    assert context(x)[0] is x


# ------------------------------------------------------------------------------------------------------------ LayerDrop


@pytest.fixture
def dropping():
    return Transformer(tiny_transformer(layer_drop=0.4, num_layers=4), 32)


def kept(context: Transformer, frames: int = 5) -> list[bool]:
    """Which blocks run in one forward pass over random input."""
    ran = [False] * len(context.blocks)
    hooks = [
        block.register_forward_hook(lambda *_, i=i: ran.__setitem__(i, True)) for i, block in enumerate(context.blocks)
    ]
    context(torch.randn(1, frames, 32))
    for hook in hooks:
        hook.remove()
    return ran


def test_the_same_layers_drop_in_every_micro_batch_of_an_update(dropping):
    chosen = []
    for step in range(20):
        seed_everything(7, step, 0)
        chosen.append(kept(dropping))
        for number in (1, 5):
            seed_everything(7, step, number)
            torch.rand(3)  # whatever a micro-batch draws from torch's generator
            assert kept(dropping, frames=9) == chosen[-1]
    assert len({tuple(c) for c in chosen}) > 3, "different updates drop different layers"


def test_layers_drop_as_often_as_configured(dropping):
    count = 0
    for step in range(150):
        seed_everything(7, step, 0)
        count += kept(dropping, frames=2).count(False)
    assert abs(count / 600 - 0.4) < 0.06  # 3 standard deviations


def test_all_layers_run_in_evaluation(dropping):
    dropping.eval()
    assert all(all(kept(dropping)) for _ in range(5))


def test_dropped_layers_keep_a_zero_gradient(dropping):
    for step in range(10):
        dropping.zero_grad()
        seed_everything(7, step, 0)
        ran = kept(dropping)
        seed_everything(7, step, 0)
        hidden, layers = dropping(torch.randn(1, 5, 32))
        hidden.square().sum().backward()
        assert len(layers) == 5, "a dropped layer hands its input on"
        for block, run in zip(dropping.blocks, ran, strict=True):
            gradients = [p.grad for p in block.parameters()]
            assert all(g is not None for g in gradients), "DDP waits for every parameter"
            assert any(g.any() for g in gradients) == run


@pytest.mark.parametrize(("causal", "padded"), [(False, False), (False, True), (True, False)])
def test_attention_in_bf16_on_a_cpu_equals_the_fused_kernel(causal, padded):
    heads = torch.randn(2, 37, 3, 4, 16).bfloat16()
    keys = (torch.arange(37) < torch.tensor([37, 20])[:, None])[:, None, None] if padded else None
    ours = attend(heads, keys, 0.0, causal)
    theirs = attend(heads.float(), keys, 0.0, causal)
    assert (ours.float() - theirs).abs().max() < 0.03


# ---------------------------------------------------------------------------------------- what the backward pass keeps


def test_the_feed_forward_made_twice_is_the_formula():
    torch.manual_seed(1)
    block = Block(tiny_transformer())
    x = torch.randn(2, 7, 32, requires_grad=True)
    inputs = [x, *block.ffn_in.parameters(), *block.ffn_out.parameters()]
    made, expected = block._ffn(x), F.linear(F.gelu(block.ffn_in(x)), *block.ffn_out.parameters())
    torch.testing.assert_close(made, expected)
    gradient = torch.randn_like(made)
    ours, theirs = (torch.autograd.grad(y, inputs, gradient) for y in (made, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [1, 2, 3, 9])
@pytest.mark.parametrize("lengths", [None, [9, 4, 1]])
@pytest.mark.parametrize("relative", [0, 16])
def test_checkpointing_changes_no_bit(every, lengths, relative):
    """Hidden, layers and every gradient, with dropout and LayerDrop, padded or not; and nothing more is kept."""

    def run(checkpoint_every: int):
        torch.manual_seed(2)
        numbers = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.1, "layer_drop": 0.3}
        numbers |= {"num_layers": 5, "relative_buckets": relative, "checkpoint_every": checkpoint_every}
        context = Transformer(tiny_transformer(**numbers), 32).train()
        x = torch.randn(3, 9, 32, requires_grad=True)
        seed_everything(7, 3, 0)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            hidden, layers = context(x, None if lengths is None else torch.tensor(lengths))
        size = sum({t.data_ptr(): t.numel() for t in kept}.values())
        (hidden.square().sum() + layers[2].sum()).backward()
        return size, [hidden, *layers, x.grad, *(p.grad for p in context.parameters())]

    (plain_size, plain), (size, checkpointed) = run(0), run(every)
    assert size < plain_size
    for a, b in zip(plain, checkpointed, strict=True):
        assert a.equal(b)
