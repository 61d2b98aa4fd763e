"""Scores and targets of masked prediction, against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn.unit_prediction import mean_square, unit_logits, units_of_frames


def test_logits_by_loops():
    predictions, embeddings = torch.randn(5, 4), torch.randn(3, 4)
    logits = unit_logits(predictions, embeddings, 0.1)
    for n in range(5):
        for v in range(3):
            cosine = predictions[n] @ embeddings[v] / (predictions[n].norm() * embeddings[v].norm())
            torch.testing.assert_close(logits[n, v], cosine / 0.1)


@given(st.integers(1, 3), st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 25))
def test_units_of_frames_by_loops(per_frame, frames, given_units):
    size = max([*frames, 1])
    units = torch.arange(len(frames) * given_units).view(len(frames), given_units)
    targets = units_of_frames(units, torch.tensor(frames), size, per_frame)
    assert targets.shape == (len(frames), size, per_frame)
    for i, count in enumerate(frames):
        for frame in range(size):
            for r in range(per_frame):
                place = frame * per_frame + r
                known = frame < count and place < given_units
                assert targets[i, frame, r] == (units[i, place] if known else -1)


def test_mean_square_ignores_padding():
    latents = torch.randn(2, 5, 3)
    expected = (latents[0].square().sum() + latents[1, :2].square().sum()) / (7 * 3)
    torch.testing.assert_close(mean_square(latents, torch.tensor([5, 2])), expected)
    torch.testing.assert_close(mean_square(latents, None), latents.square().mean())
    assert mean_square(latents, torch.tensor([0, 0])) == 0
    assert mean_square(latents.bfloat16(), None).item() == pytest.approx(latents.square().mean().item(), rel=0.01)
