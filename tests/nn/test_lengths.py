"""Frame arithmetic against real convolutions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn.lengths import conv_lengths, full_lengths, padding_mask, receptive_field, zero_padding

stacks = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=4)
BASE = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))


def convolved(length, kernels, strides):
    x = torch.zeros(1, 1, length)
    for kernel, stride in zip(kernels, strides, strict=True):
        if x.shape[-1] < kernel:
            return 0
        x = F.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
    return x.shape[-1]


@given(stacks, st.integers(0, 300))
def test_lengths_are_those_of_convolutions(stack, length):
    kernels, strides = zip(*stack, strict=True)
    expected = convolved(length, kernels, strides)
    assert conv_lengths(length, kernels, strides) == expected
    assert conv_lengths(torch.tensor([length, 0]), kernels, strides).tolist() == [expected, 0]


@given(stacks)
def test_receptive_field_is_the_shortest_input_with_a_frame(stack):
    kernels, strides = zip(*stack, strict=True)
    field = receptive_field(kernels, strides)
    assert conv_lengths(field, kernels, strides) == 1
    assert conv_lengths(field - 1, kernels, strides) == 0


def test_published_numbers():
    assert receptive_field(*BASE) == 400  # 25 ms at 16 kHz (wav2vec 2.0, section 4.2)
    assert conv_lengths(16_000, *BASE) == 49
    assert receptive_field((10, 8, 4, 4, 4), (5, 4, 2, 2, 2)) == 465  # CPC


def test_stacks_must_match():
    with pytest.raises(ValueError, match="shorter"):
        conv_lengths(100, (3, 3), (2,))


def test_padding():
    lengths = torch.tensor([3, 0, 2])
    mask = padding_mask(lengths, 3)
    assert mask.tolist() == [[False] * 3, [True] * 3, [False, False, True]]
    for shape in ((3, 3), (3, 3, 2), (3, 3, 2, 2)):
        frames = torch.full(shape, torch.nan)
        frames[~mask] = 1.0
        zeroed = zero_padding(frames, lengths)
        assert (zeroed[~mask] == 1).all()
        assert (zeroed[mask] == 0).all(), "not even NaN may leak out of the padding"
    assert zero_padding(frames, None) is frames


def test_full_lengths():
    frames = torch.zeros(2, 7, 3)
    assert full_lengths(frames, None).tolist() == [7, 7]
    lengths = torch.tensor([7, 1])
    assert full_lengths(frames, lengths) is lengths
