"""Beam searches over many utterances: what was asked for, loaded once, shared out over processes.

No torch here: a process that searches starts in a fraction of a second.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechssl.asr.beam import BeamConfig, BeamDecoder, Hypothesis
from speechssl.asr.flashlight import FlashlightDecoder
from speechssl.asr.lexicon import Words, WordScorer, read_words
from speechssl.asr.ngram import Ngram
from speechssl.data.scan import cores
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError

WORTH_A_PROCESS = 40  # utterances


class DecodeError(UserError):
    """What cannot be decoded. The message names the checkpoint, the manifest or the option and what to do."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How log probabilities become texts.

    Attributes:
        decoder: "greedy": the best token of each frame; "beam": our own search; "flashlight": the one in C++.
        lm: an ARPA file; its words are the ones that may be spelt, unless config.unknown_score allows others.
        words: a file with a word a line, which may be spelt instead of the language model's.
        config: numbers of the search.
        nbest: texts kept for each utterance.
    """

    decoder: Literal["greedy", "beam", "flashlight"] = "greedy"
    lm: str | None = None
    words: str | None = None
    config: BeamConfig = field(default_factory=BeamConfig)
    nbest: int = 1

    def __post_init__(self):
        if self.decoder == "greedy" and (self.lm or self.words or self.nbest > 1):
            raise DecodeError("--lm, --words and --nbest need --decoder beam or flashlight; greedy knows one text.")
        if self.config.beam < self.nbest:
            raise DecodeError(f"--nbest {self.nbest} needs a --beam at least as large, not {self.config.beam}.")

    def record(self) -> dict[str, Any]:
        """Plain data, with the checksums of the files: what a result file keeps."""
        if self.decoder == "greedy":
            return {"decoder": "greedy"}
        files = {name: path and {"path": path, "sha256": sha256(path)} for name, path in self._files().items()}
        return {"decoder": self.decoder, "nbest": self.nbest, **files, **asdict(self.config)}

    def _files(self) -> dict[str, str | None]:
        return {"lm": self.lm, "words": self.words}


def sha256(path: str | Path) -> str:
    """In hex. Raises DecodeError: no such file."""
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise DecodeError(f"{path}: no such file.") from None
    return digest.hexdigest()


class Search:
    """Loads the language model and the words; makes decoders. Can be sent to other processes.

    Raises ArpaError, LexiconError, FlashlightError.
    """

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding):
        self.tokenizer, self.decoding = tokenizer, decoding
        self.lm = Ngram.read(decoding.lm) if decoding.lm else None
        names = read_words(decoding.words) if decoding.words else self.lm.words if self.lm else None
        self.words = Words.of(names, self.lm, tokenizer) if names is not None else None

    def decoder(self, config: BeamConfig) -> BeamDecoder | FlashlightDecoder:
        scorer = WordScorer(
            self.tokenizer,
            self.lm,
            self.words,
            lm_weight=config.lm_weight,
            word_score=config.word_score,
            unknown_score=config.unknown_score,
        )
        if self.decoding.decoder == "flashlight":
            return FlashlightDecoder(self.tokenizer, self.decoding.lm, self.words, scorer, config)
        return BeamDecoder(self.tokenizer, scorer, config)


class Searchers:
    """Processes that search; a context manager.

    Args:
        jobs: processes; 0: one per core. Few utterances are searched in this process alone.
        utterances: how many there will be.
    """

    def __init__(self, search: Search, *, jobs: int, utterances: int):
        self.jobs = max(1, min(jobs or cores(), utterances // WORTH_A_PROCESS))
        self.pool = None
        search.decoder(search.decoding.config)  # says now what does not fit
        if self.jobs > 1:  # spawned: a fork would copy torch's threads in whatever state they are
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_start, initargs=(search,))
        else:
            _start(search)

    def __enter__(self) -> Searchers:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def decode(self, log_probs: Sequence[np.ndarray], config: BeamConfig, nbest: int = 1) -> list[list[Hypothesis]]:
        """The best texts of each utterance, log_probs (F, V)."""
        task = functools.partial(_decode, config, nbest)
        if self.pool is None:
            return [task(item) for item in log_probs]
        return list(self.pool.map(task, log_probs, chunksize=4))


_search: Search  # of this process
_decoders: dict[BeamConfig, BeamDecoder | FlashlightDecoder] = {}


def _start(search: Search) -> None:
    global _search
    _search = search
    _decoders.clear()


def _decode(config: BeamConfig, nbest: int, log_probs: np.ndarray) -> list[Hypothesis]:
    if np.isnan(log_probs).any():
        raise DecodeError("the model answers with numbers that are none (nan): its training diverged.")
    if config not in _decoders:
        _decoders.clear()
        _decoders[config] = _search.decoder(config)
    return _decoders[config].decode(log_probs, nbest)
