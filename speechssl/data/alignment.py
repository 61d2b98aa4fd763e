"""Where in its utterance each letter, piece or phone was said: JSON lines (`speechssl align`), .ctm, TextGrid.

    {"id": "84-121123-0000", "speaker": "84", "seconds": 4.2, "score": 0.93,
     "labels": [{"label": "G", "start": 0.31, "end": 0.38, "score": 0.97}, ...],
     "words": [{"label": "GO", "start": 0.31, "end": 0.47, "score": 0.95}, ...]}

Times are seconds from the utterance's beginning, scores probabilities; only `id` and `labels` are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import UserError
from speechssl.files import write_whole


class AlignmentError(UserError):
    """An alignment that cannot be used. The message names the file, the line and the reason."""


@dataclass(frozen=True)
class Interval:
    """A label from `start` up to `end`, in seconds from the utterance's beginning, and how sure the model was."""

    start: float
    end: float
    label: str
    score: float | None = None

    def record(self) -> dict[str, Any]:
        """As it goes into a file."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return data | {"start": round(self.start, 4), "end": round(self.end, 4)}


def read_alignment(path: str | Path) -> dict[str, list[Interval]]:
    """Labels by utterance, in order of time.

    Args:
        path: JSON lines, or a .ctm file: one line per label, `utterance channel start duration label`, in seconds.

    Raises:
        AlignmentError with file and line.
    """
    path = Path(path)
    read: Callable[[str], tuple[str, list[Interval]]] = _ctm_line if path.suffix == ".ctm" else _json_line
    labels: dict[str, list[Interval]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AlignmentError(f"{path}: cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            utterance, intervals = read(line)
            if not all(math.isfinite(i.end) and 0 <= i.start <= i.end for i in intervals):
                raise ValueError("a label must end behind its beginning, and begin at 0 s or later")
        except ValueError as error:
            raise AlignmentError(f"{path}, line {number}: {error}.") from None
        labels.setdefault(utterance, []).extend(intervals)
    if not any(labels.values()):
        raise AlignmentError(f"{path}: holds no labels.")
    return {name: sorted(intervals, key=lambda i: i.start) for name, intervals in labels.items()}


def _ctm_line(line: str) -> tuple[str, list[Interval]]:
    try:
        utterance, _, start, duration, label = line.split()[:5]
        return utterance, [Interval(float(start), float(start) + float(duration), label)]
    except ValueError:
        raise ValueError("not `utterance channel start duration label`, with times in seconds") from None


def _json_line(line: str) -> tuple[str, list[Interval]]:
    try:
        row = json.loads(line)
        intervals = [Interval(float(i["start"]), float(i["end"]), i["label"]) for i in row["labels"]]
        if not isinstance(row["id"], str) or not all(isinstance(i.label, str) and i.label for i in intervals):
            raise TypeError
        return row["id"], intervals
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            "not a line of `speechssl align` with id and labels (phones of another program go into a .ctm file)"
        ) from None


def write_textgrid(path: str | Path, seconds: float, tiers: Mapping[str, Sequence[Interval]]) -> None:
    """Writes a TextGrid (Praat's long format), whole or not at all; what lies between labels is empty intervals.

    Args:
        seconds: of the whole utterance.
        tiers: name -> labels that do not overlap, in order of time.
    """
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.6f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for place, (name, labels) in enumerate(tiers.items(), 1):
        whole = list(_without_gaps(labels, seconds))
        lines += [f"    item [{place}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}"]
        lines += ["        xmin = 0", f"        xmax = {seconds:.6f}", f"        intervals: size = {len(whole)}"]
        for number, interval in enumerate(whole, 1):
            lines += [f"        intervals [{number}]:", f"            xmin = {interval.start:.6f}"]
            lines += [f"            xmax = {interval.end:.6f}", f"            text = {_quoted(interval.label)}"]
    write_whole(path, "\n".join(lines) + "\n")


def _without_gaps(labels: Sequence[Interval], seconds: float):
    time = 0.0
    for interval in labels:
        if interval.start - time > 1e-6:
            yield Interval(time, interval.start, "")
        yield interval
        time = interval.end
    if seconds - time > 1e-6:
        yield Interval(time, seconds, "")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
