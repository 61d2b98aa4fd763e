"""Word times on the best path, against the text that decoding gives and frames counted by hand."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.asr.decode import greedy
from speechssl.data.tokens import Tokenizer
from speechssl.page.best_path import words_of

LETTERS = Tokenizer.train(["AB BA"])  # blank, |, A, B
PIECES = Tokenizer.train(["ONE TWO ONE THREE TWO", "THREE ONE"], kind="sentencepiece", size=20)


def log_probs(path, size):
    rows = np.full((len(path), size), -9.0, np.float32)
    rows[np.arange(len(path)), path] = -0.1
    return rows


def test_times_by_hand():
    path = [0, 2, 2, 0, 3, 1, 1, 0, 3, 0, 2]  # AB|BA
    words = words_of(log_probs(path, 4), LETTERS, 0.02)
    assert [word.text for word in words] == ["AB", "BA"]
    assert [(word.start, word.end) for word in words] == [(0.02, 0.1), (0.16, 0.22)]


@given(st.data())
def test_the_words_are_those_of_greedy_decoding(data):
    tokenizer = data.draw(st.sampled_from([LETTERS, PIECES]))
    path = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=30))
    scores = log_probs(path, len(tokenizer))
    words = words_of(scores, tokenizer, 1.0)
    (text,) = greedy(torch.from_numpy(scores)[None], torch.tensor([len(path)]), tokenizer)
    assert " ".join(word.text for word in words) == text
    edges = [edge for word in words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(path) for edge in edges)
