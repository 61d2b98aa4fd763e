"""When each word was said, by the best path of CTC. Shapes: F frames, V tokens with the blank at 0."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from speechssl.data.tokens import Tokenizer


@dataclass(frozen=True)
class Word:
    """A word and its first and last moment, in seconds. CTC fires once per letter: the end is that of its last one."""

    text: str
    start: float
    end: float


def words_of(log_probs: np.ndarray, tokenizer: Tokenizer, seconds_per_frame: float) -> list[Word]:
    """The words of the best token of each frame, log_probs (F, V), in time.

    They are the words of `speechssl.asr.decode.greedy`.
    """
    spans: list[tuple[int, int, int]] = []  # token, first frame, frame behind the last
    frame = 0
    for token, run in itertools.groupby(log_probs.argmax(-1).tolist()):
        count = len(list(run))
        if token:
            spans.append((token, frame, frame + count))
        frame += count
    words = []
    for places in tokenizer.words([token for token, _, _ in spans]):
        group = [spans[place] for place in places]
        if text := tokenizer.decode([token for token, _, _ in group]):
            words.append(Word(text, group[0][1] * seconds_per_frame, group[-1][2] * seconds_per_frame))
    return words
