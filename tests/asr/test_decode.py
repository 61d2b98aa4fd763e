"""CTC's collapse rule, and that a batch gives the same texts as one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.asr.decode import collapse, greedy
from speechssl.data.tokens import Tokenizer


def collapse_by_loop(ids):
    result, before = [], None
    for i in ids:
        if i != before and i != 0:
            result.append(i)
        before = i
    return result


@given(ids=st.lists(st.integers(0, 3), max_size=40))
def test_collapse_is_the_naive_loop(ids):
    assert collapse(torch.tensor(ids, dtype=torch.long)) == collapse_by_loop(ids)


def test_collapse_keeps_letters_doubled_across_a_blank():
    assert collapse(torch.tensor([0, 2, 2, 0, 2, 3, 3, 0])) == [2, 2, 3]


@given(data=st.data(), frames=st.integers(1, 12), batch=st.integers(1, 5))
def test_greedy_batched_is_one_by_one_and_ignores_padding(data, frames, batch):
    tokenizer = Tokenizer.train(["ab c"])
    best = torch.tensor(
        data.draw(
            st.lists(st.lists(st.integers(0, 4), min_size=frames, max_size=frames), min_size=batch, max_size=batch)
        )
    )
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, frames), min_size=batch, max_size=batch)))
    log_probs = torch.nn.functional.one_hot(best, len(tokenizer)).float().log_softmax(-1)
    expected = [
        tokenizer.decode(collapse_by_loop(row[:n])) for row, n in zip(best.tolist(), lengths.tolist(), strict=True)
    ]
    assert greedy(log_probs, lengths, tokenizer) == expected
    alone = [greedy(log_probs[i : i + 1, :n], torch.tensor([n]), tokenizer)[0] for i, n in enumerate(lengths.tolist())]
    assert alone == expected


def test_greedy_spells_words():
    tokenizer = Tokenizer.train(["ab c"])  # blank | A B C
    best = torch.tensor([[0, 2, 2, 3, 0, 3, 1, 1, 4, 0], [4, 4, 0, 1, 1, 0, 2, 2, 2, 2]])
    log_probs = torch.nn.functional.one_hot(best, 5).float().log_softmax(-1)
    assert greedy(log_probs, torch.tensor([10, 4]), tokenizer) == ["ABB C", "C"]
