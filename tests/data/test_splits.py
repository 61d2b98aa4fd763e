"""Labelled splits: disjoint folds, nested sizes, balanced speakers, right lengths, nothing random."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.splits import FOLDS, SECONDS, SplitError, libri_light, names, seeded

LONGEST = 20.0


def utterance(name, seconds, speaker, text="HI", audio=None):
    return Utterance(name, audio or f"/a/{name}.flac", int(seconds * 100), 100, text=text, speaker=speaker)


@st.composite
def corpora(draw):
    """Labelled corpora of 5 minutes to some hours, some speakers with far more speech than others."""
    speakers = draw(st.integers(1, 12))
    seconds = draw(st.lists(st.floats(1, LONGEST), min_size=40, max_size=80))
    repeats = draw(st.integers(1, 12))
    weights = draw(st.lists(st.integers(1, 5), min_size=speakers, max_size=speakers))
    turns = [speaker for speaker, weight in enumerate(weights) for _ in range(weight)]
    lengths = seconds * repeats
    return Manifest.of(
        utterance(f"u{index}", length, f"s{turns[index % len(turns)]}") for index, length in enumerate(lengths)
    )


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(0, 5))
def test_properties(manifest, seed):
    splits, missing = seeded(manifest, seed=seed)
    ids = {name: [u.id for u in part] for name, part in splits.items()}
    assert set(splits) | set(missing) == {name for label in SECONDS for name in names(label)}
    assert not set(splits) & set(missing)

    for name, part in splits.items():
        target = SECONDS["10min" if name.startswith("10min") else name]
        assert part.hours * 3600 == pytest.approx(target, abs=max(LONGEST, 0.01 * target))
        assert len(set(ids[name])) == len(part)

    folds = [set(ids[name]) for name in names("10min") if name in ids]
    assert sum(map(len, folds)) == len(set().union(*folds)), "folds are disjoint"
    if "1h" in splits:
        assert len(folds) == FOLDS
        assert set(ids["1h"]) == set().union(*folds), "one hour is its six folds"
    if "10h" in splits:
        assert set(ids["1h"]) < set(ids["10h"])


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(0, 5))
def test_speakers_take_turns(manifest, seed):
    """In the union of the first folds, a speaker with fewer utterances than another (less one) has no more to give."""
    splits, _ = seeded(manifest, seed=seed)
    total = Counter(u.speaker for u in manifest)
    used = Counter()
    for name in names("10min"):
        used.update(u.speaker for u in splits.get(name, ()))
        most = max(used.values(), default=0)
        assert all(used[speaker] >= most - 1 or used[speaker] == total[speaker] for speaker in total)


@settings(max_examples=20, deadline=None)
@given(corpora(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_pure_function_of_utterances_and_seed(manifest, seed, random):
    shuffled = list(manifest)
    random.shuffle(shuffled)
    assert seeded(Manifest.of(shuffled), seed=seed) == seeded(manifest, seed=seed)


def hours(count, speakers=10):
    return Manifest.of(utterance(f"u{i}", 10, f"s{i % speakers}") for i in range(int(count * 360)))


def test_another_seed_gives_other_splits():
    first, second = (seeded(hours(2), seed=seed)[0]["10min-0"] for seed in (0, 1))
    assert {u.id for u in first} != {u.id for u in second}


def test_ten_hours_are_exact_where_they_fit():
    splits, missing = seeded(hours(10))
    assert splits["10h"].hours == 10
    assert splits["1h"].hours == 1
    assert [splits[name].hours * 6 for name in names("10min")] == pytest.approx([1] * 6)
    assert list(missing) == ["100h"]
    assert "the largest available is 10h" in missing["100h"]


def test_what_has_no_text_is_no_label():
    manifest = Manifest.of([*hours(0.5), utterance("x", 3000, "s1", text=None), utterance("y", 3000, "s1", text="")])
    splits, missing = seeded(manifest)
    assert list(splits) == ["10min-0", "10min-1", "10min-2"]
    assert "60 minutes with transcripts are needed, the manifest has 30.0" in missing["1h"]
    _, missing = seeded(hours(0.1))
    assert "no split is available" in missing["10min-0"]


def test_speakers_need_not_be_known():
    splits, _ = seeded(Manifest.of(utterance(f"u{i}", 10, None) for i in range(100)))
    assert splits["10min-0"].hours * 6 == pytest.approx(1)


@given(corpora(), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_any_other_length_is_the_beginning_of_the_same_order(manifest, minutes):
    splits, missing = seeded(manifest, labels=[f"{minutes}min", "2h"])
    whole, short = splits.get("10min-0"), splits.get(f"{minutes}min", [])
    if short:
        assert short.hours * 60 == pytest.approx(minutes, abs=LONGEST / 60)
    else:
        assert f"{minutes} minutes with transcripts are needed" in missing[f"{minutes}min"]
    if whole is not None:
        assert [u.id for u in whole][: len(short)] == [u.id for u in short]
    if "2h" in splits:
        assert [u.id for u in splits["2h"]][: len(splits["1h"])] == [u.id for u in splits["1h"]]


def test_the_largest_that_there_is_is_named():
    _, missing = seeded(hours(0.5), labels=["3min", "25min"])
    assert "the largest available is 25min" in missing["1h"]


@pytest.mark.parametrize("label", ["5", "ten", "0min", "1.5h", "-3min", ""])
def test_what_is_no_length_is_named(label):
    with pytest.raises(SplitError, match=f"no split '{label}'; choose from 10min"):
        names(label)


# --------------------------------------------------------------------------------------------------------- Libri-Light


@pytest.fixture
def limited(tmp_path):
    """The published layout, with empty audio files: 2 utterances a fold, 3 in 9h."""
    root = tmp_path / "librispeech_finetuning"
    places = {f"1h/{fold}/{kind}": f"{fold}{n}" for fold in range(FOLDS) for n, kind in enumerate(("clean", "other"))}
    places |= {"9h/clean": "90", "9h/other": "91"}
    for place, speaker in places.items():
        folder = root / place / speaker / "7"
        folder.mkdir(parents=True)
        (folder / f"{speaker}-7-0000.flac").touch()
        (folder / f"{speaker}-7.trans.txt").touch()
    (root / "9h/clean/90/7/90-7-0001.flac").touch()
    return root


def librispeech(limited, subset="train-clean-100"):
    wanted = [path.stem for path in sorted(limited.rglob("*.flac"))]
    return [utterance(name, 10, "s", audio=f"/LibriSpeech/{subset}/{name}.flac") for name in [*wanted, "1-1-1"]]


@pytest.mark.parametrize("inside", [True, False])
def test_published_lists_are_followed(limited, inside):
    manifest = Manifest.of(librispeech(limited))
    splits, missing = libri_light(manifest, limited if inside else limited.parent)
    assert missing == {}
    assert {u.id for u in splits["10min-3"]} == {"30-7-0000", "31-7-0000"}
    assert len(splits["1h"]) == 12
    assert len(splits["10h"]) == 15
    assert {u.id for u in splits["10h"]} > {u.id for u in splits["1h"]}
    assert len(splits["100h"]) == 16


def test_what_the_manifest_lacks_is_said(limited):
    manifest = Manifest.of(u for u in librispeech(limited, "train-other-500") if u.id != "31-7-0000")
    splits, missing = libri_light(manifest, limited)
    assert set(missing) == {"10min-3", "1h", "10h", "100h"}
    assert "1 of 2 utterances" in missing["10min-3"]
    assert "31-7-0000" in missing["10min-3"]
    assert "train-clean-100" in missing["100h"]
    assert len(splits) == 5


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(SplitError, match="not Libri-Light's limited set"):
        libri_light(hours(1), tmp_path)
