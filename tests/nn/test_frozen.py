"""Frames of a frozen encoder, kept: the same as computed again, to the bit, whatever the batch."""

import torch
from cases import tiny_encoder

from speechssl.nn.frozen import FrozenLayers


def batch():
    torch.manual_seed(0)
    waveforms, lengths = torch.randn(3, 1600), torch.tensor([1600, 900, 1200])
    return waveforms * (torch.arange(1600) < lengths[:, None]), lengths


def test_the_layers_are_those_of_the_encoder():
    encoder, (waveforms, lengths) = tiny_encoder("layer").eval(), batch()
    layers, frames = FrozenLayers(encoder)(waveforms, lengths)
    expected = encoder(waveforms, lengths)
    assert frames.tolist() == expected.lengths.tolist()
    assert len(layers) == encoder.num_alike
    for layer, other in zip(layers, expected.layers[-encoder.num_alike :], strict=True):
        for row, plain, count in zip(layer, other, frames, strict=True):
            torch.testing.assert_close(row[:count], plain[:count])


def test_what_is_kept_is_what_would_be_computed_in_any_batch():
    encoder, (waveforms, lengths) = tiny_encoder("layer").eval(), batch()
    keeping, never = FrozenLayers(encoder), FrozenLayers(encoder, limit=0)
    keeping(waveforms, lengths)
    again, computed = keeping(waveforms[1:2, :900], None), never(waveforms, lengths)
    assert len(keeping.kept) == 3
    assert not never.kept
    for left, right in zip(again[0], computed[0], strict=True):
        assert torch.equal(left[0], right[1, : again[1][0]])


def test_a_full_store_keeps_what_it_has():
    encoder, (waveforms, lengths) = tiny_encoder("layer").eval(), batch()
    whole = FrozenLayers(encoder)
    whole(waveforms, lengths)
    some = FrozenLayers(encoder, limit=whole.size - 1)
    some(waveforms, lengths)
    assert len(some.kept) == 2
    assert some.size <= some.limit


def test_an_utterance_shorter_than_a_frame_has_none():
    encoder, (waveforms, _) = tiny_encoder("layer").eval(), batch()
    layers, frames = FrozenLayers(encoder)(waveforms, torch.tensor([1600, 3, 1200]))
    assert frames[1] == 0
    assert not layers[0][1].any()
