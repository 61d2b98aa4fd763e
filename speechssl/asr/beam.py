"""CTC prefix beam search (Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using
bi-directional recurrent DNNs") with words valued by a `WordScorer`. NumPy only.

Every text is scored by the sum over all its alignments that stay in the beam. The work of a frame is done on whole
arrays; Python touches only the prefixes that are new in the beam.

Shapes: F frames, V tokens with the blank at 0, B prefixes in the beam, K tokens that are likely in a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from speechssl.asr.lexicon import NEVER, WordScorer
from speechssl.data.tokens import Tokenizer

REMEMBERED = 50_000  # prefixes, before those are forgotten that nothing in the beam grew out of
FORGOTTEN = -1  # state of a prefix that left the beam, until it comes back


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Numbers of the search. Acoustic scores are natural logarithms.

    The language model's count to base 10, as ARPA files hold them: so published weights of wav2vec 2.0 fit as they
    are (for its Base model fine-tuned on 10 hours 2.46 and -0.59, on 10 minutes 3.23 and -0.26).

    Attributes:
        beam: prefixes kept.
        beam_margin: a prefix whose score lies further than this below the best is dropped.
        token_margin: in each frame, tokens whose log probability lies further below the best token's are not tried.
        lm_weight: of the log10 probabilities of words.
        word_score: added for each word.
        unknown_score: added for each word that is not in the list; None forbids such words.
    """

    beam: int = 50
    beam_margin: float = 25.0
    token_margin: float = 10.0
    lm_weight: float = 2.5
    word_score: float = -0.5
    unknown_score: float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A text and its score = acoustic + lm_weight * lm + word_score * words (+ unknown_score for unlisted words).

    Attributes:
        acoustic: ln P(text | audio), summed over alignments.
        lm: log10 P(words and end of sentence); 0 without a language model.
    """

    text: str
    score: float
    acoustic: float
    lm: float


@dataclass
class _Beam:
    """Prefixes (B,) and the log of the sum over their alignments that end in a blank, and in their last token."""

    nodes: list[int]
    states: np.ndarray
    last: np.ndarray  # last token; the word boundary at the start, where another one changes nothing
    parent_at: np.ndarray  # position of the prefix less its last token in the beam, or -1
    blank: np.ndarray
    token: np.ndarray


class BeamDecoder:
    """Decodes one utterance at a time."""

    def __init__(self, tokenizer: Tokenizer, scorer: WordScorer, config: BeamConfig):
        self.tokenizer, self.scorer, self.config = tokenizer, scorer, config
        self.boundary = tokenizer.boundary

    def decode(self, log_probs: np.ndarray, nbest: int = 1) -> list[Hypothesis]:
        """The best texts of log_probs (F, V), best first, all different; at most `nbest`, at least one."""
        tree = _Tree(self.scorer)
        beam = self._first(tree)
        for frame in np.asarray(log_probs, np.float64):
            beam = self._advance(tree, beam, frame)
            if len(tree.states) > tree.most:
                beam = self._forget(tree, beam)
        return self._finish(tree, beam)[:nbest]

    def _first(self, tree: _Tree) -> _Beam:
        one = np.zeros(1)
        last = np.array([max(self.boundary, 0)])
        return _Beam([0], np.array(tree.states), last, np.array([-1]), one, one + NEVER)

    def _advance(self, tree: _Tree, beam: _Beam, frame: np.ndarray) -> _Beam:
        total = np.logaddexp(beam.blank, beam.token)
        at_boundary = beam.last == self.boundary
        blank = total + frame[0]
        token = np.where(at_boundary, total, beam.token) + frame[beam.last]  # two boundaries are one

        likely = np.flatnonzero(frame >= frame.max() - self.config.token_margin)
        likely = likely[likely > 0]
        if not len(likely):
            return _Beam(beam.nodes, beam.states, beam.last, beam.parent_at, blank, token)
        longer = total[:, None] + frame[likely] + self.scorer.rows[beam.states[:, None], likely]  # (B, K)

        column = np.full(len(frame), -1)
        column[likely] = np.arange(len(likely))
        repeats = column[beam.last]  # the same token again is a new one only after a blank
        at = np.flatnonzero(repeats >= 0)
        longer[at, repeats[at]] += np.where(at_boundary[at], NEVER, beam.blank[at] - total[at])
        at = np.flatnonzero((beam.parent_at >= 0) & (repeats >= 0))  # what a parent grows into is in the beam already
        parents, columns = beam.parent_at[at], repeats[at]
        token[at] = np.logaddexp(token[at], longer[parents, columns])
        longer[parents, columns] = NEVER
        return self._select(tree, beam, blank, token, longer, likely)

    def _select(
        self,
        tree: _Tree,
        beam: _Beam,
        blank: np.ndarray,
        token: np.ndarray,
        longer: np.ndarray,
        likely: np.ndarray,
    ) -> _Beam:
        """The best of the prefixes that stay (B,) and of those that grow (B, K)."""
        stay = len(blank)
        scores = np.concatenate([np.logaddexp(blank, token), longer.ravel()])
        keep = np.flatnonzero((scores >= scores.max() - self.config.beam_margin) & (scores > NEVER))
        if len(keep) > self.config.beam:
            best = np.argpartition(-scores[keep], self.config.beam - 1)[: self.config.beam]
            keep = np.sort(keep[best])
        old = keep[keep < stay]
        grown = keep[len(old) :] - stay
        rows, columns = np.divmod(grown, len(likely))
        tokens = likely[columns]
        new = [tree.child(beam.nodes[i], t) for i, t in zip(rows.tolist(), tokens.tolist(), strict=True)]
        nodes = [beam.nodes[i] for i in old.tolist()] + new
        position = {node: i for i, node in enumerate(nodes)}
        return _Beam(
            nodes,
            np.concatenate([beam.states[old], np.array([tree.states[node] for node in new], np.int64)]),
            np.concatenate([beam.last[old], tokens]),
            np.array([position.get(tree.parents[node], -1) for node in nodes]),
            np.concatenate([blank[old], np.full(len(grown), NEVER)]),
            np.concatenate([token[old], scores[grown + stay]]),
        )

    def _forget(self, tree: _Tree, beam: _Beam) -> _Beam:
        """Keeps memory in proportion to the text, however long the audio is; changes no result."""
        states = self.scorer.again(beam.states)
        return replace(beam, nodes=tree.keep(beam.nodes, states), states=states)

    def _finish(self, tree: _Tree, beam: _Beam) -> list[Hypothesis]:
        totals = np.logaddexp(beam.blank, beam.token)
        ends = np.array([self.scorer.end(state) for state in beam.states.tolist()])
        whole = bool(np.isfinite(totals + ends).any())
        if not whole:  # every prefix stops within a word that no list holds: what is whole is all there is
            ends = np.array([self.scorer.abandon(state) for state in beam.states.tolist()])
        scores: dict[tuple[str, ...], float] = {}  # two spellings of a text, and a boundary at its end, are one
        for node, score in zip(beam.nodes, (totals + ends).tolist(), strict=True):
            if score > NEVER:
                words = tree.words(node, whole)
                scores[words] = float(np.logaddexp(scores.get(words, NEVER), score))
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return [self._hypothesis(words, score) for words, score in ranked]

    def _hypothesis(self, words: tuple[str, ...], score: float) -> Hypothesis:
        value, lm = self.scorer.text_value(words)
        return Hypothesis(" ".join(words), score, score - value, lm)


class _Tree:
    """The prefixes met so far in an utterance, as numbers. 0 is the empty one."""

    def __init__(self, scorer: WordScorer):
        self.scorer = scorer
        self.states, self.parents, self.tokens = [scorer.start()], [-1], [0]
        self.children: dict[tuple[int, int], int] = {}
        self.most = REMEMBERED

    def keep(self, nodes: list[int], states: np.ndarray) -> list[int]:
        """Forgets all but these prefixes, whose states are given, and what they grew out of.

        Returns their new numbers, in the same order.
        """
        known = dict(zip(nodes, states.tolist(), strict=True))
        kept: set[int] = {0}
        for node in nodes:
            while node not in kept:
                kept.add(node)
                node = self.parents[node]
        order = sorted(kept)  # a parent comes before its children
        number = {node: i for i, node in enumerate(order)}
        self.states = [known.get(node, FORGOTTEN) for node in order]
        self.parents = [number.get(self.parents[node], -1) for node in order]
        self.tokens = [self.tokens[node] for node in order]
        pairs = zip(self.parents[1:], self.tokens[1:], strict=True)
        self.children = {pair: node for node, pair in enumerate(pairs, 1)}
        self.most = max(REMEMBERED, 2 * len(order))
        return [number[node] for node in nodes]

    def child(self, node: int, token: int) -> int:
        known = self.children.get((node, token))
        if known is None:
            known = self.children[node, token] = len(self.states)
            self.states.append(self.scorer.after(self.states[node], token))
            self.parents.append(node)
            self.tokens.append(token)
        elif self.states[known] == FORGOTTEN:
            self.states[known] = self.scorer.after(self.states[node], token)
        return known

    def words(self, node: int, whole: bool) -> tuple[str, ...]:
        """The words of a prefix; `whole` False leaves out the last one, if it is started only."""
        tokens = []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        words = [""]
        for token in reversed(tokens):
            if self.scorer.ends_word[token]:
                words.append("")
            words[-1] += self.scorer.letters[token] or ""
        return tuple(word for word in (words if whole else words[:-1]) if word)
