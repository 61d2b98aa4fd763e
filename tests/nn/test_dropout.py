"""Dropout and attention with it: shares, gradients, the seed; against the plain formulas."""

import pytest
import torch

from speechssl.nn.attention import attend, hide
from speechssl.nn.dropout import Dropout, dropout, keep_mask


@pytest.mark.parametrize("drop", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1000, 333)])
def test_share_of_what_is_kept(drop, shape):
    torch.manual_seed(1)
    mask = keep_mask(shape, drop)
    assert mask.shape == shape
    assert not keep_mask(shape, drop).equal(mask), "another one each time"
    deviation = (drop * (1 - drop) / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - (1 - drop)) < 4 * deviation
    for dim in range(len(shape)):  # neighbours are independent
        if mask.numel() > 1000:
            a, b = mask.narrow(dim, 0, shape[dim] - 1).float(), mask.narrow(dim, 1, shape[dim] - 1).float()
            assert abs(((a - a.mean()) * (b - b.mean())).mean()) < 5 * deviation * (drop * (1 - drop)) ** 0.5


def test_dropout_scales_what_it_keeps_and_its_gradient():
    torch.manual_seed(2)
    x = torch.randn(50, 40, requires_grad=True)
    y = dropout(x, 0.25)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, kept / 0.75)
    torch.manual_seed(2)
    assert dropout(torch.randn(50, 40), 0.25).equal(y), "the seed decides"


def test_no_dropout_is_none():
    x = torch.randn(4)
    assert dropout(x, 0.5, training=False) is x
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("drop", "copied"), [(0.0, 10), (0.0, 9), (0.3, 10)])
def test_attention_is_the_formula(monkeypatch, dtype, causal, padded, biased, drop, copied):
    torch.manual_seed(3)
    monkeypatch.setattr("speechssl.nn.attention.COPIED", copied)
    monkeypatch.setattr("speechssl.nn.attention.PIECE", 2 * 81)  # two heads of the three, then one
    heads = torch.randn(2, 9, 3, 3, 4).to(dtype).requires_grad_()
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    bias = torch.randn(2, 3, 9, 9, requires_grad=True) if biased else None
    keys = (torch.arange(9) < torch.tensor([[9], [6]]))[:, None, None] if padded else None
    inputs = [heads] if bias is None else [heads, bias]
    torch.manual_seed(4)
    made = attend(heads, keys, drop, causal, bias)
    gradient = torch.randn(made.shape).to(dtype)
    ours = torch.autograd.grad(made, inputs, gradient)
    scores = query @ key.transpose(-1, -2) / 2 + (0 if bias is None else bias.to(dtype))
    probs = hide(scores, keys, causal).softmax(-1)
    if drop:
        torch.manual_seed(4)
        probs = torch.where(keep_mask(probs.shape, drop), probs, 0.0) / (1 - drop)
    expected = (probs @ value).transpose(1, 2).flatten(2)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(made, expected, **tolerance)
    for a, b in zip(ours, torch.autograd.grad(expected, inputs, gradient), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
