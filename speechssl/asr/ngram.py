"""`Ngram`: a back-off word n-gram in flat arrays, read from and written to ARPA files (plain or gzip).

Every n-gram is a node of one tree. Node 0 is the empty history; the node of `history w` is the child of `history` by
the word w, found by its key `history * words + w` in one sorted array. So 150 million n-grams take 4 GB and no object
each. N nodes, W words. Probabilities are logarithms to base 10, as in the files.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from speechssl.errors import UserError
from speechssl.files import whole_file

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
NEVER = -99.0  # log10 of a probability of zero, as the format has it
CACHE = 1_000_000  # scores remembered


class ArpaError(UserError):
    """A language model that cannot be read. The message names the file, the line and the reason."""


@dataclass(eq=False)
class Ngram:
    """A back-off n-gram.

    Attributes:
        words: by word id; `<unk>`, `<s>` and `</s>` are among them.
        starts: first node of each order, and N: order k has the nodes starts[k - 1] to starts[k] - 1.
        keys: (N,) int64, ascending; keys[0] = -1 is the empty history.
        log_probs: (N,) log10 of P(last word | the words before it).
        backoffs: (N,) log10 of the weight with which a history passes on to the shorter one.
        suffixes: (N,) the node of the longest n-gram in the model that the node's words end in.
    """

    words: tuple[str, ...]
    starts: tuple[int, ...]
    keys: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray
    suffixes: np.ndarray
    ids: dict[str, int] = field(init=False, repr=False)
    _seen: dict[int, tuple[float, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        self.ids = {word: i for i, word in enumerate(self.words)}

    @property
    def order(self) -> int:
        return len(self.starts) - 1

    @property
    def start(self) -> int:
        """The state at the beginning of a sentence."""
        return 1 + self.ids[START]

    def score(self, state: int, word: str) -> tuple[float, int]:
        """log10 P(word | state), and the state after it. A word that the model lacks counts as `<unk>`."""
        word_id = self.ids.get(word, self.ids[UNKNOWN])
        key = state * len(self.words) + word_id
        if (known := self._seen.get(key)) is not None:
            return known
        if len(self._seen) >= CACHE:
            self._seen.clear()
        result = self._seen[key] = self._score(state, word_id)
        return result

    def _score(self, state: int, word_id: int) -> tuple[float, int]:
        passed_on = 0.0
        while True:
            node = self._child(state, word_id)
            if node:
                break
            passed_on += float(self.backoffs[state])
            state = int(self.suffixes[state])
        after = node if node < self.starts[-2] else int(self.suffixes[node])  # no history is as long as the order
        return passed_on + float(self.log_probs[node]), after

    def _child(self, state: int, word_id: int) -> int:
        """The node, or 0. Every word has a unigram, so that state 0 always has one."""
        if state >= self.starts[-2]:
            return 0
        key = state * len(self.words) + word_id
        node = int(np.searchsorted(self.keys, key))
        return node if node < len(self.keys) and self.keys[node] == key else 0

    def sentence(self, words: Sequence[str]) -> float:
        """log10 P(words and the end of the sentence)."""
        total, state = 0.0, self.start
        for word in (*words, END):
            log_prob, state = self.score(state, word)
            total += log_prob
        return total

    # ------------------------------------------------------------------------------------------------------- files

    @classmethod
    def read(cls, path: str | Path) -> Ngram:
        """Reads an ARPA file; one that ends in .gz is unpacked on the way. Raises ArpaError with file and line."""
        path = Path(path)
        if not path.is_file():
            raise ArpaError(f"{path}: no such language model; make one with `speechssl lm train`.")
        lines = _Lines(path)
        try:
            with open_text(path) as file:
                lines.file = file
                return _Reader(lines).read()
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise ArpaError(f"{path}: damaged or cut short; fetch or make it again.") from None
        except UnicodeDecodeError:
            raise ArpaError(f"{path}, after line {lines.number}: not UTF-8 text; is it an ARPA file?") from None

    def write(self, path: str | Path) -> None:
        """Writes an ARPA file whole or not at all; the same model gives the same bytes."""
        with whole_file(path) as file:
            file.write("\\data\\\n")
            for k in range(1, self.order + 1):
                file.write(f"ngram {k}={self.starts[k] - self.starts[k - 1]}\n")
            names = [""]  # of the nodes of the order before
            for k in range(1, self.order + 1):
                file.write(f"\n\\{k}-grams:\n")
                names = self._write_order(file, k, names)
            file.write("\n\\end\\\n")

    def _write_order(self, file: IO[str], k: int, histories: list[str]) -> list[str]:
        first, last = self.starts[k - 1], self.starts[k]
        before = self.starts[k - 2] if k > 1 else 0
        parents, words = np.divmod(self.keys[first:last], len(self.words))
        names = []
        for i, (parent, word) in enumerate(zip(parents.tolist(), words.tolist(), strict=True), first):
            names.append(f"{histories[parent - before]} {self.words[word]}".lstrip())
            backoff = f"\t{self.backoffs[i]:.7g}" if k < self.order else ""
            file.write(f"{self.log_probs[i]:.7g}\t{names[-1]}{backoff}\n")
        return names


# -------------------------------------------------------------------------------------------------------------- reading


def open_text(path: Path) -> IO[str]:
    """A text file to read; one that ends in .gz is unpacked on the way."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


class _Lines:
    """The lines of a file that are not empty, stripped; `number` is that of the last one."""

    def __init__(self, path: Path):
        self.path, self.number = path, 0
        self.file: IO[str] | None = None

    def __iter__(self) -> Iterator[str]:
        assert self.file is not None
        for line in self.file:
            self.number += 1
            if line := line.strip():
                yield line
        raise self.error("the file ends before \\end\\")

    def error(self, reason: str) -> ArpaError:
        return ArpaError(f"{self.path}, line {self.number}: {reason}; is it a whole ARPA file?")


class _Reader:
    """Reads order by order: a node's parent and suffix lie in the orders before."""

    def __init__(self, lines: _Lines):
        self.lines = lines
        self.ids: dict[str, int] = {}
        self.keys = np.array([-1])
        self.log_probs = self.backoffs = np.zeros(1, np.float32)
        self.suffixes = np.zeros(1, np.int64)
        self.starts = [1]

    def read(self) -> Ngram:
        rows = iter(self.lines)
        counts, heading = self._counts(rows)
        for k, count in enumerate(counts, 1):
            if heading != f"\\{k}-grams:":
                raise self.lines.error(f"expected \\{k}-grams:, found '{heading[:40]}'")
            heading = self._order(rows, k, count)
        if heading != "\\end\\":
            raise self.lines.error(f"expected \\end\\, found '{heading[:40]}'")
        arrays = (self.keys, self.log_probs, self.backoffs, self.suffixes)
        return Ngram(tuple(self.ids), tuple(self.starts), *arrays)

    def _counts(self, rows: Iterator[str]) -> tuple[list[int], str]:
        for line in rows:
            if line == "\\data\\":
                break
        counts: list[int] = []
        for line in rows:
            if line.startswith("\\"):
                break
            parts = re.fullmatch(rf"ngram {len(counts) + 1}\s*=\s*(\d+)", line)
            if parts is None:
                raise self.lines.error(f"expected 'ngram {len(counts) + 1}=COUNT', found '{line[:40]}'")
            counts.append(int(parts[1]))
        if not counts:
            raise self.lines.error("no n-grams are announced")
        return counts, line

    def _order(self, rows: Iterator[str], k: int, count: int) -> str:
        """Reads `count` n-grams of k words each. Returns the heading after them."""
        log_probs, backoffs, words, heading = array("f"), array("f"), array("i"), ""
        for line in rows:
            if line.startswith("\\"):
                heading = line
                break
            parts = line.split()
            try:
                log_probs.append(float(parts[0]))
                backoffs.append(float(parts[k + 1]) if len(parts) > k + 1 else 0.0)
                if k == 1:
                    words.append(self.ids.setdefault(parts[1], len(self.ids)))
                else:
                    words.extend([self.ids[word] for word in parts[1 : k + 1]])
            except (ValueError, IndexError):
                raise self.lines.error(f"expected a number, {k} words and perhaps a number") from None
            except KeyError as error:
                raise self.lines.error(f"the word '{error.args[0]}' has no unigram") from None
            if len(words) != k * len(log_probs):
                raise self.lines.error(f"expected a number, {k} words and perhaps a number")
        if len(log_probs) != count:
            raise self.lines.error(f"{count} {k}-grams were announced, {len(log_probs)} are there")
        if k == 1:
            self._add_missing(log_probs, backoffs, words)
        table = np.frombuffer(words, np.int32).reshape(-1, k).astype(np.int64)
        self._add(table, np.frombuffer(log_probs, np.float32), np.frombuffer(backoffs, np.float32))
        return heading

    def _add_missing(self, log_probs: array, backoffs: array, words: array) -> None:
        if len(self.ids) != len(words):
            raise self.lines.error("a word has two unigrams")
        for word in (START, END):
            if word not in self.ids:
                raise self.lines.error(f"no unigram of {word}: these are not sentences")
        if UNKNOWN not in self.ids:  # a model of a closed vocabulary
            words.append(self.ids.setdefault(UNKNOWN, len(self.ids)))
            log_probs.append(NEVER)
            backoffs.append(0.0)

    def _add(self, words: np.ndarray, log_probs: np.ndarray, backoffs: np.ndarray) -> None:
        """Adds the n-grams of one order: words (n, k)."""
        parents = np.zeros(len(words), np.int64)
        for column in words.T[:-1]:
            parents = find(self.keys, parents * len(self.ids) + column)
            if not parents.all():
                missing = " ".join(np.array(list(self.ids))[words[np.flatnonzero(parents == 0)[0]]])
                raise self.lines.error(f"the history of '{missing}' is not in the file")
        keys = parents * len(self.ids) + words[:, -1]
        by_key = np.argsort(keys, kind="stable")
        keys, parents, last = keys[by_key], parents[by_key], words[by_key, -1]
        if (keys[1:] == keys[:-1]).any():
            raise self.lines.error(f"a {words.shape[1]}-gram is there twice")
        suffixes = longest_suffix(self.keys, self.suffixes, parents, last, len(self.ids))
        self.keys = np.concatenate([self.keys, keys])
        self.log_probs = np.concatenate([self.log_probs, log_probs[by_key]])
        self.backoffs = np.concatenate([self.backoffs, backoffs[by_key]])
        self.suffixes = np.concatenate([self.suffixes, suffixes])
        self.starts.append(len(self.keys))


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions (n,) of `wanted` (n,) in ascending `keys`; 0 where it is not there."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    return np.where(keys[at] == wanted, at, 0)


def longest_suffix(
    keys: np.ndarray, suffixes: np.ndarray, parents: np.ndarray, last: np.ndarray, num_words: int
) -> np.ndarray:
    """For new nodes (n,), children of `parents` by the words `last`: the longest proper suffix that has a node."""
    result, state = np.zeros(len(parents), np.int64), parents.copy()
    open_ = np.flatnonzero(parents)  # a unigram's only suffix is the empty history
    while len(open_):
        state[open_] = suffixes[state[open_]]
        found = find(keys, state[open_] * num_words + last[open_])
        result[open_] = found
        open_ = open_[(found == 0) & (state[open_] != 0)]
    return result
