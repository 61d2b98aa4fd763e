"""Classifiers: known intervals, regularisation that test never chooses, and the sum over layers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from speechssl.probe.classify import (
    HIDDEN,
    LINEAR,
    LayerSumClassifier,
    classify,
    classify_layer_sum,
    hold_out,
    wilson,
)


def clouds(count: int, dim: int = 5, classes: int = 3, apart: float = 4.0, seed: int = 0):
    """Features (N, D) around one centre per class, and labels."""
    centres = apart * np.random.default_rng(99).standard_normal((classes, dim))
    generator = np.random.default_rng(seed)
    labels = np.array([f"class{i % classes}" for i in range(count)])
    numbers = np.arange(count) % classes
    return (centres[numbers] + generator.standard_normal((count, dim))).astype(np.float32), labels


def test_wilson_against_known_intervals():
    # Newcombe (1998), method 3: 81 of 263, 15 of 148, 0 of 20, 29 of 29
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1.0, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_wilson_covers():
    generator, share, count = np.random.default_rng(0), 0.83, 150
    bounds = [wilson(right / count, count) for right in generator.binomial(count, share, size=2000)]
    covered = np.mean([low <= share <= high for low, high in bounds])
    assert 0.93 < covered < 0.97


def test_held_out_is_a_fifth_of_each_class():
    labels = np.array(list("a" * 10 + "b" * 2 + "c"))
    held = hold_out(labels, 0)
    assert [int(held[labels == name].sum()) for name in "abc"] == [2, 1, 0]
    assert not np.array_equal(held, hold_out(labels, 1))


def test_whole_speakers_are_held_out():
    labels, groups = np.array(list("ab" * 10)), np.repeat(list("vwxyz"), 4)
    held = hold_out(labels, 0, groups)
    assert held.sum() == 4
    assert len(set(groups[held])) == 1
    assert not set(groups[held]) & set(groups[~held])
    own = np.where(labels == "a", "v", "w")  # each class by one speaker: holding one out would lose the class
    assert np.array_equal(hold_out(labels, 0, own), hold_out(labels, 0))


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_clouds_are_told_apart(kind):
    answer = classify(kind, clouds(60), clouds(60, seed=1), hidden_dim=16)
    assert answer.accuracy > 0.95
    assert answer.strength in (LINEAR if kind == "linear" else HIDDEN)
    assert answer.held_out is not None


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_noise_is_not(kind):
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((300, 5)).astype(np.float32), clouds(300)[1]
    answer = classify(kind, (features[:150], labels[:150]), (features[150:], labels[150:]), hidden_dim=16)
    assert answer.accuracy < 0.5


def test_a_hidden_layer_learns_what_a_line_cannot():
    generator = np.random.default_rng(0)
    features = generator.uniform(-1, 1, (600, 2)).astype(np.float32)
    labels = np.where((features[:, 0] > 0) == (features[:, 1] > 0), "same", "other")
    parts = (features[:400], labels[:400]), (features[400:], labels[400:])
    assert classify("linear", *parts).accuracy < 0.65
    assert classify("hidden", *parts).accuracy > 0.85


def test_only_train_chooses():
    """Other test labels change the accuracy and nothing else."""
    train, test = clouds(60, apart=0.7), clouds(60, apart=0.7, seed=1)
    answer = classify("linear", train, test)
    other = classify("linear", train, (test[0], np.roll(test[1], 1)))
    assert (answer.strength, answer.held_out) == (other.strength, other.held_out)
    assert answer.accuracy > other.accuracy


def test_one_label_of_each_class_has_nothing_to_hold_out():
    answer = classify("linear", clouds(3), clouds(60, seed=1))
    assert answer.held_out is None
    assert answer.strength == 1.0
    assert answer.accuracy > 0.9


def test_a_sum_of_one_layer_is_logistic_regression():
    features, labels = clouds(90, apart=0.7)
    test = clouds(200, apart=0.7, seed=1)
    own = LayerSumClassifier(0.1).fit(features[:, None], labels)
    scaler = StandardScaler().fit(features)
    known = LogisticRegression(C=0.1, tol=1e-6).fit(scaler.transform(features), labels)
    centred = known.coef_ - known.coef_.mean(0)  # scikit-learn's weights, up to what softmax does not see
    np.testing.assert_allclose(own.coef_ - own.coef_.mean(0), centred, atol=2e-3)
    assert own.score(test[0][:, None], test[1]) == pytest.approx(
        known.score(scaler.transform(test[0]), test[1]), abs=0.01
    )


def test_the_sum_finds_the_layer_that_knows():
    features, labels = clouds(120)
    test, truth = clouds(60, seed=1)
    noise = np.random.default_rng(5)

    def layers(known):
        return {"0": noise.standard_normal(known.shape), "1": known, "2": noise.standard_normal(known.shape)}

    answer = classify_layer_sum((layers(features), labels), (layers(test), truth), seed=0)
    assert answer.accuracy > 0.95
    assert sum(answer.weights) == pytest.approx(1.0)
    assert int(np.argmax(answer.weights)) == 1
