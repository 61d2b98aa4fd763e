"""A tree of series in .npy of shape (channels, time)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from speechssl.data.audio import AudioError
from speechssl.data.corpora import Candidate, Corpus, CorpusError, name_by_folder, walk
from speechssl.data.series import is_series, open_series


def read(
    folder: str | Path, *, sample_rate: int, max_seconds: float | None = None, label_level: int | None = None
) -> Corpus:
    """Candidates of a tree. The id is the path below `folder` without its suffix.

    Args:
        folder: any depth; files that end in .npy.
        sample_rate: steps per second of all of them, Hz.
        max_seconds: longer series become pieces of this length and a shorter last one, named `<id>_<first>-<last>` by
            their steps; None: a series is never cut.
        label_level: see `speechssl.data.corpora.folder.read`.

    Raises:
        CorpusError: no series, no such level, or pieces shorter than one step.
    """
    folder = Path(os.path.abspath(folder))
    size = None if max_seconds is None else round(max_seconds * sample_rate)
    if size is not None and size < 1:
        raise CorpusError(
            f"{max_seconds:g} seconds are shorter than one step at {sample_rate} Hz; raise --max-seconds."
        )
    candidates: list[Candidate] = []
    for path in walk(folder):
        if is_series(path):
            name = path.relative_to(folder).with_suffix("").as_posix()
            candidates += _pieces(Candidate(name, str(path), sample_rate=sample_rate), size)
    if not candidates:
        raise CorpusError(f"{folder}: no series in it; their files end in .npy and hold (channels, time).")
    if label_level is not None:
        candidates = name_by_folder(candidates, "label", label_level, folder)
    return Corpus(tuple(candidates))


def _pieces(whole: Candidate, size: int | None) -> list[Candidate]:
    try:
        steps = open_series(whole.audio).shape[1]
    except AudioError:
        return [whole]  # the scan says what is wrong with it
    if size is None or steps <= size:
        return [whole]
    spans = ((start, min(start + size, steps)) for start in range(0, steps, size))
    return [
        replace(whole, id=f"{whole.id}_{start:08d}-{stop:08d}", start=start, num_samples=stop - start)
        for start, stop in spans
    ]
