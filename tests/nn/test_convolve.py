"""Convolutions as matrix products, and what keeps only their input, against torch's own; packed against one by one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.nn.conv_stack import ConvStack
from speechssl.nn.convolve import ActivateThenConvolve
from speechssl.nn.packing import pack, unpack
from speechssl.nn.rows import ConvolveRows, normalized_taps, pieces, windows

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def reference(x, weight, bias, stride):
    return F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 6),
    channels=st.integers(1, 4),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 5),
    bias=st.booleans(),
    piece=st.integers(1, 20),
    apart=st.booleans(),
)
def test_rows_are_a_convolution(batch, rows, channels, kernel, stride, bias, piece, apart):
    """Values and gradients, for every frame that lies inside an utterance, however the rows are cut."""
    size = rows * stride
    torch.manual_seed(kernel)
    x, weight = torch.randn(batch, size, channels), torch.randn(5, channels, kernel)
    offset = torch.randn(5) if bias else None
    inputs = [t.requires_grad_() for t in (x, weight, offset) if t is not None]
    cut = pieces([rows] * batch if apart else [rows * batch], piece)
    made = ConvolveRows.apply(lambda _, x: x, cut, stride, x.reshape(-1, channels), weight, offset)
    made = made.view(batch, rows, 5)
    valid = (size - kernel) // stride + 1
    if valid < 1:
        return
    expected = reference(x, weight, offset, stride)
    torch.testing.assert_close(made[:, :valid], expected, **CLOSE)
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(made[:, :valid], inputs, gradient)
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_activation_made_twice_is_the_activation(rows, bias):
    torch.manual_seed(1)
    x = torch.randn(2, 12, 3, requires_grad=True)
    weight, offset = torch.randn(4, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True) if bias else None
    scale, shift = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)

    def activate(x, scale, shift):
        return F.gelu(F.layer_norm(x, (3,), scale, shift))

    if rows:
        cut = pieces([12], 5)  # the second begins in one utterance and ends in the other
        made = ConvolveRows.apply(lambda _, *a: activate(*a), cut, 2, x.view(-1, 3), weight, offset, scale, shift)
    else:
        made = ActivateThenConvolve.apply(activate, 2, x, weight, offset, scale, shift)
    made = (made.view(2, 6, 4) if rows else made)[:, :5]
    expected = reference(activate(x, scale, shift), weight, offset, 2)
    torch.testing.assert_close(made, expected, **CLOSE)
    inputs = [t for t in (x, weight, offset, scale, shift) if t is not None]
    gradient = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(made, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, **CLOSE)


@settings(deadline=None, max_examples=30)
@given(outputs=st.lists(st.integers(0, 9), min_size=1, max_size=4), size=st.one_of(st.none(), st.integers(1, 5)))
def test_pieces_cover_every_output_once(outputs, size):
    cut = pieces(outputs, size)
    assert [i for piece in cut for i in range(piece.start, piece.stop)] == list(range(sum(outputs)))
    for piece in cut:
        assert piece.first == sum(outputs[: piece.utterance])
        assert piece.first <= piece.start < piece.stop <= piece.first + outputs[piece.utterance]
        assert size is None or piece.stop - piece.start <= size


@pytest.mark.parametrize(("slow", "tolerance"), [(0.0, 1e-4), (3000.0, 0.02)])
def test_the_first_norm_is_in_the_taps(slow, tolerance):
    """Group norm of the first convolution, values and gradients; also where taps answer to what is faint alone."""
    torch.manual_seed(5)
    time = torch.arange(500.0) / 500
    sound = (torch.randn(500) + slow * (2 + torch.sin(3 * time)))[None, :, None]
    smooth, _ = torch.linalg.qr(torch.linspace(-1, 1, 10)[:, None] ** torch.arange(4))  # cubics: what is slow
    weight = torch.randn(7, 10)
    weight = (weight - weight @ smooth @ smooth.t())[:, None].requires_grad_()
    scale, shift = torch.randn(7, requires_grad=True), torch.randn(7, requires_grad=True)
    seen = windows(sound[0], 10, 5)[:99]
    taps, mean = normalized_taps(seen[:, :-1], weight, scale, shift)
    made = (seen - F.pad(mean, (0, 1))) @ taps
    exact = [t.detach().double().requires_grad_() for t in (weight, scale, shift)]
    plain = F.conv1d(sound.double().transpose(1, 2), exact[0], stride=5)
    expected = F.group_norm(plain, 7, *exact[1:])[0].t()
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)
    gradient = torch.randn_like(made)
    ours = torch.autograd.grad(made, (weight, scale, shift), gradient)
    theirs = torch.autograd.grad(expected, exact, gradient.double())
    for a, b in zip(ours, theirs, strict=True):
        if not slow:  # else the plain formula itself is lost in rounding
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_waveform_has_a_gradient_too(norm):
    torch.manual_seed(6)
    stack = ConvStack(1, (6, 5), (10, 3), (5, 2), bias=False, norm=norm)
    sound = torch.randn(2, 100, 1, requires_grad=True)
    (ours,) = torch.autograd.grad(stack(sound, None)[0].square().sum(), sound)
    (theirs,) = torch.autograd.grad(stack._whole(sound).square().sum(), sound)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "layer", "utterance", "none"])
@pytest.mark.parametrize("lengths", [[400, 400], [400, 233, 17, 1], [90, 400]])
def test_packed_utterances_are_each_their_own(norm, lengths):
    """Values and the gradients of every parameter; an utterance without a frame adds nothing."""
    torch.manual_seed(2)
    stack = ConvStack(1, (6, 5, 4), (10, 3, 2), (5, 2, 2), bias=True, norm=norm)
    sound = torch.randn(len(lengths), 400, 1)
    together, frames = stack(sound, torch.tensor(lengths))
    apart = [stack._whole(sound[i : i + 1, :n])[0] for i, n in enumerate(lengths) if n >= 45]
    assert frames.tolist() == [len(a) for a in apart] + [0] * (len(lengths) - len(apart))
    together.square().sum().backward()
    ours = [p.grad.clone() for p in stack.parameters()]
    stack.zero_grad()
    sum(a.square().sum() for a in apart).backward()
    for row, alone in zip(together, apart, strict=False):
        torch.testing.assert_close(row[: len(alone)], alone, **CLOSE)
        assert not row[len(alone) :].any()
    for a, p in zip(ours, stack.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-4)


def test_half_precision_is_near():
    torch.manual_seed(3)
    stack = ConvStack(1, (16, 16), (10, 4), (5, 4), bias=False, norm="layer")
    sound = torch.randn(2, 800, 1)
    exact, _ = stack(sound, None)
    with torch.autocast("cpu", torch.bfloat16):
        whole, _ = stack(sound, None)
        packed, _ = stack(sound, torch.tensor([800, 800]))
    assert whole.dtype == packed.dtype == torch.bfloat16
    torch.testing.assert_close(whole.float(), exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(packed.float(), exact, rtol=0.05, atol=0.05)
    (whole.float().sum() + packed.float().sum()).backward()
    assert all(p.grad.isfinite().all() for p in stack.parameters())


def test_packing_round_trip():
    x = torch.randn(3, 10, 2)
    for lengths in (None, torch.tensor([10, 4, 7]), torch.tensor([10, 0, 10])):
        rows, packing = pack(x, lengths, 4)
        assert len(rows) == sum(packing.rows)
        assert all(n % 4 == 0 for n in packing.rows)
        back = unpack(rows, packing, 10)
        for row, original, n in zip(back, x, [10] * 3 if lengths is None else lengths.tolist(), strict=True):
            assert row[:n].equal(original[:n])
            assert not row[n:].any()
