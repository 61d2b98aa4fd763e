"""ABX: against loops over the definition, cases by hand, and from the command line."""

import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE, one_sentence
from voices import make_voices, untrained

from speechssl.checkpoint import load_checkpoint
from speechssl.data.items import Item, write_items
from speechssl.data.manifest import Manifest
from speechssl.extract import load_encoder
from speechssl.probe.abx import abx_error, cells_across, cells_within, distances, with_items
from speechssl.probe.abx_layers import frames_of_items
from speechssl.probe.features import encoder_source


def item(phone: str, speaker: str = "s", before: str = "a", after: str = "b") -> Item:
    return Item("u", 0.0, 0.1, phone, before, after, speaker)


def angle(x, y) -> float:
    cosine = float(np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)))
    return math.acos(min(max(cosine, -1.0), 1.0)) / math.pi


def warp_by_loops(x, y) -> float:
    """The cheapest of all paths from corner to corner, its cost over its length (here no two cost the same)."""

    def paths(i, j):
        if (i, j) == (0, 0):
            yield [(0, 0)]
        for before in ((i - 1, j - 1), (i, j - 1), (i - 1, j)):
            if min(before) >= 0:
                for path in paths(*before):
                    yield [*path, (i, j)]

    costs = [(sum(angle(x[i], y[j]) for i, j in path), len(path)) for path in paths(len(x) - 1, len(y) - 1)]
    cost, length = min(costs)
    return cost / length


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_warping_by_trying_all_paths(left, right, seed):
    generator = np.random.default_rng(seed)
    frames = {number: generator.standard_normal((size, 3)) for number, size in ((3, left), (7, right), (9, 2))}
    found = distances(frames, np.array([3, 9]), np.array([7, 3]))
    assert found == pytest.approx([warp_by_loops(frames[3], frames[7]), warp_by_loops(frames[9], frames[3])], abs=1e-6)


def test_many_pairs_are_the_pairs_one_by_one(monkeypatch):
    generator = np.random.default_rng(0)
    frames = {i: generator.standard_normal((int(generator.integers(1, 9)), 4)) for i in range(12)}
    left, right = (np.array(side) for side in zip(*itertools.combinations(range(12), 2), strict=True))
    alone = [distances(frames, left[i : i + 1], right[i : i + 1])[0] for i in range(len(left))]
    for elements in (1 << 22, 500, 64):
        monkeypatch.setattr("speechssl.probe.abx.ELEMENTS", elements)
        np.testing.assert_allclose(distances(frames, left, right), alone, atol=1e-9)


def error_by_loops(items, frames, *, across: bool, context: str) -> float:
    """Straight from the definition, over all triples."""

    def where(one):
        return (one.before, one.after) if context == "within" else ()

    numbers = range(len(items))
    near = {(i, j): warp_by_loops(frames[i], frames[j]) for i, j in itertools.product(numbers, numbers)}
    cells = defaultdict(list)
    for a, b, x in itertools.permutations(range(len(items)), 3):
        one, two, three = items[a], items[b], items[x]
        fits = one.phone == three.phone != two.phone and where(one) == where(two) == where(three)
        if fits and one.speaker == two.speaker and (one.speaker != three.speaker) == across:
            wrong = 0.5 if abs(near[a, x] - near[b, x]) < 1e-6 else float(near[a, x] > near[b, x])
            cells[one.phone, two.phone, one.speaker, where(one), three.speaker].append(wrong)
    speakers, phones = defaultdict(list), defaultdict(list)
    for (first, second, speaker, *_), triples in cells.items():
        speakers[first, second, speaker].append(np.mean(triples))
    for (first, second, _), scores in speakers.items():
        phones[first, second].append(np.mean(scores))
    return float(np.mean([np.mean(scores) for scores in phones.values()]))


@pytest.mark.parametrize("context", ["within", "any"])
@pytest.mark.parametrize("across", [False, True])
def test_errors_are_those_of_loops(across, context):
    generator = np.random.default_rng(5)
    items = [
        item(phone, speaker, before)
        for phone, speaker, before in itertools.product("xyz", ["anna", "bob", "eve"], "ac")
        for _ in range(int(generator.integers(0, 3)))
    ]
    frames = {i: generator.standard_normal((int(generator.integers(1, 4)), 3)) for i in range(len(items))}
    numbers = {"context": context, "most": 99}
    cells = cells_across(items, speakers=99, **numbers) if across else cells_within(items, **numbers)
    expected = error_by_loops(items, frames, across=across, context=context)
    assert abx_error(cells, frames) == pytest.approx(expected, abs=1e-9)
    assert 0.2 < expected < 0.8


def test_classes_apart_and_classes_alike():
    items = [item(phone, speaker) for phone in "xy" for speaker in ("anna", "bob") for _ in range(3)]
    cells = cells_within(items), cells_across(items)
    generator = np.random.default_rng(0)
    apart = {i: np.eye(2)[[int(one.phone == "y")] * (2 + i % 3)] * (1 + i) for i, one in enumerate(items)}
    same = generator.standard_normal((2, 5))
    alike = dict.fromkeys(range(len(items)), same)
    swapped = {i: np.eye(2)[[int((one.phone == "y") == (one.speaker == "bob"))]] for i, one in enumerate(items)}
    for one in cells:
        assert abx_error(one, apart) == 0.0
        assert abx_error(one, alike) == 0.5
    assert [abx_error(one, swapped) for one in cells] == [0.0, 1.0]  # told apart, and the other way by the other one
    assert math.isnan(abx_error([], apart))


def test_what_is_compared_with_what():
    items = [item("x"), item("x"), item("y"), item("y", before="c"), item("x", "t"), item("z", "t", before="c")]
    within = [(cell.phones, cell.speaker, cell.a, cell.b) for cell in cells_within(items)]
    assert within == [(("x", "y"), "s", (0, 1), (2,))]
    across = [(cell.phones, cell.speaker, cell.a, cell.b, cell.x) for cell in cells_across(items)]
    assert across == [(("x", "y"), "s", (0, 1), (2,), (4,))]
    anywhere = {(*cell.phones, cell.speaker): (cell.a, cell.b) for cell in cells_within(items, context="any")}
    assert anywhere == {("x", "y", "s"): ((0, 1), (2, 3)), ("y", "x", "s"): ((2, 3), (0, 1))}


def test_few_are_drawn_and_missing_items_leave():
    items = [item(phone, speaker) for phone in "xy" for speaker in "stuvw" for _ in range(6)]
    within, across = cells_within(items, most=2), cells_across(items, most=2, speakers=3)
    assert all(len(part) == 2 for cell in within + across for part in (cell.a, cell.b, cell.x))
    assert len(within) == 2 * 5
    assert len(across) == 2 * 5 * 3
    assert within == cells_within(items, most=2) != cells_within(items, most=2, seed=1)
    first = within[0]
    assert with_items([first], {*first.b, first.a[0]}) == []  # nothing to compare A with
    (kept,) = with_items([first], {*first.a, first.b[0]})
    assert (kept.a, kept.b, kept.x) == (first.a, first.b[:1], first.a)


# ------------------------------------------------------------------------------------------------------------ the verb


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Items in utterances of three voices, which play the part of phones; moods play speakers."""
    folder = tmp_path_factory.mktemp("voices")
    manifest = make_voices(folder, 6)
    items = [Item(u.id, 0.05, 0.15, str(u.speaker), "SIL", "SIL", u.extra["mood"]) for u in Manifest.read(manifest)]
    write_items(folder / "a.item", items)
    return folder / "a.item", manifest, untrained("wav2vec2", folder / "run", manifest), items


def test_abx_of_every_layer(command, data, tmp_path):
    items, manifest, run, _ = data
    arguments = ["abx", run, items, "--manifest", manifest, "-o", tmp_path / "abx.json"]
    status, out, err = command(*arguments)
    assert status == 0, err
    record = json.loads((tmp_path / "abx.json").read_text())
    layers = ["latents", "0", "1", "2"]
    assert [(row["features"], row["seed"], row["layer"]) for row in record["rows"]] == [
        *(("trained", 0, layer) for layer in layers),
        *(("random weights", 1, layer) for layer in layers),
        ("log-mel", 0, "log-mel"),
    ]
    mel = record["rows"][-1]
    assert mel["within"] < 0.1  # the voices differ in pitch
    assert mel["across"] < 0.1
    assert all(0 <= row[name] <= 1 for row in record["rows"] for name in ("within", "across"))
    assert (record["items"], record["cells_within"], record["cells_across"]) == (18, 12, 12)
    assert record["rows"][0]["within"] == record["rows"][4]["within"]  # untrained: the random baseline is itself
    assert "ABX error, chance 50: 18 items, 12 cells within a speaker and 12 across" in out
    assert "already made, left as it is" in command(*arguments)[1]
    assert "holds another result" in one_sentence(command(*arguments, "--most", 2))


def test_an_item_is_the_frames_in_it(data):
    _, manifest, run, _ = data
    utterances, encoder = Manifest.read(manifest), load_encoder(run)
    source = encoder_source(encoder, load_checkpoint(run).config.data, torch.device("cpu"))
    name = utterances[0].id
    listed = [Item(name, 0.1, 0.12, "A", "", "", ""), Item(name, 0.1, 0.1, "B", "", "", "")]
    numbers = {"title": "", "seconds_per_batch": 5.0}
    found = frames_of_items(source, utterances, listed, {0, 1}, ["1"], [], **numbers)
    whole = encoder.extract(utterances[0].audio, layers=1).numpy()
    middles = [(i * encoder.hop + encoder.feature_encoder.receptive_field / 2) / RATE for i in range(len(whole))]
    inside = [i for i, time in enumerate(middles) if 0.1 <= time <= 0.12]
    nearest = min(range(len(middles)), key=lambda i: abs(middles[i] - 0.1))
    assert list(found) == ["1"]
    np.testing.assert_allclose(found["1"][0], whole[inside], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["1"][1], whole[[nearest]], rtol=1e-3, atol=1e-4)


def test_what_is_refused(command, data, tmp_path):
    items, manifest, run, listed = data

    def sentence(*changes, items=items):
        return one_sentence(command("abx", run, items, "--manifest", manifest, "-o", tmp_path / "no.json", *changes))

    assert "has no layer '9'; choose among latents, 0, 1, 2." in sentence("--layer", "9")
    strange = tmp_path / "strange.item"
    write_items(strange, [Item("nobody", 0.0, 1.0, "A", "B", "C", "s")])
    assert "not one of its 1 items is of an utterance in" in sentence(items=strange)
    write_items(strange, [one for one in listed if one.phone == "anna"])
    assert "no phones can be compared" in sentence(items=strange)
    (tmp_path / "no.json").write_text("{}")
    assert "was not made by `speechssl abx`" in sentence()
