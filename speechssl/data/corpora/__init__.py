"""A corpus in the wild -> candidates; `speechssl.data.scan` listens to them and makes a manifest of what is sound."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from speechssl.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class CorpusError(UserError):
    """A corpus that cannot be used. The message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may become an utterance: nothing is known yet of the sound itself.

    Attributes:
        id, audio, byte_range, text, speaker: as in `Utterance`.
        label: its column `label`: a genre, a keyword.
        start: first sample, at the rate of the file.
        num_samples: samples from there; None: to the end of the file.
        sample_rate: of a series, Hz; None: the file says it.
    """

    id: str
    audio: str
    byte_range: tuple[int, int] | None = None
    text: str | None = None
    speaker: str | None = None
    label: str | None = None
    start: int = 0
    num_samples: int | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Corpus:
    """Candidates in a fixed order, and what was promised but is not there.

    Attributes:
        candidates: sorted by path, or in the order of the list they came from.
        no_audio: (id, file that names it) of each transcript without audio.
        of_speakers: speaker -> further columns of each of the speaker's utterances (gender).
    """

    candidates: tuple[Candidate, ...]
    no_audio: tuple[tuple[str, str], ...] = ()
    of_speakers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def walk(folder: str | Path) -> Iterator[Path]:
    """All files below `folder`, sorted, hidden ones left out; linked folders are entered, each real folder once.

    Raises:
        CorpusError: `folder` is not a folder.
    """
    if not os.path.isdir(folder):
        raise CorpusError(f"{folder}: no such folder.")
    seen = set()
    for parent, folders, files in os.walk(os.path.abspath(folder), followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))
        seen.add(real)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises CorpusError for any other encoding."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 at byte {error.start}; convert it (iconv -t utf-8).") from None


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 file. Only a newline ends a line: transcripts may hold other separators of Unicode."""
    return read_text(path).removesuffix("\n").split("\n")


def name_by_folder(candidates: list[Candidate], column: str, level: int, folder: Path) -> list[Candidate]:
    """`column` (speaker or label) is part `level` of the id; files above that level keep none. Raises CorpusError."""

    def name(candidate: Candidate) -> str | None:
        folders = candidate.id.split("/")[:-1]
        return folders[level - 1] if 1 <= level <= len(folders) else None

    names = [name(candidate) for candidate in candidates]
    if not any(names):
        raise CorpusError(
            f"{folder}: no file has a folder at {column} level {level} (for example {candidates[0].id}); "
            "1 is the first folder below the one given."
        )
    pairs = zip(candidates, names, strict=True)
    return [replace(c, label=found) if column == "label" else replace(c, speaker=found) for c, found in pairs]
