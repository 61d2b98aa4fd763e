"""Scores of later frames, and wav2vec's loss, against loops over the paper's formula."""

import math

import pytest
import torch

from speechssl.nn.ahead import binary_nce, predicted_frames, scores_ahead

B, FRAMES, C, N = 2, 9, 4, 3


@pytest.mark.parametrize("steps", [range(1, 4), range(3, 6), (2, 5, 8), (9,), (20,)])
def test_scores_against_loops(steps):
    predictions, latents = torch.randn(B, FRAMES, len(steps), C), torch.randn(B, FRAMES, C)
    negatives = torch.randint(0, FRAMES, (B, FRAMES, N))
    scores = scores_ahead(predictions, latents, negatives, steps)
    assert scores.shape == (B, FRAMES, len(steps), N + 1)
    for b in range(B):
        for frame in range(FRAMES):
            candidates = [latents[b, frame], *latents[b, negatives[b, frame]]]
            for k, step in enumerate(steps):
                made = predictions[b, frame - step, k] if frame >= step else torch.zeros(C)
                expected = torch.stack([made @ candidate for candidate in candidates])
                torch.testing.assert_close(scores[b, frame, k], expected)


def test_which_frames_are_predicted():
    valid = predicted_frames(torch.tensor([7, 2, 0]), FRAMES, (2, 4))
    for b, length in enumerate((7, 2, 0)):
        for k, step in enumerate((2, 4)):
            assert valid[b, :, k].nonzero().flatten().tolist() == list(range(step, length))


def test_binary_nce_is_equation_2():
    scores = torch.randn(5, N + 1) * 3
    loss = binary_nce(scores)
    for row, value in zip(scores.tolist(), loss.tolist(), strict=True):
        sigmoid = [1 / (1 + math.exp(-s)) for s in row]
        mean = sum(math.log(1 - s) for s in sigmoid[1:]) / N
        assert value == pytest.approx(-(math.log(sigmoid[0]) + N * mean), rel=1e-4)  # lambda = N


def test_binary_nce_of_sure_answers_is_finite():
    scores = torch.tensor([[300.0, -300.0], [-300.0, 300.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = binary_nce(scores)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([0.0, 600.0], rel=0.01)
    assert scores.grad.isfinite().all()


def test_scores_are_wide_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        predictions = torch.randn(B, FRAMES, 1, C, dtype=torch.bfloat16)
        scores = scores_ahead(predictions, torch.randn(B, FRAMES, C), torch.zeros(B, FRAMES, N, dtype=torch.long), (1,))
    assert scores.dtype == torch.float32
