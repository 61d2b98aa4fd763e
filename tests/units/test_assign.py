"""How well units agree with labels, against loops over the definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.alignment import AlignmentError, Interval
from speechssl.data.units import Units, UnitsRecord, write_units
from speechssl.units.assign import count_labels, purity, usage

RECORD = UnitsRecord(hop=160, sample_rate=16_000, num_units=4)  # one every 10 ms


@pytest.fixture
def units(tmp_path):
    write_units(tmp_path / "units", RECORD, [("a", np.array([0, 0, 1, 1, 2])), ("b", np.array([3, 3]))])
    return Units(tmp_path / "units")


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=4))
def test_purity_by_loops(rows):
    counts = np.array(rows)
    if not counts.any():
        return
    result = purity(counts)
    pairs = [(p, v) for p in range(counts.shape[0]) for v in range(3) for _ in range(counts[p, v])]
    total = len(pairs)
    right = sum(max(sum(q == p for q, w in pairs if w == v) for p in range(counts.shape[0])) for v in range(3))
    own = sum(max(sum(w == v for q, w in pairs if q == p) for v in range(3)) for p in range(counts.shape[0]))

    def entropy(things):
        shares = [things.count(thing) / total for thing in set(things)]
        return -sum(share * math.log(share) for share in shares)

    labels, units = [p for p, _ in pairs], [v for _, v in pairs]
    shared = entropy(labels) + entropy(units) - entropy(pairs)
    assert result.frames == total
    assert result.label == pytest.approx(right / total)
    assert result.unit == pytest.approx(own / total)
    assert result.information == pytest.approx(shared / entropy(labels) if entropy(labels) > 0 else 0.0, abs=1e-9)


def test_units_that_tell_all_and_nothing():
    assert purity(np.diag([3, 4, 5])).information == pytest.approx(1)
    assert purity(np.diag([3, 4, 5])).label == 1
    assert purity(np.full((2, 4), 7)).information == pytest.approx(0)
    assert purity(np.full((2, 4), 7)).label == 0.5


def test_counting(units):
    labels = {
        "a": [Interval(0.0, 0.02, "x"), Interval(0.02, 0.05, "y"), Interval(0.2, 0.3, "x")],
        "b": [Interval(0.0, 0.016, "y")],
        "unknown": [Interval(0.0, 1.0, "x")],
    }
    assert count_labels(units, labels).tolist() == [[2, 0, 0, 0], [0, 2, 1, 2]]
    assert usage(units).tolist() == [2, 2, 1, 2]
    with pytest.raises(AlignmentError, match="not one labelled utterance has units"):
        count_labels(units, {"c": [Interval(0.0, 1.0, "x")]})


def test_a_unit_is_said_in_the_middle_of_what_its_frame_sees(tmp_path):
    record = replace(RECORD, sees=480)
    write_units(tmp_path / "units", record, [("a", np.array([0, 1, 2]))])
    units = Units(tmp_path / "units")
    assert units.record.sees == 480
    assert units.record.middles(3) == pytest.approx([0.015, 0.025, 0.035])
    assert RECORD.middles(2) == pytest.approx([0.005, 0.015])  # not known what it sees: its hop
    assert count_labels(units, {"a": [Interval(0.0, 0.02, "x"), Interval(0.02, 0.05, "y")]}).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 1, 0],
    ]
