"""Labels by column, and few of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.labels import LabelError, labels_of
from speechssl.data.manifest import Manifest, Utterance
from speechssl.probe.labels import check_same_classes, draw_in_all, draw_per_class

LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=40)


def utterance(name: str, **numbers) -> Utterance:
    return Utterance(name, f"{name}.wav", 100, 100, **numbers)


def test_columns(tmp_path):
    made = Manifest.of(
        [
            utterance("music/rock/1", speaker="A", text="ONE", extra={"year": 1969}),
            utterance("music/jazz/2", speaker="B", text="", extra={}),
            utterance("3"),
        ]
    )
    made.write(tmp_path / "all.jsonl")
    read = Manifest.read(tmp_path / "all.jsonl")
    assert labels_of(read, "speaker") == ["A", "B", None]
    assert labels_of(read, "text") == ["ONE", None, None]
    assert labels_of(read, "year") == ["1969", None, None]
    assert labels_of(read, "folder:1") == ["music", "music", None]
    assert labels_of(read, "folder:2") == ["rock", "jazz", None]
    with pytest.raises(LabelError, match="'folder:3'; choose speaker, text, folder:1, year,"):
        labels_of(read, "folder:3")
    with pytest.raises(LabelError, match="'folder:0'"):
        labels_of(read, "folder:0")


def test_extra_columns_survive_a_round_trip(tmp_path):
    extra = {"mood": "happy", "pitch": 120.5, "tags": ["a", "b"]}
    Manifest.of([utterance("a", extra=extra)]).write(tmp_path / "a.jsonl")
    read = Manifest.read(tmp_path / "a.jsonl")
    read.write(tmp_path / "b.jsonl")
    assert Manifest.read(tmp_path / "b.jsonl")[0].extra == extra
    assert len({*read, utterance("b")}) == 2  # still hashable


def test_classes_must_be_those_of_training():
    check_same_classes(["a", "b"], ["b"])
    with pytest.raises(LabelError, match="2 test utterances have labels that training does not: c, d"):
        check_same_classes(["a", "b"], ["b", "d", "c"])
    with pytest.raises(LabelError, match="all 2 training utterances have the label 'a'"):
        check_same_classes(["a", "a"], ["a"])


@given(LABELS, st.integers(1, 5), st.integers(0, 3))
def test_so_many_of_each_class(labels, count, seed):
    drawn = draw_per_class(labels, count, seed)
    taken = Counter(labels[i] for i in drawn)
    assert taken == {label: min(count, total) for label, total in Counter(labels).items()}
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == draw_per_class(labels, count, seed).tolist()
    assert set(drawn) <= set(draw_per_class(labels, count + 1, seed))  # a larger draw holds the smaller


@given(LABELS, st.integers(1, 45), st.integers(0, 3))
def test_so_many_in_all_with_the_classes_in_turn(labels, count, seed):
    drawn = draw_in_all(labels, count, seed)
    assert len(drawn) == min(count, len(labels))
    taken, total = Counter(labels[i] for i in drawn), Counter(labels)
    least = min((taken[label] for label in total if taken[label] < total[label]), default=max(total.values()))
    assert all(number <= least + 1 for number in taken.values())


def test_seeds_draw_differently():
    labels = list("ab" * 20)
    assert draw_per_class(labels, 3, 0).tolist() != draw_per_class(labels, 3, 1).tolist()
