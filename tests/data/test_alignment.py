"""Files of labels in time: JSON lines, .ctm, TextGrid, and items."""

import pytest

from speechssl.data.alignment import AlignmentError, Interval, read_alignment, write_textgrid
from speechssl.data.items import Item, ItemsError, items_of, read_items, write_items


def test_ctm(tmp_path):
    path = tmp_path / "phones.ctm"
    path.write_text(";; made by an aligner\na 1 0.02 0.03 B 0.9\n\na 1 0.00 0.02 AH\nb A 1 2 C\n")
    assert read_alignment(path) == {
        "a": [Interval(0.0, 0.02, "AH"), Interval(0.02, 0.05, "B")],
        "b": [Interval(1.0, 3.0, "C")],
    }
    for text, message in (
        ("a 1 0.0 0.1\n", "line 1: not `utterance channel start duration label`"),
        ("a 1 0.0 0.1 x\na 1 zero 0.1 x\n", "line 2"),
        ("a 1 0.0 -0.1 x\n", "line 1: a label must end behind its beginning"),
        ("a 1 0.0 nan x\n", "line 1: a label must end behind its beginning"),
        ("\n", "holds no labels"),
    ):
        path.write_text(text)
        with pytest.raises(AlignmentError, match=message):
            read_alignment(path)
    with pytest.raises(AlignmentError, match="cannot be read"):
        read_alignment(tmp_path / "nothing.ctm")


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "labels": [{"label": "A", "start": 0.1, "end": 0.25, "score": 0.5}], "words": []}\n')
    assert read_alignment(path) == {"a": [Interval(0.1, 0.25, "A")]}
    for line in ("a 1 0 1 x", "[]", '{"id": "a"}', '{"id": 3, "labels": []}', '{"id": "a", "labels": [{"label": 1}]}'):
        path.write_text(line + "\n")
        with pytest.raises(AlignmentError, match="line 1: not a line of `speechssl align`"):
            read_alignment(path)


def test_a_textgrid_has_no_gaps(tmp_path):
    words = [Interval(0.1, 0.3, 'SAY "A"'), Interval(0.3, 0.5, "B")]
    write_textgrid(tmp_path / "a.TextGrid", 0.8, {"letters": [], "words": words})
    lines = (tmp_path / "a.TextGrid").read_text().splitlines()
    assert lines[:2] == ['File type = "ooTextFile"', 'Object class = "TextGrid"']
    assert "size = 2" in lines
    found = [line.split(" = ")[1] for line in lines if line.strip().startswith(("xmin", "xmax", "text"))]
    whole = ["0", "0.800000"]
    assert found[:2] == whole
    assert found[2:7] == [*whole, "0.000000", "0.800000", '""']
    times = ["0.000000", "0.100000", "0.300000", "0.500000", "0.800000"]
    texts = ['""', '"SAY ""A"""', '"B"', '""']
    assert found[7:] == [*whole, *(x for i, text in enumerate(texts) for x in (times[i], times[i + 1], text))]


def test_items_of_an_alignment(tmp_path):
    labels = {"u": [Interval(0.1, 0.2, "A"), Interval(0.2, 0.35, "B")], "v": [Interval(0.0, 0.1, "C")]}
    items = items_of(labels, {"u": "anna", "v": "bob"})
    assert items == [
        Item("u", 0.1, 0.2, "A", "SIL", "B", "anna"),
        Item("u", 0.2, 0.35, "B", "A", "SIL", "anna"),
        Item("v", 0.0, 0.1, "C", "SIL", "SIL", "bob"),
    ]
    write_items(tmp_path / "a.item", items)
    assert (tmp_path / "a.item").read_text().splitlines()[:2] == [
        "#file onset offset #phone prev-phone next-phone speaker",
        "u 0.1000 0.2000 A SIL B anna",
    ]
    assert read_items(tmp_path / "a.item") == items
    with pytest.raises(ItemsError, match="cannot hold 'anna b'"):
        write_items(tmp_path / "b.item", items_of(labels, {"u": "anna b", "v": "bob"}))
    assert not (tmp_path / "b.item").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: has no #file, onset"),
        ("#file onset offset #phone prev-phone next-phone\n", "line 1: has no speaker"),
        ("#file onset offset #phone prev-phone next-phone speaker\n", "holds no items"),
        ("#file onset offset #phone prev-phone next-phone speaker\n\nu 0 1 A B C\n", "line 3: not 7 columns"),
        ("#file onset offset #phone prev-phone next-phone speaker\nu 1 0 A B C s\n", "line 2: not 7 columns"),
        ("#file onset offset #phone prev-phone next-phone speaker\nu 0 inf A B C s\n", "line 2: not 7 columns"),
    ],
)
def test_items_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "a.item"
    path.write_text(text)
    with pytest.raises(ItemsError, match=message):
        read_items(path)
