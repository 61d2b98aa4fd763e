"""Small classifiers on frozen features. scikit-learn fits them; only the learned sum over layers is ours.

Shapes: N utterances, D features, K classes, L layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from speechssl.errors import UserError

Kind = Literal["linear", "hidden"]
LINEAR = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation (scikit-learn's C) to choose from, strongest first
HIDDEN = (1.0, 0.1, 0.01)  # weight decay (scikit-learn's alpha) to choose from, strongest first
WITHOUT_CHOICE = {"linear": 1.0, "hidden": 0.1}  # where there are too few labels to hold some out
HELD_OUT = 0.2  # share of the training labels on which the choice is made


@dataclass(frozen=True)
class Answer:
    """What a classifier said, and how it came to be.

    Attributes:
        accuracy: on the test set.
        strength: the chosen C or alpha.
        held_out: accuracy on the held-out part of train, from which the strength was chosen; None: nothing to hold out.
        weights: of the layers in a learned sum; else empty.
    """

    accuracy: float
    strength: float
    held_out: float | None
    weights: tuple[float, ...] = ()


def wilson(accuracy: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share of `count` independent trials (Wilson 1927)."""
    centre = accuracy + z * z / (2 * count)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    low, high = ((centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def hold_out(labels: np.ndarray, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """(N,) bool: a fifth of every class that has two or more; classes of one stay in training.

    groups: (N,) names of speakers; a fifth of the groups is held out instead, if every class stays in training.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        names = generator.permutation(np.unique(groups))
        held = np.isin(groups, names[: max(1, round(HELD_OUT * len(names)))])
        if set(labels[~held]) == set(labels):
            return held
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held[members[: max(1, round(HELD_OUT * len(members)))]] = True
    return held


def classify(
    kind: Kind,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    groups: np.ndarray | None = None,
    hidden_dim: int = 256,
    seed: int = 0,
) -> Answer:
    """Multinomial logistic regression ("linear") or one hidden layer ("hidden") on standardised features.

    The regularisation is chosen on a held-out part of train, then the whole of train is fitted; test only measures.

    Args:
        train, test: features (N, D) and labels (N,).
        groups: (N,) of train; see `hold_out`.
        seed: of the held-out part and of the hidden layer.
    """
    return _choose(lambda strength: _pipeline(kind, strength, hidden_dim, seed), kind, train, test, groups, seed)


def classify_layer_sum(
    train: tuple[Mapping[str, np.ndarray], np.ndarray],
    test: tuple[Mapping[str, np.ndarray], np.ndarray],
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Answer:
    """A learned softmax-weighted sum of the layers and logistic regression on it (SUPERB, Yang et al. 2021).

    As every layer's mean over time is standardised before, this is their weighted sum of frames, then averaged; of
    deviations the sum is taken as well. Layers must have the same number of features.
    """
    stacked = [(np.stack(list(layers.values()), 1), labels) for layers, labels in (train, test)]  # (N, L, D)
    return _choose(LayerSumClassifier, "linear", stacked[0], stacked[1], groups, seed)


def _choose(make: Callable[[float], Any], kind: Kind, train, test, groups: np.ndarray | None, seed: int) -> Answer:
    features, labels = train
    held = hold_out(labels, seed, groups)
    strength, best = WITHOUT_CHOICE[kind], None
    if held.any():
        for candidate in LINEAR if kind == "linear" else HIDDEN:
            score = float(_fit(make(candidate), features[~held], labels[~held]).score(features[held], labels[held]))
            if best is None or score > best:  # of equals the strongest regularisation
                strength, best = candidate, score
    model = _fit(make(strength), features, labels)
    weights = tuple(getattr(model, "weights_", ()))
    return Answer(float(model.score(*test)), strength, best, weights)


def _fit(model, features: np.ndarray, labels: np.ndarray):
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the held-out part judges where a fit has stopped
        warnings.filterwarnings("ignore", message="The number of unique classes")  # few labels are wanted
        return model.fit(features, labels)


def _pipeline(kind: Kind, strength: float, hidden_dim: int, seed: int):
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UserError("probes need scikit-learn: pip install 'speechssl[probe]'") from None
    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    return make_pipeline(
        StandardScaler(), MLPClassifier((hidden_dim,), alpha=strength, max_iter=100, random_state=seed)
    )


class LayerSumClassifier:
    """Logistic regression on a learned sum of layers, with scikit-learn's interface and its meaning of C."""

    def __init__(self, strength: float):
        self.strength = strength

    def fit(self, features: np.ndarray, labels: Sequence) -> LayerSumClassifier:
        """features: (N, L, D). Minimises C x summed cross-entropy + half the squared weights, by L-BFGS."""
        self.classes_, targets = np.unique(labels, return_inverse=True)
        self.mean_, self.scale_ = features.mean(0), features.std(0).clip(min=1e-6)
        x, y = self._standardise(features), torch.from_numpy(targets)
        mix = torch.zeros(x.shape[1], requires_grad=True)
        weight = torch.zeros(len(self.classes_), x.shape[2], requires_grad=True)
        bias = torch.zeros(len(self.classes_), requires_grad=True)
        optimizer = torch.optim.LBFGS([mix, weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            logits = torch.einsum("l,nld->nd", mix.softmax(0), x) @ weight.T + bias
            fit = torch.nn.functional.cross_entropy(logits, y)
            loss = fit + weight.square().sum() / (2 * self.strength * len(y))
            loss.backward()
            return loss

        optimizer.step(closure)
        self.mix_ = mix.detach().softmax(0)
        self.weights_, self.coef_, self.intercept_ = self.mix_.tolist(), weight.detach(), bias.detach()
        return self

    def score(self, features: np.ndarray, labels: Sequence) -> float:
        """Share of right answers."""
        summed = torch.einsum("l,nld->nd", self.mix_, self._standardise(features))
        answers = (summed @ self.coef_.T + self.intercept_).argmax(-1).numpy()
        return float((self.classes_[answers] == np.asarray(labels)).mean())

    def _standardise(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((features - self.mean_) / self.scale_).astype(np.float32))
