"""`Manifest`: a list of utterances as JSON lines, one object a line.

    {"id": "84-121123-0000", "audio": "dev-clean/84/121123/84-121123-0000.flac", "num_samples": 67280,
     "sample_rate": 16000, "speaker": "84", "text": "GO DO YOU HEAR"}

`audio` is absolute or relative to the manifest's folder. `start` says where the utterance begins inside a longer
recording; `byte_range` says where the file lies inside an uncompressed tar. Nothing is ever copied.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechssl.errors import UserError
from speechssl.files import whole_file

MAX_LINE = 1_000_000  # characters; a longer line is not a manifest's


class ManifestError(UserError):
    """A manifest that cannot be used. The message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech: an audio file, or a segment of one.

    Attributes:
        id: unique in its manifest.
        audio: path of the file (or of the tar that holds it).
        num_samples: length of the segment, at `sample_rate`.
        sample_rate: of the file, in Hz; readers resample.
        start: first sample of the segment in the file, at `sample_rate`.
        byte_range: (offset, size) of the file inside an uncompressed tar, or None.
        text: transcript, or None.
        speaker: name, or None.
        channels: of a series in .npy (`speechssl.data.series`); sound has one, into which its channels are mixed.
        extra: the other columns of its line, as they were: keyword, gender, ...
    """

    id: str
    audio: str
    num_samples: int
    sample_rate: int
    start: int = 0
    byte_range: tuple[int, int] | None = None
    text: str | None = None
    speaker: str | None = None
    channels: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    def length_at(self, sample_rate: int) -> int:
        """Samples after resampling to `sample_rate` (rounded up, as torchaudio does)."""
        return -(-self.num_samples * sample_rate // self.sample_rate)


_KNOWN = {f.name for f in dataclasses.fields(Utterance)} - {"extra"}
_HALF = re.compile("[\ud800-\udfff]").search  # of a letter: JSON can say it, and no file can hold it
_REQUIRED = ("id", "audio", "num_samples", "sample_rate")
_NEEDED = frozenset(_REQUIRED)


@dataclass(frozen=True)
class Manifest(Sequence):
    """An immutable list of utterances; audio paths are absolute once read."""

    utterances: tuple[Utterance, ...]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index):
        return self.utterances[index]

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    @property
    def hours(self) -> float:
        return sum(u.seconds for u in self.utterances) / 3600

    @property
    def speakers(self) -> list[str]:
        return sorted({u.speaker for u in self.utterances if u.speaker is not None})

    def filter(self, keep: Callable[[Utterance], bool]) -> Manifest:
        return Manifest(tuple(u for u in self.utterances if keep(u)))

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> Manifest:
        return cls(tuple(utterances))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Reads and validates a manifest. Raises ManifestError with file and line."""
        path = Path(path)
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest; make one with `speechssl manifest`.")
        folder = str(path.resolve().parent)
        utterances: list[Utterance] = []
        seen: dict[str, int] = {}  # id -> line
        with path.open(encoding="utf-8", errors="strict") as file:
            number = 0
            try:
                while line := file.readline(MAX_LINE + 1):
                    number += 1
                    if not line.strip():
                        continue
                    utterance = _parse_line(line, folder)
                    if utterance.id in seen:
                        raise ValueError(f"utterance '{utterance.id}' was already on line {seen[utterance.id]}")
                    seen[utterance.id] = number
                    utterances.append(utterance)
            except ValueError as error:
                raise ManifestError(f"{path}, line {max(number, 1)}: {error}; repair or remove the line.") from None
        if not utterances:
            raise ManifestError(f"{path}: holds no utterances.")
        return cls(tuple(utterances))

    def write(self, path: str | Path, *, relative: bool = False) -> None:
        """Writes the manifest whole or not at all (temporary file, then rename).

        relative: write audio paths relative to the manifest's folder, so that the tree can be moved.
        """
        folder = Path(path).resolve().parent
        with whole_file(path) as file:
            for utterance in self.utterances:
                file.write(_format_line(utterance, folder if relative else None) + "\n")


def _format_line(utterance: Utterance, folder: Path | None) -> str:
    record = {name: getattr(utterance, name) for name in Utterance.__dataclass_fields__ if name in _KNOWN}
    record = {k: v for k, v in record.items() if v is not None and (k, v) not in (("start", 0), ("channels", 1))}
    if folder is not None:
        record["audio"] = os.path.relpath(record["audio"], folder)
    return json.dumps(record | dict(utterance.extra), ensure_ascii=False)


def _parse_line(line: str, folder: str) -> Utterance:
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} characters")
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not a JSON object") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if not record.keys() >= _NEEDED:
        raise ValueError(f"no {', '.join(name for name in _REQUIRED if name not in record)}")
    extra: dict[str, Any] = {}
    if not record.keys() <= _KNOWN:  # other columns are the user's own
        extra = {k: v for k, v in record.items() if k not in _KNOWN}
        record = {k: v for k, v in record.items() if k in _KNOWN}
    _check_types(record)
    if "\\u" in line:  # the only way to say half a letter
        _check_letters(record)
    if record.get("byte_range") is not None:
        record["byte_range"] = tuple(record["byte_range"])
    if not os.path.isabs(record["audio"]):
        record["audio"] = os.path.join(folder, record["audio"])
    return Utterance(**record, extra=extra)


def _check_types(record: dict) -> None:
    for name in ("id", "audio"):
        if not isinstance(record[name], str) or not record[name]:
            raise ValueError(f"{name} must be a text, not {record[name]!r}")
    for name in ("text", "speaker"):
        if not isinstance(record.get(name), (str, type(None))):
            raise ValueError(f"{name} must be a text, not {record[name]!r}")
    for name, least in (("num_samples", 1), ("sample_rate", 1), ("start", 0), ("channels", 1)):
        value = record.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**53:
            raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")
    span = record.get("byte_range")
    valid = isinstance(span, list) and len(span) == 2 and all(type(x) is int and x >= 0 for x in span)
    if span is not None and not valid:
        raise ValueError(f"byte_range must be [offset, size], not {span!r}")


def _check_letters(record: dict) -> None:
    for name in ("id", "audio", "text", "speaker"):
        if _HALF(record.get(name) or ""):
            raise ValueError(f"{name} {record[name]!r} holds half a letter")
