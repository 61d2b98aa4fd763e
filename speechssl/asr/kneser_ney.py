"""Modified Kneser-Ney n-grams (Chen and Goodman 1999, "An empirical study of smoothing techniques", section 3).

Interpolated, written as a back-off model: a seen n-gram's probability holds the share of the lower order already, and
a history's back-off weight is that share. Deterministic. Texts of some ten million words fit in memory.

Below the highest order an n-gram is counted by the number of different words before it; n-grams that begin with
`<s>`, which has none, by their occurrences. The unigrams share with a uniform distribution over all words, `<unk>` and
`</s>`.

Shapes: P positions of the text, n n-grams of one order.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from speechssl.asr.ngram import END, NEVER, START, UNKNOWN, Ngram, open_text
from speechssl.data.tokens import normalize_text
from speechssl.errors import UserError

FALLBACK = (0.5, 1.0, 1.5)  # where the counts are too few to estimate discounts from


class TextError(UserError):
    """Text that no language model can be made from. The message names the file."""


@dataclass(frozen=True)
class Trained:
    """The model and, for each order, its discounts of counts 1, 2 and 3 or more; `guessed`: orders with FALLBACK."""

    model: Ngram
    discounts: tuple[tuple[float, float, float], ...]
    guessed: tuple[int, ...]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order (n,): their node in the tree is first + position."""

    first: int
    keys: np.ndarray  # parent * words + last word, ascending
    parents: np.ndarray
    suffixes: np.ndarray
    after_start: np.ndarray  # begins with <s>
    counts: np.ndarray  # occurrences; below the highest order replaced by numbers of different words before


def train(sentences: Iterable[Sequence[str]], order: int) -> Trained:
    """Estimates a model from sentences of words. Raises TextError: no words."""
    assert order >= 1
    sentences = [kept for s in sentences if (kept := [word for word in s if word not in (START, END)])]
    names = set(chain.from_iterable(sentences))
    if not names - {UNKNOWN}:
        raise TextError("the text holds no words.")
    words = (UNKNOWN, START, END, *sorted(names - {UNKNOWN}))
    ids = {word: i for i, word in enumerate(words)}
    stream = np.fromiter(chain.from_iterable((1, *(ids[w] for w in s), 2) for s in sentences), np.int64)
    orders = list(_count(stream, order, len(words)))

    suffixes = np.concatenate([np.zeros(1, np.int64), *(o.suffixes for o in orders)])
    probs, backoffs = np.zeros(len(suffixes)), np.ones(len(suffixes))
    probs[0] = 1 / (len(words) - 1)  # the uniform distribution below the unigrams; <s> is never predicted
    all_discounts, guessed = [], []
    for k, level in enumerate(orders, 1):
        steps, estimated = discounts(level.counts)
        all_discounts.append(steps)
        guessed += [] if estimated else [k]
        taken = np.array([0.0, *steps])[np.minimum(level.counts, 3)]
        totals = np.bincount(level.parents, level.counts, minlength=level.first)
        shares = np.bincount(level.parents, taken, minlength=level.first) / np.maximum(totals, 1)
        here = slice(level.first, level.first + len(level.keys))
        probs[here] = (level.counts - taken) / totals[level.parents]
        probs[here] += shares[level.parents] * probs[level.suffixes]
        seen = totals > 0
        backoffs[: level.first][seen] = shares[seen]
    probs[0] = 1
    with np.errstate(divide="ignore"):
        log_probs = np.log10(probs)
    log_probs[1 + 1] = NEVER  # <s>
    model = Ngram(
        words=words,
        starts=(*(o.first for o in orders), len(suffixes)),
        keys=np.concatenate([np.array([-1]), *(o.keys for o in orders)]),
        log_probs=log_probs,
        backoffs=np.log10(backoffs),
        suffixes=suffixes,
    )
    return Trained(model, tuple(all_discounts), tuple(guessed))


def discounts(counts: np.ndarray) -> tuple[tuple[float, float, float], bool]:
    """What is taken from counts of 1, 2 and 3 or more (equation 26), and whether they could be estimated.

    With n_r n-grams seen r times and Y = n_1 / (n_1 + 2 n_2): r - (r + 1) Y n_(r+1) / n_r. Small or artificial texts
    lack some n_r, or give values outside 0 to r: then FALLBACK.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float).tolist()
    if not all(n):
        return FALLBACK, False
    share = n[0] / (n[0] + 2 * n[1])
    d1, d2, d3 = (r - (r + 1) * share * n[r] / n[r - 1] for r in (1, 2, 3))
    estimated = 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3
    return ((d1, d2, d3), True) if estimated else (FALLBACK, False)


def _count(stream: np.ndarray, order: int, num_words: int) -> Iterator[_Order]:
    """Counts n-grams of 1 to `order` words in `stream` (P,), sentences one behind the other with <s> and </s>."""
    levels = []
    nodes = 1 + stream  # of the n-gram that starts at each position; of no meaning where it would leave its sentence
    inside = np.ones(len(stream), bool)
    unigrams = np.arange(num_words)
    levels.append(
        _Order(
            first=1,
            keys=unigrams,
            parents=np.zeros(num_words, np.int64),
            suffixes=np.zeros(num_words, np.int64),
            after_start=unigrams == 1,
            counts=np.where(unigrams == 1, 0, np.bincount(stream, minlength=num_words)),
        )
    )
    for k in range(2, order + 1):
        before = nodes
        inside = inside[:-1] & (stream[k - 2 : -1] != 2)
        keys = before[: len(inside)] * num_words + stream[k - 1 :]
        at = np.flatnonzero(inside)
        unique, first_at, inverse, counts = np.unique(
            keys[at], return_index=True, return_inverse=True, return_counts=True
        )
        first = levels[-1].first + len(levels[-1].keys)
        nodes = np.zeros(len(inside), np.int64)
        nodes[at] = first + inverse
        places = at[first_at]
        levels.append(
            _Order(
                first=first,
                keys=unique,
                parents=unique // num_words,
                suffixes=before[places + 1],
                after_start=stream[places] == 1,
                counts=counts,
            )
        )
    for level, above in zip(levels, [*levels[1:], None], strict=True):
        if above is None:
            yield level
        else:
            different = np.bincount(above.suffixes - level.first, minlength=len(level.keys))
            counts = np.where(level.after_start, level.counts, different)
            yield _Order(level.first, level.keys, level.parents, level.suffixes, level.after_start, counts)


# ----------------------------------------------------------------------------------------------------------------- text


def read_texts(paths: Sequence[str | Path], *, case: str, punctuation: str) -> Iterator[list[str]]:
    """Sentences of words from text files (a sentence a line; .gz is unpacked) and manifests (.jsonl: transcripts).

    case, punctuation: the vocabulary's rule, see `Tokenizer`. Raises TextError.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise TextError(f"{path}: no such text.")
        number = 0
        try:
            with open_text(path) as file:
                for line in file:
                    number += 1
                    text = line if ".jsonl" not in path.suffixes else json.loads(line).get("text") or ""
                    if words := normalize_text(text, case, punctuation).split():
                        yield words
        except UnicodeDecodeError:
            raise TextError(f"{path}, after line {number}: not UTF-8 text.") from None
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise TextError(f"{path}: not a whole gzip file; fetch or pack it again.") from None
        except (ValueError, AttributeError):
            raise TextError(f"{path}, line {number}: not a manifest's line.") from None
