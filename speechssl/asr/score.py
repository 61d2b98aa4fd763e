"""Hypotheses against references: word and character error rates, their uncertainty, and where they come from.

jiwer aligns and counts. What is a word and which signs matter was decided before, by the vocabulary's rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import jiwer
import numpy as np

from speechssl.asr.breakdown import UtteranceScore, by_length, by_speaker, diagnose
from speechssl.asr.files import read_rows, read_settings, text_rule
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer, normalize_text
from speechssl.errors import UserError
from speechssl.files import write_whole

WORST = 50  # utterances shown aligned


class ScoreError(UserError):
    """Texts that cannot be scored. The message names the utterances."""


@dataclass(frozen=True)
class Score:
    """Word error rate over all utterances, as a fraction, and what it is made of.

    Attributes:
        wer, low, high: (substitutions + insertions + deletions) / words, and its bootstrap 95% interval.
        cer: the same over characters, spaces included.
        words: of the references.
        empty: hypotheses without a word.
        warning: a sentence when the number says little (blank collapse, one text for all) or its cause shows; else "".
        lengths, speakers: errors of the shortest, middle and longest third, and of each speaker (see `breakdown`).
        rows: one per utterance, in the references' order.
    """

    wer: float
    low: float
    high: float
    cer: float
    substitutions: int
    insertions: int
    deletions: int
    words: int
    utterances: int
    empty: int
    warning: str
    lengths: dict[str, dict]
    speakers: dict[str, dict]
    rows: tuple[UtteranceScore, ...]

    def summary(self) -> dict:
        """Plain data without the rows, as written to score.json."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}


def score(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    *,
    seconds: Mapping[str, float] | None = None,
    speakers: Mapping[str, str] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Score:
    """Scores texts by utterance id.

    seconds, speakers: of the utterances, as far as they are known.
    samples: bootstrap resamples of the utterances; the same seed gives the same interval.
    Raises ScoreError: other ids on one side than on the other, or references without a word.
    """
    _check_ids(hypotheses, references)
    ids = list(references)
    said, meant = [_spaced(hypotheses[i]) for i in ids], [_spaced(references[i]) for i in ids]
    if not any(meant):
        raise ScoreError("the references hold no words, so there is nothing to score.")
    words = jiwer.process_words(meant, said)
    rows = tuple(
        UtteranceScore(i, len(reference.split()), *_count(alignment), reference, hypothesis)
        for i, alignment, reference, hypothesis in zip(ids, words.alignments, meant, said, strict=True)
    )
    low, high = bootstrap([row.errors for row in rows], [row.words for row in rows], samples=samples, seed=seed)
    empty = sum(not text for text in said)
    return Score(
        wer=words.wer,
        low=low,
        high=high,
        cer=jiwer.process_characters(meant, said).cer,
        substitutions=words.substitutions,
        insertions=words.insertions,
        deletions=words.deletions,
        words=sum(row.words for row in rows),
        utterances=len(rows),
        empty=empty,
        warning=diagnose(rows),
        lengths=by_length(rows, seconds or {}),
        speakers=by_speaker(rows, speakers or {}),
        rows=rows,
    )


def bootstrap(errors, words, *, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% interval of sum(errors) / sum(words) when the N utterances are drawn again with replacement."""
    errors, words = np.asarray(errors), np.asarray(words)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(words), size=len(words)) for _ in range(samples))
    rates = [errors[draw].sum() / max(words[draw].sum(), 1) for draw in draws]
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def score_files(
    hypotheses_path: str | Path,
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    vocabulary: str | Path | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Score:
    """Scores a decode file and writes score.json, per_utterance.tsv and worst.txt into the folder `out`.

    score.json also holds the errors per speaker and per length, and all settings that the decode file was made with.

    manifest: takes the references from there, normalised by the rule that the decode file was made with.
    vocabulary: takes the rule from this vocabulary file instead, and applies it to the hypotheses as well
        (for hypotheses that another program made).
    Raises DecodedFileError with file and line, ScoreError with the first ids that differ.
    """
    lines = read_rows(hypotheses_path)
    hypotheses = {line["id"]: line["text"] for line in lines}
    references = {line["id"]: line["reference"] for line in lines if line.get("reference") is not None}
    speakers = {line["id"]: line["speaker"] for line in lines if line.get("speaker") is not None}
    seconds = {line["id"]: line["seconds"] for line in lines if line.get("seconds") is not None}
    if manifest is not None:
        labelled = Manifest.read(manifest).filter(lambda u: u.text is not None)
        references = {u.id: u.text for u in labelled if u.text is not None}
        speakers = {u.id: u.speaker for u in labelled if u.speaker is not None}
        seconds = {u.id: u.seconds for u in labelled}
    if vocabulary is not None:
        tokenizer = Tokenizer.read(vocabulary)
        hypotheses = {i: tokenizer.normalize(text) for i, text in hypotheses.items()}
        references = {i: tokenizer.normalize(text) for i, text in references.items()}
    elif manifest is not None:
        rule = text_rule(hypotheses_path)
        references = {i: normalize_text(text, **rule) for i, text in references.items()}
    if not references:
        raise ScoreError(f"{manifest or hypotheses_path}: holds no references; give a manifest with transcripts.")
    result = score(hypotheses, references, seconds=seconds, speakers=speakers, samples=samples, seed=seed)
    extra = {
        "hypotheses": str(hypotheses_path),
        "samples": samples,
        "seed": seed,
        "made_with": read_settings(hypotheses_path),
    }
    _write_all(result, Path(out), extra)
    return result


# ------------------------------------------------------------------------------------------------------- internals


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _count(alignment) -> tuple[int, int, int]:
    """Substitutions, insertions and deletions of one aligned utterance."""
    counts = {"substitute": 0, "insert": 0, "delete": 0, "equal": 0}
    for chunk in alignment:
        counts[chunk.type] += max(
            chunk.ref_end_idx - chunk.ref_start_idx,
            chunk.hyp_end_idx - chunk.hyp_start_idx,
        )
    return counts["substitute"], counts["insert"], counts["delete"]


def _check_ids(hypotheses: Mapping[str, str], references: Mapping[str, str]) -> None:
    missing = [i for i in references if i not in hypotheses]
    spare = [i for i in hypotheses if i not in references]
    for ids, what in ((missing, "no hypothesis"), (spare, "no reference")):
        if ids:
            named = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
            raise ScoreError(f"{len(ids)} utterances have {what}: {named}; both sides must hold the same utterances.")


def _write_all(result: Score, out: Path, extra: dict) -> None:
    write_whole(out / "score.json", json.dumps({**result.summary(), **extra}, ensure_ascii=False, indent=1) + "\n")
    header = "id\twords\tsubstitutions\tinsertions\tdeletions\treference\thypothesis\n"
    write_whole(out / "per_utterance.tsv", header + "".join(_tsv(row) for row in result.rows))
    write_whole(out / "worst.txt", worst(result))


def _tsv(row: UtteranceScore) -> str:
    counts = (row.words, row.substitutions, row.insertions, row.deletions)
    return "\t".join([_spaced(row.id), *map(str, counts), row.reference, row.hypothesis]) + "\n"


def worst(result: Score, count: int = WORST) -> str:
    """The utterances with the most errors, aligned word by word; S, I and D mark the errors."""
    wrong = [row for row in result.rows if row.errors]
    wrong = sorted(wrong, key=lambda row: (-row.errors, row.words, row.id))[:count]
    return "\n".join(_aligned(row) for row in wrong)


def _aligned(row: UtteranceScore) -> str:
    output = jiwer.process_words(row.reference, row.hypothesis)
    lines = jiwer.visualize_alignment(output, show_measures=False).splitlines()[2:]  # without "=== SENTENCE 1 ==="
    rows = "\n".join(line.rstrip() for line in lines).rstrip()
    return f"{row.id}: {row.errors} errors in {row.words} words\n{rows}\n"
