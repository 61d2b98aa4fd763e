"""The search of two weights: it finds the best of a bowl, tries nothing twice and is the same every time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.asr.tune import count_errors, tune

REFERENCE = ["A " * 100]


def bowl(weight: float, bonus: float):
    """Texts whose number of errors grows with the distance from the point."""

    def decode(w, b):
        wrong = round(10 * (abs(w - weight) + 0.5 * abs(b - bonus)))
        return ["B " * min(wrong, 100) + "A " * (100 - min(wrong, 100))]

    return decode


@given(weight=st.integers(0, 20), bonus=st.integers(-14, 14))
@settings(max_examples=30, deadline=None)
def test_it_finds_the_bottom_of_a_bowl(weight, bonus):
    seen = []
    tuned = tune(bowl(weight / 4, bonus / 4), REFERENCE, tell=lambda trial: seen.append((trial.weight, trial.bonus)))
    assert (tuned.best.weight, tuned.best.bonus) == (weight / 4, bonus / 4)
    assert tuned.best.word_errors == 0
    assert len(seen) == len(set(seen)) == len(tuned.trials)
    assert min(w for w, _ in seen) >= 0


def test_letters_decide_between_equal_words():
    tuned = tune(lambda w, b: ["CAR" if w == 1.5 else "DOG"], ["CAT"])
    assert (tuned.best.weight, tuned.best.bonus) == (1.5, -2.0)  # the first of equals
    assert tuned.record()["wer"] == 1.0


def test_errors_are_counted_in_words_and_letters():
    assert count_errors(["A B", "CAT"], ["A C B", "CUT"]) == (2, 3)
    with pytest.raises(ValueError, match="zip"):
        count_errors(["A"], [])
