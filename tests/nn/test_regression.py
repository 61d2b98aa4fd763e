"""Targets and losses of regression against loops over their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechssl.nn.regression import mean_of_layers, normalize_patches, scaled_regression, squares_around_mean


def test_mean_of_layers_against_loops():
    layers, lengths = [torch.randn(2, 7, 3) * 4 + 1 for _ in range(3)], [7, 4]
    ours = mean_of_layers(layers, torch.tensor(lengths))
    for b, frames in enumerate(lengths):
        for d in range(3):
            expected = [0.0] * frames
            for layer in layers:
                values = [float(layer[b, t, d]) for t in range(frames)]
                mean = sum(values) / frames
                deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / frames + 1e-5)
                expected = [e + (v - mean) / deviation / 3 for e, v in zip(expected, values, strict=True)]
            assert ours[b, :frames, d].tolist() == pytest.approx(expected, abs=1e-5)


def test_mean_of_layers_is_instance_norm_where_nothing_is_padded():
    layers = [torch.randn(2, 9, 4, dtype=torch.bfloat16) for _ in range(2)]
    expected = sum(F.instance_norm(layer.float().transpose(1, 2)).transpose(1, 2) for layer in layers) / 2
    ours = mean_of_layers(layers, None)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_scaled_regression_against_loops(beta):
    predictions, targets = torch.randn(4, 5), torch.randn(4, 5)
    ours = scaled_regression(predictions, targets, beta)
    for n in range(4):
        total = 0.0
        for d in range(5):
            error = abs(float(predictions[n, d] - targets[n, d]))
            if beta == 0:
                total += error**2
            else:
                total += error**2 / (2 * beta) if error < beta else error - beta / 2
        assert float(ours[n]) == pytest.approx(total / math.sqrt(5), rel=1e-5)


def test_patches_have_no_loudness():
    patches = torch.randn(6, 12)
    normed = normalize_patches(patches)
    torch.testing.assert_close(normed, normalize_patches(3 * patches + 5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(-1), torch.ones(6), atol=1e-4, rtol=0)
    assert normalize_patches(torch.ones(1, 12)).equal(torch.zeros(1, 12))


def test_variation_is_the_variance_of_each_channel():
    vectors = torch.randn(20, 6) * 3 + 10
    assert float(squares_around_mean(vectors)) / vectors.numel() == pytest.approx(
        float(vectors.var(0, correction=0).mean()), rel=1e-4
    )
    assert squares_around_mean(torch.ones(5, 3)) == squares_around_mean(torch.ones(0, 3)) == 0
