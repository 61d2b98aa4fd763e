"""The beam search against a walk through every alignment, with and without a language model and a word list."""

import math
import random

import numpy as np
import pytest
import torch
from exhaustive import acoustic_scores, ranking
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.asr.beam import BeamConfig, BeamDecoder
from speechssl.asr.decode import greedy
from speechssl.asr.kneser_ney import train
from speechssl.asr.lexicon import Words, WordScorer
from speechssl.data.tokens import Tokenizer

LETTERS = Tokenizer.train(["ab"])  # blank | A B
SPELT = ("A", "B", "AB", "BA", "AA")
EVERYTHING = {"beam": 10**6, "beam_margin": math.inf, "token_margin": math.inf}


def make(config, lm=None, listed=None, tokenizer=LETTERS) -> BeamDecoder:
    words = None if listed is None else Words.of(listed, lm, tokenizer)
    numbers = {name: getattr(config, name) for name in ("lm_weight", "word_score", "unknown_score")}
    return BeamDecoder(tokenizer, WordScorer(tokenizer, lm, words, **numbers), config)


def random_log_probs(seed: int, frames: int, tokens: int = 4, sharpness: float = 1.0) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(tokens, 0.8 / sharpness), size=frames) + 1e-30)


def random_lm(seed: int, order: int = 2):
    generator = random.Random(seed)
    return train([[generator.choice(SPELT) for _ in range(3)] for _ in range(6)], order).model


@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 5),
    order=st.sampled_from([0, 1, 2, 3]),
    listed=st.sampled_from([None, ("AB", "B"), SPELT]),
    lm_weight=st.floats(0, 4),
    word_score=st.floats(-3, 3),
    unknown_score=st.none() | st.floats(-5, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_wide_beam_is_the_exhaustive_search(seed, frames, order, listed, lm_weight, word_score, unknown_score):
    lm = random_lm(seed, order) if order else None
    config = BeamConfig(**EVERYTHING, lm_weight=lm_weight, word_score=word_score, unknown_score=unknown_score)
    log_probs = random_log_probs(seed, frames)
    found = make(config, lm, listed).decode(log_probs, nbest=10**6)
    expected = ranking(log_probs, LETTERS, lm, None if listed is None else set(listed), config)
    assert [h.score for h in found] == pytest.approx([score for _, score in expected], abs=1e-7)
    acoustic = acoustic_scores(log_probs, LETTERS)
    assert {h.text: h.acoustic for h in found} == pytest.approx(
        {text: acoustic[text] for text, _ in expected}, abs=1e-7
    )
    for h in found:
        assert h.lm == pytest.approx(0.0 if lm is None else lm.sentence(in_list(h.text, listed)))


def in_list(text, listed):
    return [word if listed is None or word in listed else "<unk>" for word in text.split()]


def test_sentencepiece_texts_are_exact_too():
    tokenizer = Tokenizer.train(["ab ba", "b ab ab"], kind="sentencepiece", size=8)
    log_probs = random_log_probs(3, 4, len(tokenizer))
    log_probs[:, 1] = -1e9  # sentencepiece's own unknown, which no transcript holds
    listed = ("AB", "BA", "B")
    lm = train([["AB", "BA"], ["B", "AB"], ["AB"]], 2).model
    config = BeamConfig(**EVERYTHING, lm_weight=1.3, word_score=0.4, unknown_score=-2.0)
    found = make(config, lm, listed, tokenizer).decode(log_probs, nbest=10**6)
    expected = [item for item in ranking(log_probs, tokenizer, lm, set(listed), config) if item[1] > -1e8]
    assert {h.text: h.score for h in found} == pytest.approx(dict(expected), abs=1e-6)


@given(seed=st.integers(0, 10**6), frames=st.integers(1, 40), beam=st.sampled_from([1, 3, 20]))
@settings(max_examples=40, deadline=None)
def test_lists_are_sorted_distinct_and_never_better_than_all_alignments(seed, frames, beam):
    lm = random_lm(seed)
    found = make(BeamConfig(beam=beam), lm, SPELT).decode(random_log_probs(seed, frames, sharpness=3), nbest=beam)
    assert 1 <= len(found) <= beam
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({h.text for h in found}) == len(found)
    assert set(" ".join(h.text for h in found).split()) <= set(SPELT)


@given(data=st.data(), frames=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_a_beam_of_one_is_greedy_where_the_model_is_sure(data, frames):
    best = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=frames, max_size=frames)))
    log_probs = torch.log(torch.nn.functional.one_hot(best, 4).float() * 0.96 + 0.01)
    config = BeamConfig(beam=1, word_score=0.0)
    [only] = make(config).decode(log_probs.numpy())
    assert only.text == greedy(log_probs[None], torch.tensor([frames]), LETTERS)[0]


@given(seed=st.integers(0, 10**6), frames=st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_without_a_language_model_it_is_at_least_as_likely_as_greedy(seed, frames):
    log_probs = torch.tensor(random_log_probs(seed, frames))
    text = greedy(log_probs[None], torch.tensor([frames]), LETTERS)[0]
    found = make(BeamConfig(beam=200, word_score=0.0, token_margin=50.0, beam_margin=50.0)).decode(
        log_probs.numpy(), 200
    )
    ids = torch.tensor([LETTERS.encode(text)])
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None], ids, torch.tensor([frames]), torch.tensor([ids.shape[1]]), reduction="sum"
    )
    assert found[0].score >= -loss.item() - 1e-6


def test_pruning_does_not_change_a_clear_answer():
    tokens = LETTERS.encode("AB BA AA B")
    path = [token for i in tokens for token in (i, 0)]
    log_probs = np.log(np.eye(4)[path] * 0.9 + 0.025)
    for config in (BeamConfig(), BeamConfig(beam=3, beam_margin=6.0, token_margin=4.0)):
        assert make(config, random_lm(0), SPELT).decode(log_probs)[0].text == "AB BA AA B"


def test_a_word_that_audio_cuts_off_is_dropped():
    log_probs = np.log(np.eye(4)[[2, 3, 1, 2, 2]] * 0.999 + 0.00025)  # AB|A
    config = BeamConfig(beam=1)
    assert make(config, None, ("AB", "AA")).decode(log_probs)[0].text == "AB"


def test_no_frames_and_silence_are_the_empty_text():
    assert make(BeamConfig()).decode(np.zeros((0, 4)))[0].text == ""
    log_probs = np.log(np.eye(4)[[0, 1, 0, 1, 1]] * 0.96 + 0.01)
    assert make(BeamConfig(), random_lm(1), SPELT).decode(log_probs)[0].text == ""


def test_remembered_states_do_not_change_texts(monkeypatch):
    from speechssl.asr import lexicon

    items = [random_log_probs(seed, 20, sharpness=2) for seed in range(12)]
    config, lm = BeamConfig(unknown_score=-3.0), random_lm(2, 3)
    one_by_one = [make(config, lm, SPELT).decode(item) for item in items]
    decoder = make(config, lm, SPELT)
    assert [decoder.decode(item) for item in items] == one_by_one
    monkeypatch.setattr(lexicon, "REMEMBERED", 40)  # forgets after each utterance
    decoder = make(config, lm, SPELT)
    assert [decoder.decode(item) for item in items] == one_by_one


@pytest.mark.parametrize("listed", [None, SPELT])
def test_a_search_that_forgets_finds_the_same(monkeypatch, listed):
    """Long audio: prefixes that nothing in the beam grew out of, and the states of their words, are let go."""
    from speechssl.asr import beam, lexicon

    items = [random_log_probs(seed, 150, sharpness=1.5) for seed in range(3)]
    config, lm = BeamConfig(beam=8, unknown_score=-3.0), random_lm(2, 3)
    whole = [make(config, lm, listed).decode(item, 8) for item in items]
    monkeypatch.setattr(beam, "REMEMBERED", 0)
    monkeypatch.setattr(lexicon, "REMEMBERED", 0)
    forgotten, keep = [], beam._Tree.keep

    def kept(tree, nodes, states):
        before = len(tree.states)
        numbers = keep(tree, nodes, states)
        forgotten.append(before - len(tree.states))
        return numbers

    monkeypatch.setattr(beam._Tree, "keep", kept)
    assert [make(config, lm, listed).decode(item, 8) for item in items] == whole
    assert sum(number > 0 for number in forgotten) > 10
