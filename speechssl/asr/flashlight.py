"""flashlight-text's lexicon decoder (the extra `[lm]`): the beam search of `beam` in C++, ten times as fast.

It spells listed words only. Its beam differs in two small ways: an alignment that ends in a blank takes a place of its
own, and texts with the same last words are merged. https://github.com/flashlight/text
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from speechssl.asr.beam import BeamConfig, Hypothesis
from speechssl.asr.lexicon import Words, WordScorer
from speechssl.asr.ngram import UNKNOWN
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError

IMPOSSIBLE = -1e4  # log probability; flashlight computes in floats


class FlashlightError(UserError):
    """What flashlight-text cannot do, or that it is not installed."""


class FlashlightDecoder:
    """Decodes one utterance at a time, with the settings and results of `BeamDecoder`.

    Args:
        lm_path: the ARPA file, which KenLM (part of flashlight-text) reads itself.
        scorer: of the same language model, to say what each text is worth.

    Raises:
        FlashlightError: not installed, a sentencepiece vocabulary, no list of words, or words outside it allowed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        lm_path: str | Path | None,
        words: Words | None,
        scorer: WordScorer,
        config: BeamConfig,
    ):
        try:
            from flashlight.lib.text import decoder as flashlight
            from flashlight.lib.text.decoder.kenlm import KenLM
            from flashlight.lib.text.dictionary import create_word_dict
        except ImportError:
            raise FlashlightError(
                "flashlight-text is not installed: pip install speechssl[lm]; or leave out --decoder flashlight."
            ) from None
        if tokenizer.kind != "letters":
            raise FlashlightError("--decoder flashlight needs a vocabulary of letters; use --decoder beam.")
        if words is None or config.unknown_score is not None:
            raise FlashlightError(
                "--decoder flashlight spells listed words only: give --lm or --words and no --unknown-score, "
                "or use --decoder beam."
            )
        self.scorer, self.boundary = scorer, tokenizer.boundary
        self.names = create_word_dict({word: [[word]] for word in (*words.words, UNKNOWN)})
        lm = flashlight.ZeroLM() if lm_path is None else KenLM(str(lm_path), self.names)
        trie = flashlight.Trie(len(tokenizer), self.boundary)
        for word, log_prob in zip(words.words, words.log_probs.tolist(), strict=True):
            trie.insert([*tokenizer.encode(word), self.boundary], self.names.get_index(word), log_prob)
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=config.beam,
            beam_size_token=len(tokenizer),
            beam_threshold=config.beam_margin,
            lm_weight=config.lm_weight,
            word_score=config.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=flashlight.CriterionType.CTC,
        )
        unknown = self.names.get_index(UNKNOWN)
        self._held = (lm, trie)  # the decoder does not keep them alive
        self.decoder = flashlight.LexiconDecoder(options, trie, lm, self.boundary, 0, unknown, [], False)

    def decode(self, log_probs: np.ndarray, nbest: int = 1) -> list[Hypothesis]:
        """The best texts of log_probs (F, V), best first, all different; at most `nbest`, at least one."""
        end = np.full((1, log_probs.shape[1]), IMPOSSIBLE, np.float32)
        end[0, self.boundary] = 0.0  # its words end in a boundary, which our transcripts do not have after the last
        frames = np.ascontiguousarray(np.concatenate([np.maximum(log_probs, IMPOSSIBLE), end]), np.float32)
        scores: dict[tuple[str, ...], float] = {}
        for result in self.decoder.decode(frames.ctypes.data, *frames.shape):
            words = tuple(self.names.get_entry(word) for word in result.words if word >= 0)
            scores[words] = float(np.logaddexp(scores.get(words, -math.inf), result.score))
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:nbest]
        return [self._hypothesis(words, score) for words, score in ranked]

    def _hypothesis(self, words: tuple[str, ...], score: float) -> Hypothesis:
        value, lm = self.scorer.text_value(words)
        return Hypothesis(" ".join(words), score, score - value, lm)
