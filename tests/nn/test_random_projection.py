"""The frozen quantizer of BEST-RQ against the paper's equation."""

import math

import torch

from speechssl.nn.quantize import perplexity
from speechssl.nn.random_projection import RandomProjection


def test_codes_are_nearest_neighbours():
    quantizer = RandomProjection(10, code_dim=4, codebook_size=7)
    vectors = torch.randn(30, 10) * 5
    codes = quantizer(vectors)
    for vector, code in zip(vectors, codes, strict=True):
        projected = quantizer.projection @ vector
        projected = projected / projected.norm()
        distances = [float((projected - c / c.norm()).norm()) for c in quantizer.codebook]
        assert distances[int(code)] <= min(distances) + 1e-6


def test_it_is_frozen_and_saved():
    quantizer = RandomProjection(10, code_dim=4, codebook_size=7)
    assert not list(quantizer.parameters())
    other, vectors = RandomProjection(10, code_dim=4, codebook_size=7), torch.randn(50, 10)
    assert not other(vectors).equal(quantizer(vectors))
    other.load_state_dict(quantizer.state_dict())
    assert other(vectors).equal(quantizer(vectors))


def test_its_numbers_are_drawn_as_published():
    quantizer = RandomProjection(300, code_dim=16, codebook_size=2000)
    bound = math.sqrt(6 / 316)
    assert quantizer.projection.abs().max() <= bound
    assert abs(float(quantizer.projection.std()) - bound / math.sqrt(3)) < 0.02 * bound
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(2000))


def test_normalised_input_uses_many_codes_and_a_constant_offset_few():
    """Why the input must be normalised (paper, section 3.1)."""
    quantizer = RandomProjection(320, code_dim=16, codebook_size=256)
    used = [
        float(perplexity(torch.bincount(quantizer(torch.randn(4000, 320) + offset), minlength=256)[None]))
        for offset in (0.0, 20.0)
    ]
    assert used[0] > 150
    assert used[1] < 0.5 * used[0]


def test_half_precision_does_not_change_the_codes():
    quantizer, vectors = RandomProjection(10, code_dim=4, codebook_size=64), torch.randn(200, 10)
    expected = quantizer(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(vectors).equal(expected)
