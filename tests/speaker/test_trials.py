"""Trials and splits: what is drawn, and what is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import one_sentence
from voices import make_voices

from speechssl.data.manifest import Manifest, Utterance
from speechssl.speaker.split import SplitError, take
from speechssl.speaker.trials import Trial, TrialError, _pair, make_trials, read_trials, write_trials


def manifest_of(speakers: str) -> Manifest:
    """One utterance for each letter, by the speaker of that name; "-" names nobody."""
    return Manifest.of(
        Utterance(f"u{i}", f"{i}.wav", 10, 10, speaker=None if s == "-" else s) for i, s in enumerate(speakers)
    )


def test_pairs_are_numbered():
    assert [_pair(n) for n in range(6)] == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert _pair(10**12) == (88_209, 1_414_214)


@given(st.text("abc-", min_size=2, max_size=12), st.integers(1, 40), st.integers(0, 2))
def test_trials_of_any_manifest(speakers, most, seed):
    manifest = manifest_of(speakers)
    counts = Counter(speakers.replace("-", ""))
    same = sum(n * (n - 1) // 2 for n in counts.values())
    total = sum(counts.values()) * (sum(counts.values()) - 1) // 2
    if len(counts) < 2 or not same:
        with pytest.raises(TrialError, match="two speakers or more"):
            make_trials(manifest, most=most, seed=seed)
        return
    trials = make_trials(manifest, most=most, seed=seed)
    assert sum(t.target for t in trials) == min(most, same)
    assert sum(not t.target for t in trials) == min(most, total - same)
    by_id = {u.id: u.speaker for u in manifest}
    assert all((by_id[t.enrol] == by_id[t.test]) == t.target and by_id[t.enrol] for t in trials)
    assert len({frozenset((t.enrol, t.test)) for t in trials}) == len(trials)
    assert trials == make_trials(manifest, most=most, seed=seed)


def test_files(tmp_path):
    manifest, path = manifest_of("aabb"), tmp_path / "trials.txt"
    trials = make_trials(manifest)
    write_trials(trials, path)
    assert read_trials(path, manifest) == trials
    path.write_text("target u0 u1.wav\n\nnontarget u0 u2.flac\n")
    assert read_trials(path, manifest) == [Trial(True, "u0", "u1"), Trial(False, "u0", "u2")]
    with pytest.raises(TrialError, match="'a b' has a space"):
        write_trials([Trial(True, "a b", "c")], path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 u0 u1\n2 u0 u2\n", "line 2: write `1 enrol test`"),
        ("1 u0\n", "line 1: write"),
        ("1 u0 u1\n0 u0 u9.wav\n", r"line 2: the manifest has no utterance 'u9.wav'"),
        ("1 u0 u1\n", "are both needed"),
        ("", "are both needed"),
    ],
)
def test_what_is_no_list_of_trials(tmp_path, content, reason):
    path = tmp_path / "trials.txt"
    path.write_text(content)
    with pytest.raises(TrialError, match=reason):
        read_trials(path, manifest_of("aabb"))


def test_take():
    manifest = manifest_of("aaabbb-")
    taken, rest = take(manifest, per_class=1)
    assert Counter(u.speaker for u in taken) == {"a": 1, "b": 1}
    assert Counter(u.speaker for u in rest) == {"a": 2, "b": 2}
    assert not {u.id for u in taken} & {u.id for u in rest}
    assert len(take(manifest, in_all=3)[0]) == 3
    assert [u.id for u in take(manifest, matching="[05]$")[0]] == ["u0", "u5"]
    for numbers, reason in (
        ({}, "say one of"),
        ({"per_class": 1, "in_all": 1}, "say one of"),
        ({"per_class": 3}, "6 of 6 utterances would be taken"),
        ({"matching": "x"}, "0 of 6"),
        ({"matching": "("}, "no regular expression"),
    ):
        with pytest.raises(SplitError, match=reason):
            take(manifest, **numbers)


def test_verbs(tmp_path, command):
    def speaker(*arguments):
        return command("speaker", *arguments)

    manifest, parts = make_voices(tmp_path, 4), [tmp_path / "test.jsonl", tmp_path / "train.part.jsonl"]
    split = ["split", manifest, "--taken", parts[0], "--rest", parts[1]]
    assert speaker(*split, "--per-class", 1)[0] == 0
    assert [len(Manifest.read(path)) for path in parts] == [3, 9]
    assert speaker(*split, "--per-class", 1)[0] == 0  # once more: the same
    assert "exists and holds other utterances" in one_sentence(speaker(*split, "--per-class", 2))
    trials = ["trials", parts[1], "-o", tmp_path / "trials.txt"]
    status, out, _ = speaker(*trials)
    assert status == 0
    assert "9 pairs of one speaker, 27 of two" in out
    assert "exists and holds other trials" in one_sentence(speaker(*trials, "--most", 5))
    assert len((tmp_path / "trials.txt").read_text().splitlines()) == 36
