"""Modified Kneser-Ney: sums to one after every history, equals loops over the formulas, equals hand arithmetic."""

import gzip
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.asr.kneser_ney import FALLBACK, TextError, discounts, read_texts, train
from speechssl.asr.ngram import END, START, UNKNOWN, Ngram

texts = st.lists(st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=6), min_size=1, max_size=25)


def naive(sentences, order):
    """P(word, history) by the recursion of the paper, over dictionaries, and the discounts of each order."""
    padded = [[START, *sentence, END] for sentence in sentences]
    occurrences = Counter(
        tuple(s[i : i + k]) for s in padded for k in range(1, order + 1) for i in range(len(s) - k + 1)
    )
    before = defaultdict(set)
    for gram in occurrences:
        if len(gram) > 1:
            before[gram[1:]].add(gram[0])
    counts = {}
    for gram, number in occurrences.items():
        if gram != (START,):
            counts[gram] = number if len(gram) == order or gram[0] == START else len(before[gram])
    vocabulary = {w for s in sentences for w in s} | {END, UNKNOWN}
    steps = {k: naive_discounts([c for g, c in counts.items() if len(g) == k]) for k in range(1, order + 1)}

    def prob(word, history):
        k = len(history) + 1
        lower = prob(word, history[1:]) if history else 1 / len(vocabulary)
        followers = {g[-1]: c for g, c in counts.items() if len(g) == k and g[:-1] == history}
        total = sum(followers.values())
        if not total:
            return lower
        step = {w: steps[k][min(c, 3) - 1] for w, c in followers.items()}
        return (followers.get(word, 0) - step.get(word, 0)) / total + sum(step.values()) / total * lower

    return prob, vocabulary, steps


def naive_discounts(counts):
    n1, n2, n3, n4 = (sum(c == r for c in counts) for r in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    d = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return d if all(x > 0 for x in d) else FALLBACK


@given(sentences=texts, order=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_it_is_the_naive_recursion_and_sums_to_one(sentences, order):
    trained = train(sentences, order)
    prob, vocabulary, steps = naive(sentences, order)
    for found, expected in zip(trained.discounts, steps.values(), strict=True):
        assert found == pytest.approx(expected)
    histories = {()} | {
        tuple(padded[i : i + k])
        for s in sentences
        for padded in [[START, *s]]
        for k in range(1, order)
        for i in range(len(padded) - k + 1)
    }
    histories |= {("E", "E", "A")[-order + 1 :]} if order > 1 else set()  # perhaps never seen
    for history in histories:
        state = state_after(trained.model, history)
        found = {word: 10 ** trained.model.score(state, word)[0] for word in vocabulary}
        assert sum(found.values()) == pytest.approx(1)
        assert found == pytest.approx({word: prob(word, history) for word in vocabulary})


def state_after(model, history):
    state = model.start if history[:1] == (START,) else 0
    for word in history[1:] if history[:1] == (START,) else history:
        state = model.score(state, word)[1]
    return state


def test_by_hand():
    """`A B`, `A`: bigrams <s>A 2, AB 1, B</s> 1, A</s> 1; words before A 1, B 1, </s> 2; fallback discounts."""
    model = train([["A", "B"], ["A"]], 2).model
    left = (0.5 + 0.5 + 1.0) / 4  # what A, B and </s> give to all of A, B, </s> and <unk>
    a, end = (1 - 0.5) / 4 + left / 4, (2 - 1.0) / 4 + left / 4
    assert 10 ** model.score(0, "A")[0] == pytest.approx(a)
    assert 10 ** model.score(0, "never")[0] == pytest.approx(left / 4)
    assert 10 ** model.score(model.start, "A")[0] == pytest.approx((2 - 1) / 2 + 1 / 2 * a)
    after_a = model.score(model.start, "A")[1]
    assert 10 ** model.score(after_a, END)[0] == pytest.approx((1 - 0.5) / 2 + (0.5 + 0.5) / 2 * end)
    assert 10 ** model.score(after_a, "A")[0] == pytest.approx((0.5 + 0.5) / 2 * a)  # unseen: backed off


def test_discounts_by_hand():
    counts = [1] * 10 + [2] * 5 + [3] * 3 + [4] * 2 + [9]
    d1, d2, d3 = discounts(np.array(counts))[0]
    assert (d1, d2, d3) == pytest.approx((0.5, 2 - 3 * 0.5 * 3 / 5, 3 - 4 * 0.5 * 2 / 3))
    assert discounts(np.array([1, 1, 2])) == (FALLBACK, False)
    assert discounts(np.array([1] * 9 + [2] + [3] * 9 + [4])) == (FALLBACK, False)  # would take more than there is


def test_the_file_is_the_model_and_the_same_every_time(tmp_path):
    sentences = [list("ABCAB"), list("BCA"), list("CCAB")] * 3
    model = train(sentences, 3).model
    model.write(tmp_path / "one.arpa")
    train(list(sentences), 3).model.write(tmp_path / "two.arpa")
    assert (tmp_path / "one.arpa").read_bytes() == (tmp_path / "two.arpa").read_bytes()
    again = Ngram.read(tmp_path / "one.arpa")
    for text in ("A B C", "C", "B Z A", ""):
        assert again.sentence(text.split()) == pytest.approx(model.sentence(text.split()), abs=1e-5)
    assert again.order == 3
    for state in range(again.starts[-2]):
        assert math.fsum(10 ** again.score(state, w)[0] for w in again.words if w != START) == pytest.approx(
            1, abs=1e-5
        )


def test_texts_are_read_by_the_vocabularys_rule(tmp_path):
    (tmp_path / "a.txt").write_text("Don't stop, now!\n\n  \nand GO\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("packed text\n")
    row = {"id": "1", "audio": "a.wav", "num_samples": 1, "sample_rate": 1}
    (tmp_path / "c.jsonl").write_text(json.dumps(row | {"text": "from a manifest"}) + "\n" + json.dumps(row) + "\n")
    files = [tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "c.jsonl"]
    found = [" ".join(words) for words in read_texts(files, case="upper", punctuation="strip")]
    assert found == ["DON'T STOP NOW", "AND GO", "PACKED TEXT", "FROM A MANIFEST"]


def test_no_words_and_bad_files(tmp_path):
    with pytest.raises(TextError, match="no words"):
        train([[], []], 3)
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "no.txt.gz").write_bytes(b"plain")
    (tmp_path / "no.jsonl").write_text("what\n")
    for name, reason in (
        ("latin.txt", "not UTF-8"),
        ("no.txt.gz", "not a whole gzip"),
        ("no.jsonl", "line 1: not a manifest's line"),
        ("none.txt", "no such text"),
    ):
        with pytest.raises(TextError, match=reason):
            list(read_texts([tmp_path / name], case="upper", punctuation="strip"))
