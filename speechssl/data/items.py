"""Item files for ABX, in the format of the ZeroSpeech challenges.

    #file onset offset #phone prev-phone next-phone speaker
    84-121123-0000 0.3100 0.3800 G SIL O 84

One line per phone (or letter); `#file` is an utterance's id in a manifest, times are seconds from its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.alignment import Interval
from speechssl.errors import UserError
from speechssl.files import whole_file

COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
SILENCE = "SIL"  # the neighbour of an utterance's first and last label


class ItemsError(UserError):
    """Items that cannot be read, written or used. The message names the file and what to do."""


@dataclass(frozen=True)
class Item:
    """A phone from `onset` to `offset` (seconds) of an utterance, its neighbours, and who said it."""

    utterance: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path: str | Path) -> list[Item]:
    """Raises ItemsError with file and line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ItemsError(f"{path}: cannot be read: {error}.") from None
    header = lines[0].split() if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise ItemsError(
            f"{path}, line 1: has no {', '.join(missing)}; an item file begins with the line `{' '.join(COLUMNS)}`."
        )
    places, items = [header.index(name) for name in COLUMNS], []
    for number, line in enumerate(lines[1:], 2):
        columns = line.split()
        if not columns:
            continue
        try:
            if len(columns) != len(header):
                raise ValueError
            utterance, onset, offset, *names = (columns[place] for place in places)
            item = Item(utterance, float(onset), float(offset), *names)
            if not (math.isfinite(item.offset) and 0 <= item.onset <= item.offset):
                raise ValueError
        except ValueError:
            raise ItemsError(
                f"{path}, line {number}: not {len(header)} columns with onset and offset in seconds."
            ) from None
        items.append(item)
    if not items:
        raise ItemsError(f"{path}: holds no items.")
    return items


def items_of(labels: Mapping[str, Sequence[Interval]], speakers: Mapping[str, str]) -> list[Item]:
    """One item for each label, with its neighbours in the utterance; `speakers` by utterance."""
    items = []
    for utterance, intervals in labels.items():
        names = [SILENCE, *(interval.label for interval in intervals), SILENCE]
        for i, interval in enumerate(intervals):
            start, end = interval.start, interval.end
            items.append(Item(utterance, start, end, names[i + 1], names[i], names[i + 2], speakers[utterance]))
    return items


def write_items(path: str | Path, items: Iterable[Item]) -> None:
    """Writes them whole or not at all. Raises ItemsError: a name with a space in it, which the format cannot hold."""
    with whole_file(path) as file:
        file.write(" ".join(COLUMNS) + "\n")
        for item in items:
            names = (item.utterance, item.phone, item.before, item.after, item.speaker)
            if spaced := [name for name in names if len(name.split()) != 1]:
                raise ItemsError(f"{path}: an item file cannot hold '{spaced[0]}': names must be without spaces.")
            times = f"{item.onset:.4f} {item.offset:.4f}"
            file.write(f"{names[0]} {times} {' '.join(names[1:])}\n")
