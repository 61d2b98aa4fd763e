"""Our search and flashlight's, at equal settings, on noisy spellings of sentences."""

import random

import numpy as np
import pytest

from speechssl.asr.beam import BeamConfig
from speechssl.asr.flashlight import FlashlightDecoder, FlashlightError
from speechssl.asr.kneser_ney import train
from speechssl.asr.search import Decoding, Search
from speechssl.asr.tune import count_errors
from speechssl.data.tokens import Tokenizer

WORDS = "the a dog cat house mouse ran sat on in and under old new red bird sang to me he she it".upper().split()
LETTERS = Tokenizer.train([" ".join(WORDS)])


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    train([[generator.choice(WORDS) for _ in range(generator.randint(2, 7))] for _ in range(200)], 3).model.write(path)
    return str(path)


def noisy(text: str, seed: int) -> np.ndarray:
    """Log probabilities (F, V) in which the best letters spell `text` with errors."""
    generator = np.random.default_rng(seed)
    path = [token for i in LETTERS.encode(text) for token in (*(i, i, 0)[: generator.integers(1, 4)], 0)]
    logits = 4.0 * np.eye(len(LETTERS))[path] + generator.normal(size=(len(path), len(LETTERS))) * 1.3
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def sentences(count: int) -> list[str]:
    generator = random.Random(1)
    return [" ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 6))) for _ in range(count)]


def decoders(arpa, **numbers):
    config = BeamConfig(lm_weight=1.5, word_score=-0.3, **numbers)
    return [Search(LETTERS, Decoding(decoder=name, lm=arpa)).decoder(config) for name in ("beam", "flashlight")]


def test_a_wide_beam_gives_the_same_texts_and_scores(arpa):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text (the [lm] extra) is missing")
    for decoded in zip(*(map(d.decode, spelt(8)) for d in decoders(arpa, beam=600, beam_margin=40.0)), strict=True):
        ours, theirs = (found[0] for found in decoded)
        assert ours.text == theirs.text
        assert theirs.score == pytest.approx(ours.score, abs=0.05)  # floats, and alignments lost by either
        assert theirs.lm == ours.lm


def spelt(count):
    return [noisy(text, seed) for seed, text in enumerate(sentences(count))]


def test_word_errors_are_equal_at_the_default_settings(arpa):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text (the [lm] extra) is missing")
    references = sentences(60)
    ours, theirs = ([d.decode(item)[0].text for item in spelt(60)] for d in decoders(arpa))
    words = sum(len(text.split()) for text in references)
    errors = [count_errors(texts, references)[0] / words for texts in (ours, theirs)]
    assert 0.02 < errors[0] < 0.6  # neither trivial nor hopeless
    assert abs(errors[0] - errors[1]) <= 0.012  # two words of some 200
    assert np.mean([a == b for a, b in zip(ours, theirs, strict=True)]) >= 0.9


def test_lists_are_sorted_and_distinct(arpa):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text (the [lm] extra) is missing")
    _, theirs = decoders(arpa)
    found = theirs.decode(noisy("THE OLD DOG SANG", 3), nbest=8)
    assert 1 < len(found) <= 8
    assert len({h.text for h in found}) == len(found)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for h in found:
        assert h.score == pytest.approx(h.acoustic + 1.5 * h.lm - 0.3 * len(h.text.split()))


def test_what_it_cannot_do(arpa, monkeypatch):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text (the [lm] extra) is missing")
    search = Search(LETTERS, Decoding(decoder="flashlight", lm=arpa))
    with pytest.raises(FlashlightError, match="listed words only"):
        search.decoder(BeamConfig(unknown_score=-1.0))
    pieces = Tokenizer.train([" ".join(WORDS)], kind="sentencepiece", size=40)
    with pytest.raises(FlashlightError, match="vocabulary of letters"):
        FlashlightDecoder(pieces, arpa, search.words, None, BeamConfig())


def test_not_installed_is_one_sentence(arpa, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flashlight.lib.text", None)
    with pytest.raises(FlashlightError, match=r"pip install speechssl\[lm\]"):
        Search(LETTERS, Decoding(decoder="flashlight", lm=arpa)).decoder(BeamConfig())
