"""`WordScorer`: what each next token is worth to the words spelt so far, by a language model and a list of words.

A word's probability is known only when it ends. So that the search need not wait for it, a started word is worth what
the best word that it can become is worth (by unigram), and ending it exchanges that for the true value. The sum over
a whole text is exact.

V tokens. States are numbers; each stands for a history of the language model and the letters of the started word.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechssl.asr.ngram import END, START, UNKNOWN, Ngram
from speechssl.data.tokens import BOUNDARY, SPACE_MARK, Tokenizer
from speechssl.errors import UserError

LAST = chr(0x10FFFF)  # sorts behind every letter
OUTSIDE = "\0"  # stands for a started word that no word of the list begins with
REMEMBERED = 8_000_000  # scores kept between utterances
NEVER = -math.inf


class LexiconError(UserError):
    """Words that cannot be spelt or read. The message says which and what to do."""


@dataclass(frozen=True)
class Words:
    """The words that may be spelt, sorted, and what each is worth at least: its unigram's log10 probability."""

    words: tuple[str, ...]
    log_probs: np.ndarray

    @classmethod
    def of(cls, names: Iterable[str], lm: Ngram | None, tokenizer: Tokenizer) -> Words:
        """Those of `names` that the vocabulary can spell. Raises LexiconError: none of them."""
        names = sorted(set(names) - {START, END, UNKNOWN})
        spelt = tuple(name for name in names if not tokenizer.unknown(name) and tokenizer.normalize(name) == name)
        if not spelt:
            raise LexiconError(
                f"not one of {len(names)} words ({', '.join(names[:3])}, ...) can be spelt with the vocabulary "
                f"(case {tokenizer.case}, punctuation {tokenizer.punctuation}); make the list or the language model "
                "from text by the same rule."
            )
        return cls(spelt, np.array([lm.score(0, name)[0] if lm else 0.0 for name in spelt]))

    def best(self, letters: str) -> float:
        """The largest log10 probability of a word that begins with `letters`; -inf if none does."""
        first, last = bisect_left(self.words, letters), bisect_left(self.words, letters + LAST)
        return float(self.log_probs[first:last].max()) if first < last else NEVER

    def __contains__(self, word: str) -> bool:
        at = bisect_left(self.words, word)
        return at < len(self.words) and self.words[at] == word


def read_words(path: str | Path) -> list[str]:
    """The first word of each line. Raises LexiconError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise LexiconError(f"{path}: no such list of words.") from None
    except UnicodeDecodeError:
        raise LexiconError(f"{path}: not UTF-8 text; a list of words has one a line.") from None
    return [line.split()[0] for line in lines if line.strip()]


class WordScorer:
    """Scores of next tokens, and the states that they lead to.

    The value of words is lm_weight * log10 P(word | history) + word_score for each, and unknown_score besides for
    each that is not in `words`.

    Args:
        tokenizer: what the tokens spell.
        lm: a language model or None (all words are equally likely).
        words: the words that may be spelt, or None: any.
        unknown_score: None forbids every other word; a number lets them be spelt and is added for each.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        lm: Ngram | None,
        words: Words | None,
        *,
        lm_weight: float,
        word_score: float,
        unknown_score: float | None,
    ):
        self.lm, self.words = lm, words
        self.lm_weight, self.word_score, self.unknown_score = lm_weight, word_score, unknown_score
        self.ends_word, self.letters = spelling(tokenizer)
        self.forbidden = np.array([text is None for text in self.letters])
        self._ahead: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self.keys: list[tuple[int, str]] = []  # state -> history, started word
        self.rows = np.empty((256, len(self.letters)))  # state -> scores (V,)
        self._states: dict[tuple[int, str], int] = {}
        self._after: dict[int, int] = {}
        self._continue: dict[str, np.ndarray] = {}

    def start(self) -> int:
        """The state before the first token of an utterance. States of earlier utterances are void."""
        if len(self.keys) * len(self.letters) > REMEMBERED:
            self._forget()
        return self._state((self.lm.start if self.lm else 0, ""))

    def again(self, states: np.ndarray) -> np.ndarray:
        """These states (B,) after all others were forgotten, where there are many: for long utterances."""
        if len(self.keys) * len(self.letters) <= REMEMBERED:
            return states
        keys = [self.keys[state] for state in states.tolist()]
        self._forget()
        return np.array([self._state(key) for key in keys], np.int64)

    def after(self, state: int, token: int) -> int:
        """The state that a token leads to."""
        key = state * len(self.letters) + token
        known = self._after.get(key)
        if known is None:
            history, word = self.keys[state]
            letters = self.letters[token] or ""
            if self.ends_word[token]:
                history, word = self._history_after(history, word), ""
            known = self._after[key] = self._state((history, self._extend(word, letters)))
        return known

    def end(self, state: int) -> float:
        """What ending the utterance here adds; -inf within a word that must not be left unfinished."""
        history, word = self.keys[state]
        value = self._close(history, word)
        if self.lm is not None and value > NEVER:
            value += self.lm_weight * self.lm.score(self._history_after(history, word), END)[0]
        return value

    def abandon(self, state: int) -> float:
        """What ending the utterance here adds when the started word is dropped."""
        history, word = self.keys[state]
        return self.end(self._state((history, ""))) - self._value_ahead(word)

    def text_value(self, text: Sequence[str]) -> tuple[float, float]:
        """For the words of a whole text: the value that they add, and log10 P of the language model (0 without)."""
        unknown = [not self._is_listed(word) for word in text]
        log_prob = 0.0
        if self.lm is not None:
            log_prob = self.lm.sentence([UNKNOWN if out else word for word, out in zip(text, unknown, strict=True)])
        value = self.lm_weight * log_prob + self.word_score * len(text) + (self.unknown_score or 0.0) * sum(unknown)
        return value, log_prob

    # --------------------------------------------------------------------------------------------------- internals

    def _state(self, key: tuple[int, str]) -> int:
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = len(self.keys)
            self.keys.append(key)
            if state == len(self.rows):
                self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
            self.rows[state] = self._row(*key)
        return state

    def _row(self, history: int, word: str) -> np.ndarray:
        row = self._continuing(word)
        ending = self._close(history, word)
        return np.where(self.ends_word, ending + self._continuing(""), row)

    def _continuing(self, word: str) -> np.ndarray:
        """(V,): what each token's letters change in the value ahead of a started word."""
        row = self._continue.get(word)
        if row is None:
            here = self._value_ahead(word)
            values = [self._value_ahead(self._extend(word, letters or "")) for letters in self.letters]
            row = self._continue[word] = np.where(self.forbidden, NEVER, np.array(values) - here)
        return row

    def _extend(self, word: str, letters: str) -> str:
        if self.words is None:
            return word + letters if self.lm else (word or letters)[:1]  # all words are alike, but an empty one
        longer = OUTSIDE if word == OUTSIDE else word + letters
        return longer if not longer or self.words.best(longer) > NEVER else OUTSIDE

    def _value_ahead(self, word: str) -> float:
        value = self._ahead.get(word)
        if value is None:
            value = self._ahead[word] = self._find_value_ahead(word)
        return value

    def _find_value_ahead(self, word: str) -> float:
        if not word or self.words is None:
            return 0.0
        best = self.words.best(word)
        value = self.lm_weight * best if best > NEVER else NEVER
        return value if self.unknown_score is None else max(value, self._unknown_value())

    def _unknown_value(self) -> float:
        log_prob = self.lm.score(0, UNKNOWN)[0] if self.lm else 0.0
        return self.lm_weight * log_prob + (self.unknown_score or 0.0)

    def _close(self, history: int, word: str) -> float:
        """The value of ending a started word here, less what was given ahead; 0 if none is started."""
        if not word:
            return 0.0
        listed = self._is_listed(word)
        if not listed and self.unknown_score is None:
            return NEVER
        value = self.word_score + (0.0 if listed else self.unknown_score or 0.0)
        if self.lm is not None:
            value += self.lm_weight * self.lm.score(history, word if listed else UNKNOWN)[0]
        return value - self._value_ahead(word)

    def _history_after(self, history: int, word: str) -> int:
        if self.lm is None or not word:
            return history
        return self.lm.score(history, word if self._is_listed(word) else UNKNOWN)[1]

    def _is_listed(self, word: str) -> bool:
        return self.words is None or word in self.words


def spelling(tokenizer: Tokenizer) -> tuple[np.ndarray, list[str | None]]:
    """For each token (V,): does it end the word before it, and which letters it adds; None: it is no text."""
    if tokenizer.kind == "letters":
        letters: list[str | None] = [None, "", *tokenizer.symbols[2:]]
        return np.array([symbol == BOUNDARY for symbol in tokenizer.symbols]), letters
    pieces = [None, None, *tokenizer.symbols[2:]]  # 0 is the blank, 1 sentencepiece's unknown
    ends = np.array([piece is not None and piece.startswith(SPACE_MARK) for piece in pieces])
    return ends, [None if piece is None else piece.removeprefix(SPACE_MARK) for piece in pieces]
