"""Labelled splits: six folds of 10 minutes inside 1 hour, inside 10 hours, inside 100 hours; or any other length.

By Libri-Light's own lists where its archive is there, else by a rule of the same shape on any labelled manifest.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath

from speechssl.data.corpora import AUDIO_SUFFIXES, walk
from speechssl.data.manifest import Manifest, Utterance
from speechssl.errors import UserError

FOLDS = 6
SECONDS = {"10min": 600.0, "1h": 3600.0, "10h": 36_000.0, "100h": 360_000.0}
Splits = tuple[dict[str, Manifest], dict[str, str]]  # those that can be made, and why the others cannot
TOLERANCE = 0.01  # a corpus that lacks at most this share of a split (for 1h: of its last fold) still gives it


class SplitError(UserError):
    """A split that cannot be made. The message says what is the largest available."""


def seconds_of(label: str) -> float:
    """What a split's name says: "3min" is 180. Raises SplitError."""
    said = re.fullmatch(r"([1-9][0-9]*)(min|h)", label)
    if said is None:
        raise SplitError(f"no split '{label}'; choose from {', '.join(SECONDS)}, or say a length as 3min or 5h.")
    return float(said[1]) * {"min": 60, "h": 3600}[said[2]]


def names(label: str) -> list[str]:
    """Manifest names of a split: "10min" has six folds, "10min-0" to "10min-5". Raises SplitError."""
    seconds_of(label)
    return [f"10min-{fold}" for fold in range(FOLDS)] if label == "10min" else [label]


def seeded(manifest: Manifest, *, seed: int = 0, labels: Iterable[str] = ()) -> Splits:
    """The splits of any labelled manifest, by a rule of Libri-Light's shape.

    The labelled utterances are put in one order that takes the speakers in turn, and the splits are stretches of it:
    fold k lasts from minute 10 k to 10 (k + 1), "1h" is the six folds, "10h" the first ten hours, and so is any other
    length. So folds are disjoint, larger splits hold the smaller ones, and within a split two speakers differ by at
    most one utterance as long as both still have some. A split begins and ends at the utterance border nearest to its
    time.

    A pure function of the utterances (in whatever order they are listed) and the seed.

    Args:
        manifest: what to choose from; utterances without a transcript are no labels.
        seed: draws the two orders.
        labels: other lengths that are wanted, "3min" or "5h".

    Returns:
        Splits by name ("10min-0", ..., "1h", "10h", "100h", `labels`), and for each that the corpus is too small for a
        sentence.

    Raises:
        SplitError: one of `labels` is no length.
    """
    order = _in_turn([u for u in manifest if u.text], seed)
    ends = list(itertools.accumulate(u.seconds for u in order))
    total = ends[-1] if ends else 0.0

    def border(seconds: float) -> int:
        """Number of utterances whose total is nearest to `seconds`."""
        index = bisect.bisect_left(ends, seconds)
        before, after = (ends[index - 1] if index else 0.0), (ends[index] if index < len(ends) else float("inf"))
        return index if seconds - before <= after - seconds else index + 1

    stretches = {f"10min-{fold}": (fold * SECONDS["10min"], (fold + 1) * SECONDS["10min"]) for fold in range(FOLDS)}
    stretches |= {label: (0.0, seconds_of(label)) for label in ("1h", "10h", "100h", *labels) if label != "10min"}
    splits, missing = {}, {}
    for name, (start, stop) in sorted(stretches.items(), key=lambda stretch: stretch[1][1] - stretch[1][0]):
        lacking = TOLERANCE * (SECONDS["10min"] if stop <= SECONDS["1h"] else stop)
        if total >= stop - lacking:
            splits[name] = Manifest.of(order[border(start) : border(stop)])
        else:
            largest = f"the largest available is {list(splits)[-1]}" if splits else "no split is available"
            missing[name] = (
                f"{name}: {stop / 60:.0f} minutes with transcripts are needed, the manifest has {total / 60:.1f}; "
                f"{largest}."
            )
    return splits, missing


def _in_turn(utterances: list[Utterance], seed: int) -> list[Utterance]:
    """One utterance of each speaker, then a second one of each, ...; both orders are drawn by the seed."""
    by_speaker = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker or ""].append(utterance)
    rounds = itertools.zip_longest(
        *(
            sorted(by_speaker[speaker], key=lambda u: _draw(seed, u.id))
            for speaker in sorted(by_speaker, key=lambda speaker: _draw(seed, speaker))
        )
    )
    return [utterance for turn in rounds for utterance in turn if utterance is not None]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


def libri_light(manifest: Manifest, folder: str | Path) -> Splits:
    """The published splits, from the unpacked `librispeech_finetuning` and a manifest of LibriSpeech's training sets.

    Fold k is the folder 1h/k, "1h" all of 1h, "10h" 1h and 9h, "100h" the utterances whose audio lies in
    train-clean-100.

    Args:
        manifest: utterances with LibriSpeech's ids, from the original sets or from `folder` itself.
        folder: `librispeech_finetuning`, or the folder that holds it.

    Returns:
        Splits by name, and for those that cannot be made a sentence that says why.

    Raises:
        SplitError: `folder` does not have the published layout.
    """
    lists = _libri_light_ids(Path(folder))
    hundred = [u for u in manifest if u.text and "train-clean-100" in PurePath(u.audio).parts]
    splits, missing = {}, {}
    for name, wanted in lists.items():
        found = Manifest.of(u for u in manifest if u.id in wanted and u.text)
        if len(found) == len(wanted):
            splits[name] = found
        else:
            absent = min(wanted - {u.id for u in found})
            missing[name] = (
                f"{name}: {len(wanted) - len(found)} of {len(wanted)} utterances of Libri-Light's list are not there "
                f"(for example {absent}); make it from train-clean-100 and train-other-500, or from the folder itself."
            )
    if hundred:
        splits["100h"] = Manifest.of(hundred)
    else:
        missing["100h"] = "100h: the manifest has no transcribed audio in a folder train-clean-100."
    return splits, missing


def _libri_light_ids(folder: Path) -> dict[str, set[str]]:
    root = folder / "librispeech_finetuning" if (folder / "librispeech_finetuning").is_dir() else folder
    if not (root / "9h").is_dir() or not all((root / "1h" / str(fold)).is_dir() for fold in range(FOLDS)):
        raise SplitError(f"{root}: not Libri-Light's limited set; it should hold 1h/0 to 1h/{FOLDS - 1} and 9h.")

    def ids(*parts: str) -> set[str]:
        return {path.stem for path in walk(root.joinpath(*parts)) if path.suffix.lower() in AUDIO_SUFFIXES}

    lists = {f"10min-{fold}": ids("1h", str(fold)) for fold in range(FOLDS)}
    lists["1h"] = set().union(*lists.values())
    lists["10h"] = lists["1h"] | ids("9h")
    return lists
