"""Two weights chosen on a dev set: a coarse grid, then steps from its best point that become smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rapidfuzz.distance import Levenshtein

WEIGHTS = (0.5, 1.5, 2.5, 3.5)
BONUSES = (-2.0, 0.0, 2.0)
STEPS = (0.5, 0.25)


@dataclass(frozen=True)
class Trial:
    """One pair of weights and its errors on the dev set."""

    weight: float
    bonus: float
    word_errors: int
    letter_errors: int

    @property
    def errors(self) -> tuple[int, int]:
        """Fewer is better; letters decide where words are equal."""
        return self.word_errors, self.letter_errors


@dataclass(frozen=True)
class Tuned:
    """The best trial (the first of equals) and all of them, in the order of the search."""

    best: Trial
    trials: tuple[Trial, ...]
    words: int

    def record(self) -> dict:
        """Plain data for a result file."""
        return {
            "wer": self.best.word_errors / max(self.words, 1),
            "words": self.words,
            "trials": [asdict(trial) for trial in self.trials],
        }


def tune(
    decode: Callable[[float, float], Sequence[str]],
    references: Sequence[str],
    *,
    weights: Sequence[float] = WEIGHTS,
    bonuses: Sequence[float] = BONUSES,
    steps: Sequence[float] = STEPS,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Searches the weights with the fewest word errors. The same input gives the same weights.

    Args:
        decode: (weight of a language model, word bonus) -> the texts of all utterances.
        references: their true texts.
        weights, bonuses: the grid. Weights never go below 0.
        steps: how far the search then goes from the best point, along each axis, as long as that is better.
        tell: called after each trial.
    """
    trials: dict[tuple[float, float], Trial] = {}

    def attempt(weight: float, bonus: float) -> Trial:
        if (weight, bonus) not in trials:
            trial = Trial(weight, bonus, *count_errors(decode(weight, bonus), references))
            trials[weight, bonus] = trial
            tell(trial)
        return trials[weight, bonus]

    best = min((attempt(weight, bonus) for weight in weights for bonus in bonuses), key=lambda t: t.errors)
    for step in steps:
        while True:
            around = ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step))
            places = [(best.weight + w, best.bonus + b) for w, b in around if best.weight + w >= 0]
            found = min((attempt(*place) for place in places), key=lambda t: t.errors)
            if found.errors >= best.errors:
                break
            best = found
    return Tuned(best, tuple(trials.values()), sum(len(text.split()) for text in references))


def count_errors(texts: Sequence[str], references: Sequence[str]) -> tuple[int, int]:
    """Word errors and letter errors of all texts together."""
    pairs = list(zip(texts, references, strict=True))
    words = sum(Levenshtein.distance(text.split(), reference.split()) for text, reference in pairs)
    return words, sum(Levenshtein.distance(text, reference) for text, reference in pairs)
