"""The paired bootstrap: known differences, the coverage of its interval by simulation, and what cannot be compared."""

import json

import numpy as np
import pytest

from speechssl.asr.compare import compare, compare_files, paired_differences
from speechssl.asr.score import ScoreError, score


def percentiles(*arguments, **numbers):
    return np.percentile(paired_differences(*arguments, **numbers), [2.5, 97.5])


def test_its_interval_covers_the_true_difference_as_often_as_it_says():
    """Two systems that share what makes an utterance hard; B makes 2 points fewer errors."""
    generator, words, covered, narrower = np.random.default_rng(0), np.full(150, 10), 0, 0
    for trial in range(100):
        hard = generator.uniform(0.05, 0.5, size=150)
        shared = generator.binomial(10, hard)
        a, b = shared + generator.binomial(1, 0.4, size=150), shared + generator.binomial(1, 0.2, size=150)
        low, high = percentiles(a, b, words, samples=400, seed=trial)
        covered += low <= -0.02 <= high
        unpaired = percentiles(a, np.roll(b, 1), words, samples=400, seed=trial)
        narrower += high - low < 0.6 * (unpaired[1] - unpaired[0])
    assert 88 <= covered <= 99
    assert narrower == 100  # the point of pairing


def test_no_difference_is_found_where_there_is_none():
    generator, found = np.random.default_rng(1), 0
    for trial in range(60):
        a, b = generator.binomial(8, 0.3, size=(2, 100))
        low, high = percentiles(a, b, np.full(100, 8), samples=300, seed=trial)
        found += not low <= 0 <= high
    assert found <= 8  # 5% of 60 is 3


REFERENCES = {str(i): "A B C D" for i in range(40)}
GOOD = {str(i): "A B C D" if i % 4 else "A B C X" for i in range(40)}
BAD = {str(i): "A B X D" if i % 2 else "A X C X" for i in range(40)}


def test_known_difference():
    result = compare(score(BAD, REFERENCES), score(GOOD, REFERENCES), samples=500, seed=3)
    assert (result.wer_a, result.wer_b) == (60 / 160, 10 / 160)
    assert result.difference == pytest.approx(-50 / 160)
    assert result.low < result.difference < result.high < 0
    assert result.b_better == 1.0
    assert result.p_value == pytest.approx(2 / 501)
    same = compare(score(BAD, REFERENCES), score(BAD, REFERENCES), samples=500)
    assert (same.difference, same.low, same.high, same.b_better, same.p_value) == (0, 0, 0, 0.5, 1)
    assert compare(score(BAD, REFERENCES), score(GOOD, REFERENCES), samples=500, seed=3) == result


def test_drawing_speakers_widens_the_interval():
    """One of four speakers makes the whole difference."""
    a = {i: "A B C D" if int(i) >= 10 else "X" for i in REFERENCES}
    systems = score(a, REFERENCES), score(REFERENCES, REFERENCES)
    speakers = [str(i // 10) for i in range(40)]
    by_utterance = compare(*systems, samples=1000)
    by_speaker = compare(*systems, speakers=speakers, samples=1000)
    assert by_speaker.difference == by_utterance.difference
    assert (by_speaker.drawn, by_speaker.draws, by_utterance.draws) == ("speaker", 4, 40)
    assert by_utterance.high < 0 == by_speaker.high


def write(path, texts, references=REFERENCES, **more):
    rows = [{"id": i, "text": text, "reference": references[i], **more} for i, text in texts.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files(tmp_path):
    a = write(tmp_path / "a.jsonl", BAD, speaker="one")
    b = write(tmp_path / "b.jsonl", dict(reversed(GOOD.items())))
    (tmp_path / "b.jsonl.settings.json").write_text('{"seed": 7}')
    result, record = compare_files(a, b, samples=200)
    assert result.difference == pytest.approx(-50 / 160)
    assert record["b"] == {"decoded": str(b), "made_with": {"seed": 7}}
    assert record["difference"] == result.difference
    assert compare_files(a, b, by_speaker=True, samples=200)[0].draws == 1
    with pytest.raises(ScoreError, match="not every line names its speaker"):
        compare_files(b, a, by_speaker=True)


def test_what_cannot_be_compared(tmp_path):
    a = write(tmp_path / "a.jsonl", GOOD)
    fewer = write(tmp_path / "fewer.jsonl", {i: t for i, t in GOOD.items() if i != "7"})
    with pytest.raises(ScoreError, match="have no hypothesis: 7"):
        compare_files(a, fewer)
    with pytest.raises(ScoreError, match="have no reference: 7"):
        compare_files(fewer, a)
    other = write(tmp_path / "other.jsonl", GOOD, REFERENCES | {"3": "a b c d"})
    with pytest.raises(ScoreError, match="'3' has another reference"):
        compare_files(a, other)
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text('{"id": "1", "text": "A"}\n')
    with pytest.raises(ScoreError, match="'1' has no reference"):
        compare_files(nothing, a)
