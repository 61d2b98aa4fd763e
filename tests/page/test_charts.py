"""Charts: what is kept of long lines, ticks, and HTML that holds the data's own numbers."""

import math
import re

import pytest
from html_tree import parsed
from hypothesis import given
from hypothesis import strategies as st

from speechssl.page.charts import Chart, Series, draw, log_ticks, number, thin, ticks


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=90), st.integers(1, 20))
def test_thinning_keeps_ends_and_extremes(values, buckets):
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thin(points, buckets)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert len(kept) <= max(2 * buckets + 2, 2)
    assert {points[0], points[-1]} <= set(kept)
    assert min(values) in {y for _, y in kept}
    assert max(values) in {y for _, y in kept}


def test_short_lines_are_whole():
    points = [(float(i), 0.0) for i in range(800)]
    assert thin(points) == points


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_inside_and_few(low, width, most):
    high = low + width
    if high - low < 1e-9 * abs(low):
        return
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most + 1
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in found)
    assert found == sorted(found)


def test_ticks_of_known_ranges():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(2.6, 5.5) == [3, 4, 5]
    assert [10**value for value in log_ticks(-2, 2)] == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert [10**value for value in log_ticks(math.log10(2), math.log10(9))] == pytest.approx([2, 3, 5, 7])
    assert [10**value for value in log_ticks(math.log10(3.2), math.log10(6.6))] == pytest.approx([4, 5, 6])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1.00"), (0.33013, "0.330"), (1234567.0, "1,234,567"), (2.34e-5, "2.34e-5"), (-12.345, "-12.3")],
)
def test_numbers_as_people_write_them(value, text):
    assert number(value) == text


def test_a_chart_holds_the_numbers_themselves_and_says_them():
    points = [(25, 3.9487), (50, 3.92526), (75, math.nan), (100, 2.65)]
    chart = Chart("curve", "contrastive", [Series("a <run>", 3, points)], levels=[("chance", 3.93)])
    tree = parsed(draw(chart))
    (line,) = tree.find("polyline")
    assert line["points"] == "25,3.9487 50,3.9253 100,2.65"
    assert line["data-name"] == "a <run>"
    assert line["class"] == "c3 line"
    (plot,) = tree.find("div", class_="plot")
    assert plot["tabindex"] == "0"
    assert "a <run> ends at 2.65; chance is 3.93" in plot["aria-label"]
    assert "chance 3.93" in tree.text
    assert len(tree.find("path", class_="level")) == 1


def test_the_transform_puts_the_data_into_the_box():
    html = draw(Chart("c", "t", [Series("r", 0, [(10, 1.0), (20, 3.0)])]))
    a, _, _, d, e, f = map(float, re.search(r"matrix\(([^)]*)\)", html)[1].split())
    assert [a * 10 + e, a * 20 + e] == pytest.approx([0, 1000], abs=1e-3)
    assert 0 < d * 3.0 + f < d * 1.0 + f < 1000


def test_logarithmic_values_are_exponents_and_leave_out_what_has_none():
    html = draw(Chart("c", "t", [Series("r", 0, [(1, 100.0), (2, 0.0), (3, 10.0)])], log=True))
    assert 'points="1,2 3,1"' in html
    assert "r ends at 10.0" in html


def test_a_spike_is_cut_and_said():
    points = [(i, 1.0 + i % 3) for i in range(200)] + [(200, 5000.0)]
    html = draw(Chart("c", "loss", [Series("r", 0, points)]))
    assert "Cut at" in html
    assert "data-cut" in html
    assert "200,5000" in html  # the pointer still reads it


def test_nothing_to_draw_is_said():
    assert "Nothing was logged" in draw(Chart("c", "loss", [Series("r", 0, [(1, math.nan)])]))


def test_one_point_is_a_dot():
    assert parsed(draw(Chart("c", "loss", [Series("r", 0, [(7, 2.0)])]))).find("path", class_="dot c0 line")
