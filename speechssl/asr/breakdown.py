"""Word errors per utterance, speaker and length, and what the texts as a whole say about the system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLLAPSED_SHARE = 0.9  # of the hypotheses are empty: the model answers blank everywhere
SAME_SHARE = 0.5  # of the hypotheses are one text
SHORT, LONG = 0.6, 1.5  # letters or words of the hypotheses over those of the references
ENOUGH = 10  # utterances, for a sentence about all of them


@dataclass(frozen=True)
class UtteranceScore:
    """Word errors of one utterance."""

    id: str
    words: int
    substitutions: int
    insertions: int
    deletions: int
    reference: str
    hypothesis: str

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions


def by_speaker(rows: Sequence[UtteranceScore], speakers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Speaker -> utterances, words, errors and word error rate, worst first. Utterances of nobody are left out."""
    groups: dict[str, list[UtteranceScore]] = {}
    for row in rows:
        if row.id in speakers:
            groups.setdefault(speakers[row.id], []).append(row)
    totals = {speaker: _total(group) for speaker, group in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: (-item[1]["wer"], item[0])))


def by_length(rows: Sequence[UtteranceScore], seconds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The shortest, middle and longest third, by seconds of audio (by words of the reference where they are unknown).

    Returns name -> unit, from, to, and the totals as in `by_speaker`; {} for fewer than three utterances.
    """
    known = all(row.id in seconds for row in rows)
    length = {row.id: seconds[row.id] if known else float(row.words) for row in rows}
    ordered = sorted(rows, key=lambda row: (length[row.id], row.id))
    if len(ordered) < 3:
        return {}
    thirds = np.array_split(np.arange(len(ordered)), 3)
    result = {}
    for name, places in zip(("shortest", "middle", "longest"), thirds, strict=True):
        group = [ordered[i] for i in places]
        span = {"unit": "seconds" if known else "words", "from": length[group[0].id], "to": length[group[-1].id]}
        result[name] = span | _total(group)
    return result


def _total(rows: Sequence[UtteranceScore]) -> dict[str, Any]:
    words, errors = sum(row.words for row in rows), sum(row.errors for row in rows)
    return {"utterances": len(rows), "words": words, "errors": errors, "wer": errors / max(words, 1)}


def diagnose(rows: Sequence[UtteranceScore]) -> str:
    """A sentence when the error rate says little, or its cause shows in the texts; else ""."""
    empty = sum(not row.hypothesis for row in rows)
    if empty >= COLLAPSED_SHARE * len(rows):
        return (
            f"{empty} of {len(rows)} hypotheses are empty: the model answers blank on nearly every frame (blank "
            "collapse), so this error rate says nothing about the encoder. Train for more updates (the plateau of "
            "blanks is where CTC starts), raise the learning rate of the head, or check that the transcripts belong "
            "to the audio."
        )
    if len(rows) < ENOUGH:
        return ""
    text, count = Counter(row.hypothesis for row in rows).most_common(1)[0]
    if count > SAME_SHARE * len(rows) and sum(row.reference == text for row in rows) < count / 2:
        return (
            f"{count} of {len(rows)} hypotheses are the same text ('{text[:40]}'): it does not come from the audio. "
            "Train for more updates, or lower the weight of the language model."
        )
    return _length_mismatch(rows)


def _length_mismatch(rows: Sequence[UtteranceScore]) -> str:
    spelt, meant = (
        sum(len(text.replace(" ", "")) for text in texts)
        for texts in ([row.hypothesis for row in rows], [row.reference for row in rows])
    )
    letters = spelt / max(meant, 1)
    words = sum(len(row.hypothesis.split()) for row in rows) / max(sum(row.words for row in rows), 1)
    if letters < SHORT:
        return (
            f"the hypotheses hold {letters:.0%} of the references' letters: most is missing. Train for more updates; "
            "with a language model lower its weight or raise the word score; see whether the settings file lists "
            "references that cannot fit."
        )
    if letters > LONG:
        return (
            f"the hypotheses hold {letters:.0%} of the references' letters: too much is spelt. Check that the "
            "transcripts belong to the audio and are whole; with a language model lower the word score."
        )
    if words < SHORT:
        return (
            f"the hypotheses hold {letters:.0%} of the references' letters but {words:.0%} of their words: words run "
            "together. Raise the word score, or check that the training transcripts have spaces."
        )
    if words > LONG:
        return (
            f"the hypotheses hold {letters:.0%} of the references' letters but {words:.0%} of their words: words fall "
            "apart. Decode with a language model, or lower the word score."
        )
    return ""
