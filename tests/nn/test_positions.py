"""Positions: HuBERT's, WavLM's and data2vec's encoders against transformers, causality, and padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import encoder_tensors, shake
from tiny import tiny_encoder, tiny_transformer

from speechssl.nn.attention import attend
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.positions import (
    PositionalConvolution,
    PositionalStack,
    PositionGate,
    RelativePositions,
    same_convolution,
)
from speechssl.nn.transformer import Transformer, TransformerConfig

DIMS, DIM, LAYERS, HEADS, FFN, KERNEL, GROUPS = (32,) * 7, 48, 3, 4, 64, 16, 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BUCKETS, FARTHEST = 20, 30  # few, so that a second of speech reaches the last ones


def their_model(kind: str, norm: str):
    transformers = pytest.importorskip("transformers")
    numbers = {
        "conv_dim": DIMS,
        "feat_extract_norm": norm,
        "conv_bias": norm == "layer",
        "do_stable_layer_norm": norm == "layer",
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FFN,
        "num_conv_pos_embeddings": KERNEL,
        "num_conv_pos_embedding_groups": GROUPS,
    }
    if kind == "wavlm":
        numbers |= {"num_buckets": BUCKETS, "max_bucket_distance": FARTHEST}
    config, model = {
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    }[kind]
    return model(config(**numbers)).eval()


def our_encoder(kind: str, norm: str) -> Encoder:
    relative = {"relative_buckets": BUCKETS, "relative_distance": FARTHEST} if kind == "wavlm" else {}
    context = TransformerConfig(
        dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        ffn_dim=FFN,
        norm_first=norm == "layer",
        position_kernel=KERNEL,
        position_groups=GROUPS,
        **relative,
    )
    features = WaveformConfig(dims=DIMS, norm=norm, bias=norm == "layer")
    return Encoder(EncoderConfig(feature_encoder=features, context=context)).eval()


def entered_and_left(blocks, forward) -> list[torch.Tensor]:
    """What entered the first block, and what left each."""
    layers = []
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: layers.append(args[0]))]
    hooks += [block.register_forward_hook(lambda module, args, out: layers.append(out)) for block in blocks]
    forward()
    for hook in hooks:
        hook.remove()
    return [layer[0] if isinstance(layer, tuple) else layer for layer in layers]


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
@torch.no_grad()
def test_every_layer_is_that_of_transformers(kind, norm):
    theirs, ours = their_model(kind, norm), our_encoder(kind, norm)
    shake(theirs)
    own = ours.state_dict()
    ours.load_state_dict({k: v.view_as(own[k]) for k, v in encoder_tensors(theirs.state_dict()).items()})
    waveforms = torch.randn(2, 16_000)
    expected = entered_and_left(theirs.encoder.layers, lambda: theirs(waveforms.clone()))
    output = ours(waveforms)
    assert output.hidden.shape[1] > FARTHEST, "the last bucket is reached"
    assert len(expected) == len(output.layers) == LAYERS + 1
    for mine, layer in zip(output.layers, expected, strict=True):
        torch.testing.assert_close(mine, layer, **CLOSE)
    torch.testing.assert_close(output.hidden, theirs(waveforms.clone()).last_hidden_state, **CLOSE)


# --------------------------------------------------------------------------------------------- relative position bias


@given(st.sampled_from([4, 16, 20, 64, 320]), st.integers(90, 800))
def test_buckets(num_buckets, farthest):
    """Signs never share one; near distances have one each; buckets grow with distance up to the last."""
    positions = RelativePositions(2, num_buckets, farthest)
    distances = torch.arange(-2 * farthest, 2 * farthest + 1)
    buckets = positions.buckets(distances)
    half = num_buckets // 2
    behind, ahead = buckets[distances <= 0].flip(0), buckets[distances > 0]
    assert (behind < half).all()
    assert ((ahead >= half) & (ahead < num_buckets)).all()
    assert behind[: half // 2].tolist() == list(range(half // 2))
    assert (behind.diff() >= 0).all()
    assert behind[farthest:].eq(half - 1).all()
    assert (ahead - half).equal(behind[1:])


def test_bias_is_a_function_of_the_distance():
    positions = RelativePositions(3, 16, 40)
    bias = positions(9)
    assert bias.shape == (3, 9, 9)
    for query, key in [(0, 0), (2, 7), (8, 1)]:
        expected = positions.embedding.weight[positions.buckets(torch.tensor(key - query))]
        assert bias[:, query, key].equal(expected)


@torch.no_grad()
def test_gate_by_loops():
    """WavLM: g = u (w r - 1) + 2, where u and r are sigmoids of sums of four numbers each; w a number per head."""
    gate = PositionGate(8, num_heads=2)
    shake(gate)
    x, bias = torch.randn(2, 3, 8), torch.randn(2, 3, 3)
    gated = gate(x, bias)
    for utterance in range(2):
        for head in range(2):
            for query in range(3):
                numbers = gate.linear(x[utterance, query, 4 * head : 4 * head + 4])
                update, reset = numbers[:4].sum().sigmoid(), numbers[4:].sum().sigmoid()
                expected = (update * (gate.scale[head] * reset - 1) + 2) * bias[head, query]
                torch.testing.assert_close(gated[utterance, head, query], expected)


@pytest.mark.parametrize("numbers", [{"relative_buckets": 16}, {"relative_buckets": 16, "causal": True}])
def test_bias_in_bf16_on_a_cpu_equals_the_fused_kernel(numbers):
    heads, bias = torch.randn(2, 37, 3, 4, 16).bfloat16(), torch.randn(2, 4, 37, 37)
    keys = (torch.arange(37) < torch.tensor([37, 20])[:, None])[:, None, None]
    causal = numbers.get("causal", False)
    ours = attend(heads, keys, 0.0, causal, bias)
    theirs = attend(heads.float(), keys, 0.0, causal, bias)
    assert (ours.float() - theirs).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_utterance_without_frames_keeps_numbers_finite(dtype):
    """With every key forbidden there is nothing to attend to; the answer is not used, but its gradient must be 0."""
    heads = torch.randn(2, 5, 3, 4, 8).to(dtype).requires_grad_()
    bias = torch.randn(2, 4, 5, 5, requires_grad=True)
    keys = (torch.arange(5) < torch.tensor([5, 0])[:, None])[:, None, None]
    for extra in ((), (bias,)):
        attend(heads, keys, 0.0, False, *extra)[0].float().sum().backward()
        assert heads.grad.isfinite().all()
    assert bias.grad.isfinite().all()


# --------------------------------------------------------------------------------------------- stacked, causal, padded


@torch.no_grad()
def test_stacked_positions_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.Data2VecAudioConfig(
        hidden_size=DIM, num_conv_pos_embeddings=5, conv_pos_kernel_size=19, num_conv_pos_embedding_groups=GROUPS
    )
    from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioPositionalConvEmbedding

    theirs, ours = Data2VecAudioPositionalConvEmbedding(config), PositionalStack(DIM, 19, GROUPS, 5)
    ours.load_state_dict({name.replace("conv.", ""): tensor for name, tensor in theirs.state_dict().items()})
    x = torch.randn(2, 40, DIM)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("kernel", [4, 5])
@torch.no_grad()
def test_stacked_positions_with_an_even_kernel(kernel):
    stack = PositionalStack(8, kernel, 2, 2)
    assert stack(torch.randn(1, 7, 8)).shape == (1, 7, 8)


@pytest.mark.parametrize("numbers", [{}, {"position_layers": 3}, {"relative_buckets": 16}])
@torch.no_grad()
def test_causal_sees_nothing_ahead(numbers):
    context = Transformer(tiny_transformer(causal=True, **numbers), 32).eval()
    shake(context)
    x = torch.randn(1, 12, 32)
    changed = x.clone()
    changed[:, 7:] += 1
    (before, layers), (after, _) = context(x), context(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])
    past = x.clone()
    past[:, 6] += 1
    assert not torch.allclose(context(past)[0][:, 7], before[:, 7]), "it does see what lies behind"
    torch.testing.assert_close(context.blocks[0](layers[0], None, relative(context, 12)), layers[1])


def relative(context: Transformer, frames: int):
    return None if context.relative is None else context.relative(frames)


@pytest.mark.parametrize("kernel", [4, 5])
@torch.no_grad()
def test_causal_convolution_by_loops(kernel):
    convolution = PositionalConvolution(4, kernel, 1, causal=True)
    x = torch.randn(1, 6, 4)
    direction = convolution.weight_v / convolution.weight_v.norm(dim=(0, 1), keepdim=True)
    weight = direction * convolution.weight_g
    for frame in range(6):
        total = convolution.bias.clone()
        for tap in range(kernel):
            if frame - tap >= 0:
                total += weight[:, :, kernel - 1 - tap] @ x[0, frame - tap]
        torch.testing.assert_close(convolution(x)[0, frame], torch.nn.functional.gelu(total))


@pytest.mark.parametrize(
    "numbers",
    [{"position_layers": 3}, {"relative_buckets": 16}, {"causal": True}, {"causal": True, "relative_buckets": 16}],
    ids=["stacked", "relative", "causal", "causal-relative"],
)
@torch.no_grad()
def test_batched_equals_one_by_one(numbers):
    encoder = tiny_encoder("group", **numbers).eval()
    shake(encoder)
    lengths = torch.tensor([8000, 5431, 3000])
    waveforms = torch.randn(3, 8000)
    together = encoder(waveforms, lengths)
    for i, length in enumerate(lengths):
        alone = encoder(waveforms[i : i + 1, :length])
        for ours, expected in zip(together.layers, alone.layers, strict=True):
            torch.testing.assert_close(ours[i, : together.lengths[i]], expected[0], **CLOSE)


def test_every_block_dropped_still_gives_the_bias_a_gradient():
    context = Transformer(tiny_transformer(relative_buckets=16, layer_drop=1.0), 32).train()
    context(torch.randn(1, 5, 32))[0].sum().backward()
    assert context.relative.embedding.weight.grad is not None, "DDP waits for every parameter"


def test_impossible_numbers():
    with pytest.raises(ValueError, match="position_layers must be 1 or more"):
        tiny_transformer(position_layers=0)
    with pytest.raises(ValueError, match="relative_buckets must be 0"):
        tiny_transformer(relative_buckets=64, relative_distance=16)


@pytest.mark.parametrize("groups", [1, 4])
def test_short_kernels_are_not_narrow_on_a_cpu(groups):
    """oneDNN's grouped convolution in bf16 is wrong on CPUs with AMX."""
    x, weight, bias = torch.randn(2, 99, 32), torch.randn(32, 32 // groups, 8), torch.randn(32)
    expected = same_convolution(x, weight, bias, groups, False)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_convolution(x, weight, bias, groups, False).equal(expected)
    narrow = [tensor.bfloat16() for tensor in (x, weight, bias)]
    wide = same_convolution(*[tensor.float() for tensor in narrow], groups, False)
    assert same_convolution(*narrow, groups, False).equal(wide.bfloat16())


@pytest.mark.parametrize("kernel", [32, 63, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 40, 64, 150])
def test_long_kernels_are_the_same_convolution(kernel, causal, frames):
    """Values and gradients of the product of spectra, which only kernels of 32 taps and more take."""
    torch.manual_seed(1)
    x, bias = torch.randn(2, frames, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    weight = torch.randn(8, 2, kernel, requires_grad=True)
    behind = kernel - 1 if causal else kernel // 2
    padded = torch.nn.functional.pad(x.transpose(1, 2), (behind, kernel - 1 - behind))
    expected = torch.nn.functional.conv1d(padded, weight, bias, groups=4).transpose(1, 2)
    made = same_convolution(x, weight, bias, 4, causal)
    close = {"atol": 2e-5 * kernel**0.5, "rtol": 1e-4}
    torch.testing.assert_close(made, expected, **close)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(made, (x, weight, bias), gradient),
        torch.autograd.grad(expected, (x, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **close)
    half = same_convolution(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), 4, causal)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.3, rtol=0.05)
