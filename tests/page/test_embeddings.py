"""Nearest neighbours against loops; which utterances are chosen."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import UserError
from speechssl.page.choosing import balanced, examples
from speechssl.page.embeddings import _fitted, _plane, neighbours


@given(st.integers(3, 25), st.integers(1, 4), st.integers(0, 99))
def test_neighbours_against_loops(count, classes, seed):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((count, 3))
    labels = generator.integers(0, classes, count).astype(str)
    hits, pairs = 0, 0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        nearest = min(others, key=lambda j: float(((vectors[i] - vectors[j]) ** 2).sum()))
        hits += labels[nearest] == labels[i]
        pairs += sum(labels[j] == labels[i] for j in others)
    share, chance = neighbours(vectors, labels)
    assert share == pytest.approx(hits / count)
    assert chance == pytest.approx(pairs / (count * (count - 1)))


def test_a_map_fits_its_square_without_bending():
    places = _fitted(np.array([[0.0, 5.0], [10.0, 5.0], [5.0, 7.0]]))
    np.testing.assert_allclose(places, [[3, 40.6], [97, 40.6], [50, 59.4]])


@pytest.mark.parametrize(("method", "library", "extra"), [("tsne", "sklearn", "report"), ("umap", "umap", "umap")])
def test_groups_that_lie_apart_are_apart_on_the_map(method, library, extra):
    pytest.importorskip(library, reason=f"this map needs the extra [{extra}]")
    generator = np.random.default_rng(0)
    vectors = np.concatenate([generator.standard_normal((20, 6)) + 8 * k for k in range(3)])
    places = _plane(vectors, method)
    assert neighbours(places, np.repeat(["a", "b", "c"], 20))[0] > 0.95
    np.testing.assert_array_equal(places, _plane(vectors, method))


def test_too_few_utterances_and_a_missing_library_are_said(monkeypatch):
    with pytest.raises(UserError, match="4 utterances are too few"):
        _plane(np.zeros((4, 2)), "tsne")
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UserError, match=r"speechssl\[umap\]"):
        _plane(np.zeros((9, 2)), "umap")


def listed(*speakers_and_seconds) -> Manifest:
    return Manifest.of(
        Utterance(f"u{i}", "x.flac", int(seconds * 1000), 1000, speaker=speaker)
        for i, (speaker, seconds) in enumerate(speakers_and_seconds)
    )


def test_as_many_of_each_label_and_only_the_commonest():
    manifest = listed(*[("a", 1)] * 50, *[("b", 1)] * 30, *[("c", 1)] * 3)
    chosen = balanced(manifest, "speaker", classes=2, most=40)
    assert Counter(label for _, label in chosen) == {"a": 20, "b": 20}
    assert chosen == balanced(manifest, "speaker", classes=2, most=40)


def test_examples_are_of_different_speakers_and_easy_to_look_at():
    manifest = listed(("a", 5), ("a", 5.1), ("b", 20), ("b", 7), ("c", 1))
    assert [u.id for u in examples(manifest, 2)] == ["u0", "u3"]
    assert [u.id for u in examples(manifest, 4)] == ["u0", "u3", "u4", "u1"]
    assert len(examples(manifest, 9)) == 5
