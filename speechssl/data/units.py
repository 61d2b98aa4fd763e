"""A units folder: the cluster of every stretch of speech, by utterance id. Memory-mapped: nothing is read until asked.

    units.npy     (N,) int16 or int32: the units of all utterances in a row
    index.jsonl   one line per utterance: {"id": ..., "first": place of its first unit, "count": how many}
    units.json    format, hop (samples), sample_rate (Hz), num_units, source (which features, which clusters)

Unit u of an utterance belongs to the samples from u * hop on, at `sample_rate`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError  # numpy parses a header as Python

import numpy as np

from speechssl.data.arrays import growing_array
from speechssl.errors import UserError
from speechssl.files import whole_file, write_whole

FORMAT = 1
RECORD, INDEX, ARRAY = "units.json", "index.jsonl", "units.npy"


class UnitsError(UserError):
    """Units that cannot be used. The message names the folder and what to do."""


@dataclass(frozen=True, kw_only=True)
class UnitsRecord:
    """
    hop: samples from one unit to the next, at sample_rate (Hz).
    sees: samples that a unit's frame sees, from i * hop on; 0: not known, taken to be hop.
    num_units: how many different ones there are; they are numbered from 0.
    source: what they were made from, as plain data: features (MFCC, or a checkpoint and its layer) and clusters.
    """

    hop: int
    sample_rate: int
    num_units: int
    source: dict = field(default_factory=dict)
    sees: int = field(default=0, compare=False)  # follows from the source

    def middles(self, count: int) -> np.ndarray:
        """(count,) seconds: the middle of what each unit's frame sees."""
        return (np.arange(count) * self.hop + (self.sees or self.hop) / 2) / self.sample_rate


class Units:
    """Reads units by utterance id.

    Raises UnitsError: not a units folder, or one that was cut short.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.record = read_record(self.folder)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with (self.folder / INDEX).open(encoding="utf-8") as file:
                for line in file:
                    row = json.loads(line)
                    self._places[row["id"]] = (row["first"], row["count"])
            size = len(np.load(self.folder / ARRAY, mmap_mode="r"))
            if not all(type(n) is int and n >= 0 for place in self._places.values() for n in place):
                raise ValueError("its index holds what is no number")
        except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, TokenError) as error:
            raise UnitsError(f"{self.folder}: cannot be read: {error}; make the units again.") from None
        if any(first + count > size for first, count in self._places.values()):
            raise UnitsError(
                f"{self.folder}: its index asks for more than the {size} units there are; make them again."
            )
        self._array: np.ndarray | None = None

    def __contains__(self, utterance: object) -> bool:
        return utterance in self._places

    def __len__(self) -> int:
        """How many utterances have units."""
        return len(self._places)

    @property
    def ids(self) -> list[str]:
        return list(self._places)

    def read(self, utterance: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """(count,) int64 units from number `first` on; -1 behind the end, and everywhere where there are none.

        count: None: to the end.
        """
        begin, total = self._places.get(utterance, (0, 0))
        count = max(total - first, 0) if count is None else count
        if self._array is None:  # each reader process maps the file itself
            self._array = np.load(self.folder / ARRAY, mmap_mode="r")
        result = np.full(count, -1, dtype=np.int64)
        there = self._array[begin + first : begin + min(first + count, total)] if first < total else result[:0]
        result[: len(there)] = there
        return result

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_array": None}  # a map would be copied whole into another process


def read_record(folder: str | Path) -> UnitsRecord:
    """Raises UnitsError."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise UnitsError(f"{folder}: not a units folder (no {RECORD}); make one with `speechssl units`.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise UnitsError(f"{path}: written by another version of speechssl; make the units again.")
        record = UnitsRecord(**data)
        sound = all(isinstance(n, int) and n > 0 for n in (record.hop, record.sample_rate, record.num_units))
        sound = sound and isinstance(record.sees, int) and record.sees >= 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UnitsError):
            raise
        raise UnitsError(f"{path}: cannot be read: {error}; make the units again.") from None
    if not sound:
        raise UnitsError(
            f"{path}: hop, sample_rate and num_units must be whole numbers from 1, and sees from 0; "
            "make the units again."
        )
    return record


def write_units(folder: str | Path, record: UnitsRecord, rows: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes a units folder whole or not at all, one utterance after the other.

    Args:
        folder: must not exist.
        rows: ids and their units (n,).

    Raises:
        UnitsError: an id comes twice.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    kind = np.int16 if record.num_units <= np.iinfo(np.int16).max else np.int32
    seen: set[str] = set()
    with growing_array(temporary / ARRAY, kind) as append, whole_file(temporary / INDEX) as index:
        for utterance, units in rows:
            if utterance in seen:
                raise UnitsError(f"utterance '{utterance}' comes twice; give the features of every manifest once.")
            seen.add(utterance)
            row = {"id": utterance, "first": append(units), "count": len(units)}
            index.write(json.dumps(row, ensure_ascii=False) + "\n")
    text = json.dumps({"format": FORMAT, **asdict(record)}, ensure_ascii=False, indent=1)
    write_whole(temporary / RECORD, text + "\n")
    temporary.rename(folder)
