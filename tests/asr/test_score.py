"""The score against errors that are known because they were made on purpose."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.asr.files import DecodedFileError, settings_path
from speechssl.asr.score import ScoreError, bootstrap, score, score_files, worst
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.tokens import Tokenizer

REFERENCES = {
    "same": "THE CAT SAT ON THE MAT",
    "substituted": "A DOG RAN HOME",
    "inserted": "HELLO WORLD",
    "deleted": "ONE TWO THREE FOUR",
    "mixed": "RED GREEN BLUE",
}
HYPOTHESES = {
    "same": "THE CAT SAT ON THE MAT",
    "substituted": "A FOG RAN ROME",  # 2 substitutions
    "inserted": "OH HELLO BIG WORLD NOW",  # 3 insertions
    "deleted": "TWO FOUR",  # 2 deletions
    "mixed": "RED GREY BLUE SKY",  # 1 substitution, 1 insertion
}


def test_known_errors_are_counted():
    result = score(HYPOTHESES, REFERENCES)
    assert (result.substitutions, result.insertions, result.deletions) == (3, 4, 2)
    assert (result.words, result.utterances, result.empty) == (19, 5, 0)
    assert result.wer == pytest.approx(9 / 19)
    assert result.warning == ""
    counts = {r.id: (r.words, r.substitutions, r.insertions, r.deletions) for r in result.rows}
    assert counts == {
        "same": (6, 0, 0, 0),
        "substituted": (4, 2, 0, 0),
        "inserted": (2, 0, 3, 0),
        "deleted": (4, 0, 0, 2),
        "mixed": (3, 1, 1, 0),
    }


def test_character_errors():
    assert score({"a": "CAT"}, {"a": "CUT"}).cer == pytest.approx(1 / 3)
    assert score({"a": "AB"}, {"a": "A B"}).cer == pytest.approx(1 / 3)  # the space counts


def test_both_sides_are_matched_by_id_not_by_order():
    backwards = dict(reversed(HYPOTHESES.items()))
    assert score(backwards, REFERENCES).rows == score(HYPOTHESES, REFERENCES).rows


words = st.lists(st.sampled_from(["A", "B", "C"]), max_size=6).map(" ".join)


@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_rows_add_up_and_match_a_plain_edit_distance(pairs):
    references = {str(i): r for i, (r, _) in enumerate(pairs)} | {"last": "A B"}
    hypotheses = {str(i): h for i, (_, h) in enumerate(pairs)} | {"last": "A"}
    result = score(hypotheses, references, samples=100)
    for row in result.rows:
        assert row.errors == edit_distance(row.reference.split(), row.hypothesis.split())
        assert row.words - row.deletions + row.insertions == len(row.hypothesis.split())
    assert sum(row.errors for row in result.rows) == result.substitutions + result.insertions + result.deletions
    assert result.wer == pytest.approx(sum(row.errors for row in result.rows) / result.words)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_interval_is_seeded_and_covers_the_true_rate():
    covered, truth = 0, 0.3
    for seed in range(40):
        generator = np.random.default_rng(seed)
        errors = generator.binomial(8, truth, size=200)
        low, high = bootstrap(errors, np.full(200, 8), seed=1)
        covered += low <= truth <= high
    assert covered >= 34  # 95% of 40 is 38
    assert bootstrap([1, 0, 2], [3, 3, 3], seed=5) == bootstrap([1, 0, 2], [3, 3, 3], seed=5)
    assert bootstrap([1, 1, 1], [4, 4, 4]) == (0.25, 0.25)


def test_blank_collapse_is_said():
    references = {str(i): "SOME WORDS" for i in range(20)}
    result = score(dict.fromkeys(references, "") | {"0": "SOME"}, references)
    assert "19 of 20 hypotheses are empty" in result.warning
    assert result.wer == pytest.approx(39 / 40)


LINES = {str(i): f"SOME WORDS OF LINE NUMBER {'ABCDEFGHIJKLMNOPQRSTUVWX'[i]}" for i in range(24)}


@pytest.mark.parametrize(
    ("say", "sentence"),
    [
        (lambda i, text: "THE SAME" if i % 3 else text, "16 of 24 hypotheses are the same text ('THE SAME')"),
        (lambda i, text: f"{text[:4]} {text[-1]}", "hold 23% of the references' letters: most is missing"),
        (lambda i, text: f"{text} {text}", "hold 200% of the references' letters: too much is spelt"),
        (lambda i, text: text.replace(" ", ""), "words run together"),
        (lambda i, text: " ".join(text.replace(" ", "")), "words fall apart"),
        (lambda i, text: text.replace("O", "U"), ""),
    ],
    ids=["one text", "short", "long", "together", "apart", "fine"],
)
def test_what_the_texts_say_about_the_system(say, sentence):
    result = score({i: say(int(i), text) for i, text in LINES.items()}, LINES)
    assert sentence in result.warning
    assert bool(result.warning) == bool(sentence)


def test_many_equal_references_are_no_collapse():
    references = {str(i): "YES" if i < 15 else "NO" for i in range(20)}
    assert score(references, references).warning == ""


def test_errors_per_speaker_and_per_length():
    speakers = {"same": "anna", "substituted": "ben", "inserted": "ben", "deleted": "anna"}  # mixed: nobody
    seconds = {"same": 5.0, "substituted": 2.0, "inserted": 1.0, "deleted": 3.0, "mixed": 2.5}
    result = score(HYPOTHESES, REFERENCES, speakers=speakers, seconds=seconds)
    assert list(result.speakers) == ["ben", "anna"]  # worst first
    assert result.speakers["ben"] == {"utterances": 2, "words": 6, "errors": 5, "wer": 5 / 6}
    assert result.speakers["anna"]["wer"] == 2 / 10
    assert {name: (part["from"], part["to"], part["utterances"]) for name, part in result.lengths.items()} == {
        "shortest": (1.0, 2.0, 2),
        "middle": (2.5, 3.0, 2),
        "longest": (5.0, 5.0, 1),
    }
    assert [part["errors"] for part in result.lengths.values()] == [5, 4, 0]
    by_words = score(HYPOTHESES, REFERENCES).lengths
    assert by_words["shortest"]["unit"] == "words"
    assert sum(part["words"] for part in by_words.values()) == 19
    assert score({"a": "A", "b": "B"}, {"a": "A", "b": "C"}).lengths == {}


def test_differing_ids_are_named():
    with pytest.raises(ScoreError, match=r"1 utterances have no hypothesis: same;"):
        score({k: v for k, v in HYPOTHESES.items() if k != "same"}, REFERENCES)
    with pytest.raises(ScoreError, match=r"1 utterances have no reference: extra;"):
        score(HYPOTHESES | {"extra": "A"}, REFERENCES)
    with pytest.raises(ScoreError, match="no words"):
        score({"a": "A"}, {"a": " "})


def test_worst_utterances_are_aligned():
    text = worst(score(HYPOTHESES, REFERENCES))
    blocks = text.split("\n\n")
    assert blocks[0].splitlines() == [
        "inserted: 3 errors in 2 words",
        "REF: ** HELLO *** WORLD ***",
        "HYP: OH HELLO BIG WORLD NOW",
        "      I         I         I",
    ]
    assert len(blocks) == 4
    assert "same" not in text


# ------------------------------------------------------------------------------------------------------------- files


def write_decoded(path, hypotheses=HYPOTHESES, references=REFERENCES):
    rows = [{"id": i, "text": text, "reference": references[i]} for i, text in hypotheses.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_are_written(tmp_path):
    result = score_files(write_decoded(tmp_path / "test.jsonl"), tmp_path / "score")
    summary = json.loads((tmp_path / "score" / "score.json").read_text())
    assert summary["wer"] == result.wer == pytest.approx(9 / 19)
    assert summary["low"] <= summary["wer"] <= summary["high"]
    assert "rows" not in summary
    assert set(summary["lengths"]) == {"shortest", "middle", "longest"}
    assert summary["made_with"] == {}  # another program wrote it
    with (tmp_path / "score" / "per_utterance.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["id"] for row in rows] == list(REFERENCES)
    assert rows[3]["deletions"] == "2"
    assert rows[3]["hypothesis"] == "TWO FOUR"
    assert (tmp_path / "score" / "worst.txt").read_text().startswith("inserted: 3 errors")
    assert not list(tmp_path.rglob("*.part"))


def write_manifest(path, texts):
    Manifest.of(Utterance(i, "/a.wav", 16000, 16000, text=text) for i, text in texts.items()).write(path)
    return path


def test_references_of_a_manifest_are_normalised_by_the_decoders_rule(tmp_path):
    decoded = write_decoded(tmp_path / "test.jsonl", {"a": "DON'T STOP"}, {"a": "WRONG REFERENCE"})
    manifest = write_manifest(tmp_path / "test.manifest", {"a": "Don\u2019t, stop!"})
    with pytest.raises(DecodedFileError, match="--vocabulary"):
        score_files(decoded, tmp_path / "score", manifest=manifest)
    settings_path(decoded).write_text(json.dumps({"text_rule": {"case": "upper", "punctuation": "strip"}}))
    assert score_files(decoded, tmp_path / "score", manifest=manifest).wer == 0
    assert score_files(decoded, tmp_path / "score").wer == 1


def test_a_vocabulary_normalises_both_sides(tmp_path):
    decoded = write_decoded(tmp_path / "test.jsonl", {"a": "don't stop."}, {"a": "Don\u2019t, STOP"})
    Tokenizer.train(["x"]).write(tmp_path / "vocabulary.json")
    assert score_files(decoded, tmp_path / "score", vocabulary=tmp_path / "vocabulary.json").wer == 0
    assert score_files(decoded, tmp_path / "score").wer == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no hypotheses"),
        ("what\n", "line 1: not a JSON object"),
        ('{"id": "a"}\n', "line 1: not a JSON object"),
        ('{"id": "a", "text": "A"}\n{"id": "a", "text": "B"}\n', "line 2: utterance 'a' was there before"),
        ('{"id": "a", "text": "A", "audio": "a.wav", "num_samples": 1, "sample_rate": 1}\n', "is a manifest"),
    ],
)
def test_broken_decode_files(content, reason, tmp_path):
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(DecodedFileError, match=reason):
        score_files(tmp_path / "test.jsonl", tmp_path / "score")


def test_no_references_and_no_file(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"id": "a", "text": "A"}\n')
    with pytest.raises(ScoreError, match="holds no references"):
        score_files(tmp_path / "test.jsonl", tmp_path / "score")
    with pytest.raises(DecodedFileError, match="no such file"):
        score_files(tmp_path / "none.jsonl", tmp_path / "score")
