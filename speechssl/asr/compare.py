"""Is one system better than another? Paired bootstrap over the utterances (or speakers) that both transcribed.

Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation": both systems are
scored on the same resampled set, so that what makes an utterance hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechssl.asr.files import read_rows, read_settings
from speechssl.asr.score import Score, ScoreError, score


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances. Rates are fractions.

    Attributes:
        wer_a, wer_b: word error rates.
        difference: wer_b - wer_a; below 0, B is better.
        low, high: its 95% interval.
        b_better: share of the resampled sets on which B has the lower rate (ties count half).
        p_value: twice the share of resampled sets on which the difference is 0 or on the other side of it; never 0.
        drawn: what was drawn with replacement: "utterance" or "speaker"; `draws`: how many there are.
    """

    wer_a: float
    wer_b: float
    difference: float
    low: float
    high: float
    b_better: float
    p_value: float
    utterances: int
    words: int
    drawn: str
    draws: int
    samples: int
    seed: int

    def record(self) -> dict:
        return asdict(self)


def compare(
    a: Score, b: Score, *, speakers: Sequence[str] | None = None, samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compares two scores whose rows are the same utterances in the same order.

    speakers: one for each row: whole speakers are drawn, which is honest where there are few and they differ much.
    """
    assert [row.id for row in a.rows] == [row.id for row in b.rows]
    words = np.array([row.words for row in a.rows], float)
    errors_a, errors_b = (np.array([row.errors for row in s.rows], float) for s in (a, b))
    if speakers is not None:
        groups = np.unique(np.array(speakers), return_inverse=True)[1]
        words, errors_a, errors_b = (np.bincount(groups, values) for values in (words, errors_a, errors_b))
    differences = paired_differences(errors_a, errors_b, words, samples=samples, seed=seed)
    low, high = np.percentile(differences, [2.5, 97.5])
    tail = min((differences >= 0).sum(), (differences <= 0).sum())
    return Comparison(
        wer_a=a.wer,
        wer_b=b.wer,
        difference=b.wer - a.wer,
        low=float(low),
        high=float(high),
        b_better=float((differences < 0).mean() + 0.5 * (differences == 0).mean()),
        p_value=float(min(1.0, 2 * (tail + 1) / (samples + 1))),
        utterances=len(a.rows),
        words=a.words,
        drawn="utterance" if speakers is None else "speaker",
        draws=len(words),
        samples=samples,
        seed=seed,
    )


def paired_differences(errors_a, errors_b, words, *, samples: int, seed: int) -> np.ndarray:
    """(samples,) differences of sum(errors) / sum(words), B less A, on sets of N drawn again with replacement."""
    errors_a, errors_b, words = (np.asarray(values, float) for values in (errors_a, errors_b, words))
    generator = np.random.default_rng(seed)
    result = np.empty(samples)
    block = max(1, 1_000_000 // len(words))  # draws at once
    for first in range(0, samples, block):
        draws = generator.integers(len(words), size=(min(block, samples - first), len(words)))
        lost = (errors_b - errors_a)[draws].sum(1)
        result[first : first + len(draws)] = lost / np.maximum(words[draws].sum(1), 1)
    return result


def compare_files(
    path_a: str | Path, path_b: str | Path, *, by_speaker: bool = False, samples: int = 10_000, seed: int = 0
) -> tuple[Comparison, dict]:
    """Compares two decode files with references. Returns the comparison and a record of it with both settings.

    Raises ScoreError: other utterances or references in one file than in the other, or no speakers where they are
        needed; DecodedFileError.
    """
    rows_a, rows_b = read_rows(path_a), {row["id"]: row for row in read_rows(path_b)}
    for row in rows_a:
        if row.get("reference") is None:
            raise ScoreError(f"{path_a}: '{row['id']}' has no reference; decode a manifest with transcripts.")
        other = rows_b.get(row["id"])
        if other is not None and other.get("reference") != row["reference"]:
            raise ScoreError(
                f"'{row['id']}' has another reference in {path_a} than in {path_b}; decode the same manifest with "
                "vocabularies of the same rule."
            )
    references = {row["id"]: row["reference"] for row in rows_a}
    speakers = [row.get("speaker") for row in rows_a]
    if by_speaker and None in speakers:
        raise ScoreError(f"{path_a}: not every line names its speaker; leave out --by-speaker, or decode again.")
    score_a = score({row["id"]: row["text"] for row in rows_a}, references, samples=1)
    score_b = score({i: row["text"] for i, row in rows_b.items()}, references, samples=1)
    result = compare(score_a, score_b, speakers=speakers if by_speaker else None, samples=samples, seed=seed)  # type: ignore[arg-type]
    systems = {
        name: {"decoded": str(path), "made_with": read_settings(path)} for name, path in (("a", path_a), ("b", path_b))
    }
    return result, {**result.record(), **systems}
