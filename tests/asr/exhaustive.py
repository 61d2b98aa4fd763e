"""What the beam search must find: every alignment of a few frames written out, and texts valued word by word."""

from __future__ import annotations

import itertools
import math

import numpy as np

from speechssl.asr.ngram import UNKNOWN, Ngram
from speechssl.data.tokens import Tokenizer


def acoustic_scores(log_probs: np.ndarray, tokenizer: Tokenizer) -> dict[str, float]:
    """ln P(text) of every text that (F, V) can spell, by walking through all V ** F paths."""
    sums: dict[str, float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(float(log_probs[f, token]) for f, token in enumerate(path))
        text = tokenizer.decode([t for before, t in zip((0, *path), path, strict=False) if t and t != before])
        sums[text] = float(np.logaddexp(sums.get(text, -math.inf), score))
    return sums


def value(text: str, lm: Ngram | None, listed: set[str] | None, config) -> float:
    """What the words are worth, by the definition; -inf if one of them must not be spelt."""
    words = text.split()
    unknown = [listed is not None and word not in listed for word in words]
    if any(unknown) and config.unknown_score is None:
        return -math.inf
    log_prob = lm.sentence([UNKNOWN if out else word for word, out in zip(words, unknown, strict=True)]) if lm else 0.0
    return config.lm_weight * log_prob + config.word_score * len(words) + sum(unknown) * (config.unknown_score or 0.0)


def ranking(log_probs: np.ndarray, tokenizer: Tokenizer, lm=None, listed=None, config=None) -> list[tuple[str, float]]:
    """All texts that may be spelt with their scores, best first."""
    scores = {t: s + value(t, lm, listed, config) for t, s in acoustic_scores(log_probs, tokenizer).items()}
    return sorted(((t, s) for t, s in scores.items() if s > -math.inf), key=lambda item: (-item[1], item[0]))
