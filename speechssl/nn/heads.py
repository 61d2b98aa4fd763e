"""Heads on top of an encoder. Shapes: B utterances, F frames, D channels, V tokens (0 = blank), L layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.nn.lengths import zero_padding
from speechssl.nn.steps import recurrent_pair


class TokenHead(nn.Module):
    """Linear map to tokens; a slow encoder may give several per frame: (B, F, D) -> (B, F * symbols, V).

    It begins with four blanks in five by its bias, as a class so frequent should (Lin et al. 2017, section 4.1): from
    even probabilities CTC first pays for all the frames that should be blank, with gradients that throw the encoder
    about for hundreds of updates.
    """

    def __init__(self, dim: int, vocab_size: int, symbols_per_frame: int = 1, dropout: float = 0.0):
        super().__init__()
        self.symbols_per_frame, self.vocab_size = symbols_per_frame, vocab_size
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, vocab_size * symbols_per_frame)
        with torch.no_grad():
            bias = self.linear.bias.zero_().view(symbols_per_frame, vocab_size)
            bias[:, 0] = blank_bias(vocab_size)

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log probabilities (float32) and lengths (B,) in symbols."""
        logits = self.linear(self.dropout(hidden)).float()
        logits = logits.reshape(logits.shape[0], -1, self.vocab_size)
        return logits.log_softmax(-1), lengths * self.symbols_per_frame


def blank_bias(vocab_size: int) -> float:
    """Of the blank beside zeros: four in five are blanks."""
    return math.log(4 * (vocab_size - 1))


class LayerSum(nn.Module):
    """Learned softmax-weighted sum of layers, each layer-normalised (as in SUPERB, Yang et al. 2021)."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """L tensors (B, F, D) -> (B, F, D)."""
        mix = self.weights.softmax(0)
        normed = [F.layer_norm(layer.float(), layer.shape[-1:]) for layer in layers]
        return sum((w * x for w, x in zip(mix, normed, strict=True)), torch.zeros_like(normed[0]))


class BiGRU(nn.Module):
    """One bidirectional GRU layer that padding does not reach: (B, F, D) -> (B, F, 2 * dim)."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.forwards = nn.GRU(dim_in, dim, batch_first=True)
        self.backwards = nn.GRU(dim_in, dim, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # Reversed within its own length, an utterance's padding stays behind it, where it cannot reach.
        index = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
        index = torch.where(index >= 0, index, torch.arange(x.shape[1], device=x.device))[..., None]
        inputs = x, x.gather(1, index.expand_as(x))
        ahead, behind = recurrent_pair((self.forwards, self.backwards), inputs)
        behind = behind.gather(1, index.expand_as(behind))
        return zero_padding(torch.cat((ahead, behind), -1), lengths)


def ctc_loss(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """(B,) negative log likelihoods (Graves et al. 2006), in float32. log_probs: (B, F, V); blank = 0.

    Infinite where an utterance has fewer frames than tokens and the blanks between repeats.
    """
    return F.ctc_loss(log_probs.transpose(0, 1), tokens, lengths, token_lengths, blank=0, reduction="none")


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest CTC frames that can spell `tokens`: one each, and a blank between repeats."""
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
