"""Heads, and CTC against an enumeration of all alignments."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechssl.nn.heads import BiGRU, LayerSum, TokenHead, ctc_loss, frames_needed

tokens_strategy = st.lists(st.integers(1, 2), max_size=4)


def collapse(path):
    """What an alignment spells: repeats merged, then blanks removed."""
    return [token for token, _ in itertools.groupby(path) if token]


@pytest.mark.parametrize("symbols", [1, 3])
def test_token_head(symbols):
    head = TokenHead(6, vocab_size=5, symbols_per_frame=symbols)
    hidden, lengths = torch.randn(2, 4, 6), torch.tensor([4, 2])
    log_probs, counts = head(hidden, lengths)
    assert log_probs.shape == (2, 4 * symbols, 5)
    assert counts.tolist() == [4 * symbols, 2 * symbols]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 4 * symbols))
    # The symbols of frame 2 follow those of frame 1.
    logits = hidden[1, 2] @ head.linear.weight.T + head.linear.bias
    expected = logits.view(symbols, 5).log_softmax(-1)
    torch.testing.assert_close(log_probs[1, 2 * symbols : 3 * symbols], expected)


@pytest.mark.parametrize("symbols", [1, 2])
def test_at_first_four_tokens_in_five_are_blank(symbols):
    probs = TokenHead(6, vocab_size=5, symbols_per_frame=symbols)(torch.zeros(1, 3, 6), torch.tensor([3]))[0].exp()
    torch.testing.assert_close(probs, torch.tensor([0.8, 0.05, 0.05, 0.05, 0.05]).expand(1, 3 * symbols, 5))


def test_token_head_is_wide_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _ = TokenHead(6, 5)(torch.randn(1, 4, 6), torch.tensor([4]))
    assert log_probs.dtype == torch.float32


def test_layer_sum():
    layers = [torch.randn(2, 4, 6) * scale for scale in (1, 50, 0.1)]
    mix = LayerSum(3)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
    total = sum(math.exp(w) for w in (0, 1, -1))
    expected = torch.zeros(2, 4, 6)
    for weight, layer in zip((0, 1, -1), layers, strict=True):
        centred = layer - layer.mean(-1, keepdim=True)
        spread = (layer.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected += math.exp(weight) / total * centred / spread
    torch.testing.assert_close(mix(layers), expected)
    with pytest.raises(ValueError, match="argument"):
        mix(layers[:2])


def test_bigru_is_torchs_on_packed_sequences():
    ours, theirs = BiGRU(6, 5), nn.GRU(6, 5, batch_first=True, bidirectional=True)
    state = ours.forwards.state_dict() | {f"{k}_reverse": v for k, v in ours.backwards.state_dict().items()}
    theirs.load_state_dict(state)
    x, lengths = torch.randn(3, 7, 6), torch.tensor([7, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, lengths), expected)


# ------------------------------------------------------------------------------------------------------------------ CTC


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
def test_ctc_sums_over_all_alignments(tokens):
    frames, vocab = 5, 3
    log_probs = torch.randn(1, frames, vocab).log_softmax(-1)
    total = sum(
        math.exp(sum(float(log_probs[0, t, token]) for t, token in enumerate(path)))
        for path in itertools.product(range(vocab), repeat=frames)
        if collapse(path) == tokens
    )
    padded = torch.tensor([tokens + [0] * (4 - len(tokens))])
    loss = ctc_loss(log_probs, torch.tensor([frames]), padded, torch.tensor([len(tokens)]))
    assert loss.shape == (1,)
    assert float(loss) == pytest.approx(-math.log(total), rel=1e-5)


def test_ctc_ignores_padding():
    log_probs = torch.randn(2, 6, 3).log_softmax(-1)
    tokens = torch.tensor([[1, 2, 1], [2, 0, 0]])
    lengths, token_lengths = torch.tensor([6, 3]), torch.tensor([3, 1])
    together = ctc_loss(log_probs, lengths, tokens, token_lengths)
    alone = ctc_loss(log_probs[1:, :3], lengths[1:], tokens[1:, :1], token_lengths[1:])
    torch.testing.assert_close(together[1:], alone)


@given(tokens_strategy)
def test_frames_needed_is_the_shortest_alignment(tokens):
    shortest = next(
        frames
        for frames in range(10)
        if any(collapse(path) == tokens for path in itertools.product(range(3), repeat=frames))
    )
    assert frames_needed(tokens) == shortest


@given(tokens_strategy.filter(bool))
def test_ctc_is_infinite_exactly_where_frames_are_too_few(tokens):
    needed = frames_needed(tokens)
    for frames in {max(needed - 1, 1), needed}:
        log_probs = torch.zeros(1, frames, 3).log_softmax(-1)
        loss = ctc_loss(log_probs, torch.tensor([frames]), torch.tensor([tokens]), torch.tensor([len(tokens)]))
        assert bool(loss.isfinite()) == (frames >= needed)
