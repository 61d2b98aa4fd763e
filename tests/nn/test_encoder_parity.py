"""The encoder, layer by layer, against transformers and torchaudio; and against itself without padding."""

import itertools

import pytest
import torch
from parity import encoder_tensors, shake
from tiny import tiny_encoder

from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.transformer import TransformerConfig

DIMS, DIM, LAYERS, HEADS, FFN = (32,) * 7, 48, 3, 4, 64
KERNEL, GROUPS = 16, 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = pytest.mark.parametrize(("norm", "bias"), list(itertools.product(("group", "layer"), (False, True))))


def our_encoder(norm: str, bias: bool) -> Encoder:
    """Group norm comes with norms after the blocks (Base), layer norm with norms before (Large)."""
    context = TransformerConfig(
        dim=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        ffn_dim=FFN,
        norm_first=norm == "layer",
        position_kernel=KERNEL,
        position_groups=GROUPS,
    )
    features = WaveformConfig(dims=DIMS, norm=norm, bias=bias)
    return Encoder(EncoderConfig(feature_encoder=features, context=context)).eval()


def transformers_model(norm: str, bias: bool):
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        conv_dim=DIMS,
        feat_extract_norm=norm,
        conv_bias=bias,
        do_stable_layer_norm=norm == "layer",
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        num_conv_pos_embeddings=KERNEL,
        num_conv_pos_embedding_groups=GROUPS,
    )
    return transformers.Wav2Vec2Model(config).eval()


def with_layers(blocks, forward):
    """Runs `forward` and returns its result, what entered the first block, and what left each of them."""
    layers = []
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: layers.append(args[0]))]
    for block in blocks:
        hooks.append(
            block.register_forward_hook(lambda m, a, out: layers.append(out[0] if isinstance(out, tuple) else out))
        )
    result = forward()
    for hook in hooks:
        hook.remove()
    return result, layers


@VARIANTS
@torch.no_grad()
def test_every_layer_is_that_of_transformers(norm, bias):
    theirs, ours = transformers_model(norm, bias), our_encoder(norm, bias)
    shake(theirs)
    ours.load_state_dict(encoder_tensors(theirs.state_dict()))
    waveforms = torch.randn(2, 8000)
    expected, layers = with_layers(theirs.encoder.layers, lambda: theirs(waveforms.clone()))
    output = ours(waveforms)
    assert output.lengths is None
    assert len(layers) == len(output.layers) == LAYERS + 1
    for mine, theirs_ in zip(output.layers, layers, strict=True):
        torch.testing.assert_close(mine, theirs_, **CLOSE)
    torch.testing.assert_close(output.hidden, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(ours.project(output.latents)[1], expected.extract_features, **CLOSE)


@pytest.mark.parametrize("norm", ["group", "layer"])
@torch.no_grad()
def test_layers_are_numbered_as_hidden_states(norm):
    """Their last one is left out: whether it is before or after the final norm depends on their version."""
    theirs, ours = transformers_model(norm, True), our_encoder(norm, True)
    ours.load_state_dict(encoder_tensors(theirs.state_dict()))
    waveforms = torch.randn(1, 4000)
    expected = theirs(waveforms.clone(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours(waveforms).layers[:-1], list(expected[:-1]), **CLOSE)


@torch.no_grad()
def test_padded_batches_are_those_of_transformers():
    """With layer norm, as with Large: there transformers itself does not mind padding."""
    theirs, ours = transformers_model("layer", True), our_encoder("layer", True)
    shake(theirs)
    ours.load_state_dict(encoder_tensors(theirs.state_dict()))
    lengths = torch.tensor([8000, 6100, 2345])
    waveforms = torch.randn(3, 8000)
    present = torch.arange(8000) < lengths[:, None]
    waveforms *= present
    expected, layers = with_layers(
        theirs.encoder.layers, lambda: theirs(waveforms.clone(), attention_mask=present.long())
    )
    output = ours(waveforms, lengths)
    assert output.lengths.tolist() == theirs._get_feat_extract_output_lengths(lengths).tolist()
    for i, frames in enumerate(output.lengths):
        for mine, theirs_ in zip(output.layers, layers, strict=True):
            torch.testing.assert_close(mine[i, :frames], theirs_[i, :frames], **CLOSE)
        torch.testing.assert_close(output.hidden[i, :frames], expected.last_hidden_state[i, :frames], **CLOSE)


@VARIANTS
@torch.no_grad()
def test_every_layer_is_that_of_torchaudio(norm, bias):
    models = pytest.importorskip("torchaudio.models")
    theirs = models.wav2vec2_model(
        extractor_mode=f"{norm}_norm",
        extractor_conv_layer_config=[(32, k, s) for k, s in zip((10, 3, 3, 3, 3, 2, 2), (5,) + (2,) * 6, strict=True)],
        extractor_conv_bias=bias,
        encoder_embed_dim=DIM,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=KERNEL,
        encoder_pos_conv_groups=GROUPS,
        encoder_num_layers=LAYERS,
        encoder_num_heads=HEADS,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=FFN,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=norm == "layer",
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()
    ours = our_encoder(norm, bias)
    shake(theirs)
    ours.load_state_dict(encoder_tensors(theirs.state_dict()))
    waveforms = torch.randn(2, 8000)
    (hidden, _), layers = with_layers(theirs.encoder.transformer.layers, lambda: theirs(waveforms))
    output = ours(waveforms)
    for mine, theirs_ in zip(output.layers, layers, strict=True):
        torch.testing.assert_close(mine, theirs_, **CLOSE)
    torch.testing.assert_close(output.hidden, hidden, **CLOSE)
    latents, _ = theirs.feature_extractor(waveforms, None)
    torch.testing.assert_close(output.latents, latents, **CLOSE)


# ------------------------------------------------------------------------------------------------ padded or one by one


@pytest.mark.parametrize("kind", ["group", "layer", "logmel", "recurrent"])
@torch.no_grad()
def test_batched_equals_one_by_one(kind):
    encoder = tiny_encoder(kind).eval()
    shake(encoder)
    lengths = torch.tensor([8000, 5431, 3000])
    waveforms = torch.randn(3, 8000)  # noise behind the end, too
    together = encoder(waveforms, lengths)
    assert together.lengths.tolist() == encoder.frame_lengths(lengths).tolist()
    for i, length in enumerate(lengths):
        alone = encoder(waveforms[i : i + 1, :length])
        frames = together.lengths[i]
        mine = [together.hidden, together.latents, *together.layers]
        for ours, expected in zip(mine, [alone.hidden, alone.latents, *alone.layers], strict=True):
            assert expected.shape[1] == frames
            assert (ours[i, :frames] - expected[0]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["group", "layer"])
@torch.no_grad()
def test_lengths_of_full_utterances_change_nothing(kind):
    """The path without padding and the one with it agree."""
    encoder = tiny_encoder(kind).eval()
    waveforms = torch.randn(2, 4000)
    fast, slow = encoder(waveforms), encoder(waveforms, torch.tensor([4000, 4000]))
    torch.testing.assert_close(fast.hidden, slow.hidden, **CLOSE)


@pytest.mark.parametrize("kind", ["group", "layer", "logmel", "recurrent"])
@torch.no_grad()
def test_an_utterance_without_a_frame_does_no_harm(kind):
    encoder = tiny_encoder(kind).eval()
    lengths = torch.tensor([4000, 30, 0])
    waveforms = torch.randn(3, 4000)
    output = encoder(waveforms, lengths)
    assert output.lengths[1:].tolist() == [0, 0]
    assert not output.hidden[0].isnan().any()
    torch.testing.assert_close(output.hidden[:1], encoder(waveforms[:1]).hidden, **CLOSE)


def test_too_short_for_one_frame():
    with pytest.raises(ValueError, match="84 samples are fewer than the 85"):
        tiny_encoder()(torch.randn(1, 84))


def test_stopping_early_and_sizes():
    encoder = tiny_encoder().eval()
    waveforms = torch.randn(1, 4000)
    assert (encoder.hop, encoder.dim, encoder.latent_dim, encoder.num_layers) == (80, 32, 16, 2)
    early = encoder(waveforms, num_layers=1)
    torch.testing.assert_close(early.hidden, encoder(waveforms).layers[1])
