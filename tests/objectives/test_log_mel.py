"""Which log-mel frames an encoder frame stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batch, tiny_encoder, tiny_transformer

from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder, EncoderConfig
from speechssl.nn.frontend import LogMelConfig
from speechssl.objectives.log_mel import LogMelObjective


class Plain(LogMelObjective):
    about = "a test"


def plain(kernels=(3, 3), strides=(2, 2)) -> Plain:
    features = LogMelConfig(num_bins=10, dims=(8,) * len(kernels), kernels=kernels, strides=strides)
    project = len(kernels) > 0
    context = tiny_transformer(num_layers=1, dim=32 if project else 10, num_heads=2, position_groups=2)
    return Plain(None, Encoder(EncoderConfig(feature_encoder=features, context=context, project=project)))


layer = st.tuples(st.integers(1, 4), st.integers(0, 3)).map(lambda pair: (pair[0] + pair[1], pair[0]))


@settings(max_examples=30, deadline=None)
@given(st.lists(layer, max_size=3), st.integers(1, 60))
def test_frames_are_shared_out(layers, windows):
    """As many as the encoder gives, each with its own S frames out of its window, in order."""
    objective = plain(tuple(k for k, _ in layers), tuple(s for _, s in layers))
    mel = torch.arange(float(windows))[None, :, None].expand(2, -1, 10)
    samples = 400 + 160 * (windows - 1)
    size = objective.encoder.frame_lengths(samples)
    stacked = objective.stacked(mel)
    assert stacked.shape == (2, size, objective.stack * 10)
    owned = stacked[0, :, ::10].long()
    for frame, numbers in enumerate(owned.tolist()):
        start = frame * objective.stack
        assert numbers == list(range(start + objective.first, start + objective.first + objective.stack))
        assert start <= numbers[0]
        assert numbers[-1] < start + objective.window
    back = objective.put_back(stacked.view(2, -1, 10) + 1, mel)
    changed = torch.zeros(windows, dtype=torch.bool)
    changed[owned.flatten()] = True
    assert back[0, :, 0].equal(mel[0, :, 0] + changed)


def test_lengths_are_those_of_the_encoder():
    objective, batch = plain(), tiny_batch(8000, 5000, 500, 300)
    _, lengths, frames = objective.log_mel(batch)
    assert frames.tolist() == objective.encoder.frame_lengths(batch.lengths).tolist()
    assert lengths.tolist() == [48, 29, 1, 0]
    assert objective.log_mel(tiny_batch(8000, 8000))[1] is None


def test_encoders_that_cannot_serve_are_named():
    with pytest.raises(UserError, match=r"a test reads log-mel frames: set encoder\.feature_encoder\.name=logmel"):
        Plain(None, tiny_encoder("group"))
    with pytest.raises(UserError, match="as wide as their strides"):
        plain((1,), (2,))
