"""Losses on two views against loops over the papers' formulas, in one process."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn.view_losses import (
    byol_loss,
    cross_correlation,
    nearest_is_own,
    nt_xent,
    queue_logits,
    redundancy_parts,
    spread,
    unit,
)

B, D, K = 5, 4, 7


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@given(batch=st.integers(1, 6), temperature=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 99))
def test_nt_xent_is_equation_1(batch, temperature, seed):
    torch.manual_seed(seed)
    first, second = torch.randn(batch, D), torch.randn(batch, D)
    views = [view for pair in zip(first, second, strict=True) for view in pair]  # 2 k and 2 k + 1 are partners
    expected = []
    for k in range(batch):
        terms = []
        for i, j in ((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)):
            below = sum(math.exp(cosine(views[i], views[n]) / temperature) for n in range(2 * batch) if n != i)
            terms.append(-math.log(math.exp(cosine(views[i], views[j]) / temperature) / below))
        expected.append(sum(terms) / 2)
    loss = nt_xent(first, second, temperature, couple=True)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_infonce_is_equation_1():
    queries, keys, queue = torch.randn(B, D), torch.randn(B, D), unit(torch.randn(K, D))
    logits = queue_logits(queries, keys, queue, 0.07)
    assert logits.shape == (B, 1 + K)
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(B, dtype=torch.long), reduction="none")
    for b in range(B):
        right = math.exp(cosine(queries[b], keys[b]) / 0.07)
        wrong = sum(math.exp(cosine(queries[b], key) / 0.07) for key in queue)
        assert float(loss[b]) == pytest.approx(-math.log(right / (right + wrong)), rel=1e-4, abs=1e-5)


def test_byol_loss_is_equation_2():
    predictions, targets = torch.randn(B, D), torch.randn(B, D)
    loss = byol_loss(predictions, targets)
    for b in range(B):
        apart = predictions[b] / predictions[b].norm() - targets[b] / targets[b].norm()
        assert float(loss[b]) == pytest.approx(float(apart.square().sum()), rel=1e-4)


def test_barlow_twins_is_equations_1_and_2():
    first, second = 3 + 2 * torch.randn(B, D), torch.randn(B, D)
    one, two = first - first.mean(0), second - second.mean(0)
    agreement, redundancy = 0.0, 0.0
    for i in range(D):
        for j in range(D):
            above = sum(float(one[b, i] * two[b, j]) for b in range(B))
            below = math.sqrt(sum(float(one[b, i]) ** 2 for b in range(B)))
            below *= math.sqrt(sum(float(two[b, j]) ** 2 for b in range(B)))
            if i == j:
                agreement += (1 - above / below) ** 2
            else:
                redundancy += (above / below) ** 2
    correlation = cross_correlation(first, second, couple=True)
    assert correlation.shape == (D, D)
    assert correlation.abs().max() <= 1
    parts = redundancy_parts(correlation)
    assert float(parts[0]) == pytest.approx(agreement, rel=1e-3)
    assert float(parts[1]) == pytest.approx(redundancy, rel=1e-3)


def test_channels_that_agree_and_do_not_depend_on_each_other_have_no_loss():
    x = torch.randn(50, 5)
    x = torch.linalg.qr(x - x.mean(0))[0] * 10  # centred and orthogonal
    agreement, redundancy = redundancy_parts(cross_correlation(x, 3 * x + 1, couple=False))
    assert float(agreement) == pytest.approx(0, abs=1e-6)
    assert float(redundancy) == pytest.approx(0, abs=1e-6)


def test_losses_are_wide_and_finite_where_nothing_differs():
    """A constant channel, one utterance, vectors without a direction, bfloat16."""
    for batch in (1, 3):
        first = torch.zeros(batch, D, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = [
                nt_xent(first, first, 0.1, couple=True).sum(),
                queue_logits(first, first, torch.eye(D), 0.1).sum(),
                byol_loss(first, first).sum(),
                *redundancy_parts(cross_correlation(first, first, couple=True)),
            ]
        sum(losses).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
        assert first.grad.isfinite().all()
        assert not nearest_is_own(first, first).any() or batch == 1


@given(batch=st.integers(2, 8), dim=st.integers(2, 6))
def test_spread_is_that_of_directions(batch, dim):
    x = torch.randn(batch, dim)
    directions = [row / row.norm() for row in x]
    mean = sum(directions) / batch
    expected = math.sqrt(sum(float((d - mean).square().sum()) for d in directions) / batch)
    scaled = x * torch.rand(batch, 1).add(0.1)
    assert float(spread(scaled)) == pytest.approx(expected, abs=1e-4)
    assert float(spread(x[:1].expand(batch, -1) * 3)) == pytest.approx(0, abs=1e-6)
    assert float(spread(torch.cat((x, -x)))) == pytest.approx(1, abs=1e-5)


def test_nearest_is_own():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = torch.tensor([[9.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    assert nearest_is_own(first, second).tolist() == [False, False, True]
    assert not nearest_is_own(first, torch.ones(3, 2)).any()  # collapsed: ties are no hits
