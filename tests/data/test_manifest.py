"""Manifests: written and read back equal; every broken line is named by file and number."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.manifest import Manifest, ManifestError, Utterance

GOOD = {"id": "a", "audio": "a.flac", "num_samples": 16_000, "sample_rate": 16_000}
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
utterances = st.builds(
    Utterance,
    id=texts,
    audio=texts.map(lambda name: "/sound/" + name.replace("\0", "")),
    num_samples=st.integers(1, 10**9),
    sample_rate=st.integers(1, 192_000),
    start=st.integers(0, 10**9),
    byte_range=st.none() | st.tuples(st.integers(0, 10**12), st.integers(0, 10**9)),
    text=st.none() | texts,
    speaker=st.none() | texts,
)


@given(utterances=st.lists(utterances, min_size=1, max_size=5, unique_by=lambda u: u.id))
def test_written_and_read_back(tmp_path_factory, utterances):
    path = tmp_path_factory.mktemp("manifest") / "train.jsonl"
    manifest = Manifest.of(utterances)
    manifest.write(path)
    assert Manifest.read(path) == manifest
    assert [p.name for p in path.parent.iterdir()] == ["train.jsonl"]  # nothing temporary stays


def test_relative_paths_let_a_tree_be_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "lists").mkdir(parents=True)
    Manifest.of([Utterance("a", str(old / "sound" / "a.flac"), 10, 10)]).write(old / "lists/a.jsonl", relative=True)
    old.rename(new)
    assert Manifest.read(new / "lists/a.jsonl")[0].audio == f"{new}/lists/../sound/a.flac"


def test_other_columns_and_empty_lines_do_no_harm(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD | {"mood": "happy"}) + "\n\n" + json.dumps(GOOD | {"id": "b"}) + "\n")
    assert [u.id for u in Manifest.read(path)] == ["a", "b"]


def test_hours_speakers_filter():
    made = Manifest.of(Utterance(str(i), "a", 3600, 2, speaker=f"s{i % 2}") for i in range(4))
    assert made.hours == 2.0
    assert made.speakers == ["s0", "s1"]
    assert [u.id for u in made.filter(lambda u: u.speaker == "s1")] == ["1", "3"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        (json.dumps({"id": "b", "audio": "b"}), "no num_samples, sample_rate"),
        (json.dumps(GOOD), "'a' was already on line 1"),
        (json.dumps(GOOD | {"id": 5}), "id must be a text, not 5"),
        (json.dumps(GOOD | {"id": "b", "audio": ""}), "audio must be a text"),
        (json.dumps(GOOD | {"id": "b", "text": ["hi"]}), "text must be a text"),
        (json.dumps(GOOD | {"id": "b", "num_samples": 0}), "num_samples must be a whole number from 1, not 0"),
        (json.dumps(GOOD | {"id": "b", "num_samples": True}), "num_samples must be a whole number"),
        (json.dumps(GOOD | {"id": "b", "num_samples": 1.5}), "num_samples must be a whole number"),
        (json.dumps(GOOD | {"id": "b", "sample_rate": 10**400}), "sample_rate must be a whole number"),
        (json.dumps(GOOD | {"id": "b", "start": -1}), "start must be a whole number from 0"),
        (json.dumps(GOOD | {"id": "b", "byte_range": [1]}), "byte_range must be"),
        ('{"id": "b", "audio": "b", "num_samples": NaN, "sample_rate": 1}', "num_samples must be a whole number"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert reason in str(caught.value)


def test_what_is_no_manifest_at_all(tmp_path):
    with pytest.raises(ManifestError, match="no such manifest"):
        Manifest.read(tmp_path / "train.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ManifestError, match="holds no utterances"):
        Manifest.read(tmp_path / "empty.jsonl")
    (tmp_path / "a.flac").write_bytes(b"fLaC\xff\xf8\x00\x80")
    with pytest.raises(ManifestError, match=r"a\.flac, line 1: "):
        Manifest.read(tmp_path / "a.flac")


def test_length_after_resampling_is_rounded_up():
    assert Utterance("a", "a", 44_101, 44_100).length_at(16_000) == 16_001
    assert Utterance("a", "a", 44_100, 44_100).length_at(16_000) == 16_000
    assert Utterance("a", "a", 5, 8_000).length_at(16_000) == 10
