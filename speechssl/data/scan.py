"""Listens to every candidate of a corpus, keeps what is sound, and reports what was left out and why."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from speechssl.data.audio import AudioError, open_audio
from speechssl.data.corpora import Candidate, Corpus
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.series import open_series
from speechssl.errors import UserError

BLOCK = 1 << 16  # samples (over all channels) decoded at once: a header's claim never allocates anything
FULL_SCALE = 32767 / 32768  # the largest 16-bit sample
UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's answer where a header says nothing
FEW = 64  # items that are not worth the start of reader processes
HISTOGRAM = (0, 1, 2, 4, 8, 12, 16, 20, 30)  # seconds; the last bin is open

REASONS = {
    "unreadable": "not audio, missing, or damaged from the start",
    "truncated": "its header promises more than can be decoded",
    "empty": "no samples",
    "not finite": "NaN or infinite samples",
    "too short": "shorter than the least length",
    "too long": "longer than the greatest length",
    "clipped": "too many samples at full scale",
    "no speech": "a long recording in which no speech was found",
    "duplicate id": "another utterance has this id",
    "no transcript": "a transcript was expected",
    "no audio": "a transcript line whose audio is not there",
}


class ScanError(UserError):
    """A scan that could not be finished."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What counts as sound.

    Attributes:
        min_seconds, max_seconds: shorter and longer recordings are left out.
        max_clipped: largest share of samples at full scale. Speech that is merely loud stays below 0.1 %, a tone at
            full scale below 0.7 %; above 1 % the waveform is visibly cut off.
        require_text: leave out what has no transcript.
        keep_long: keep recordings without a transcript that are longer than max_seconds, to be cut afterwards.
    """

    min_seconds: float = 0.1
    max_seconds: float = 40.0
    max_clipped: float = 0.01
    require_text: bool = False
    keep_long: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One thing that is not in the manifest: a key of REASONS, its id, the file, and more in words."""

    reason: str
    id: str
    audio: str
    detail: str = ""


@dataclass(frozen=True)
class ScanReport:
    """What a manifest holds and what was left out of it; `made_by` is the command that made it."""

    utterances: int
    transcribed: int
    hours: float
    speakers: int
    histogram: dict[str, int]
    left_out: tuple[LeftOut, ...]
    made_by: dict = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, left_out: Iterable[LeftOut] = (), made_by: dict | None = None) -> ScanReport:
        counts, _ = np.histogram([u.seconds for u in manifest], bins=[*HISTOGRAM, np.inf])
        labels = [f"{low}-{high} s" for low, high in itertools.pairwise(HISTOGRAM)]
        labels.append(f"from {HISTOGRAM[-1]} s")
        return cls(
            utterances=len(manifest),
            transcribed=sum(u.text is not None for u in manifest),
            hours=round(manifest.hours, 4),
            speakers=len(manifest.speakers),
            histogram=dict(zip(labels, map(int, counts), strict=True)),
            left_out=tuple(left_out),
            made_by=made_by or {},
        )

    def by_reason(self) -> dict[str, list[LeftOut]]:
        """What was left out, in the order of REASONS."""
        return {
            reason: chosen
            for reason in REASONS
            if (chosen := [item for item in self.left_out if item.reason == reason])
        }

    def write(self, path: str | Path) -> None:
        """Writes JSON: the fields, with `left_out` as reason -> list of {id, audio, detail}."""
        record = asdict(self)
        record["left_out"] = {
            reason: [{"id": item.id, "audio": item.audio, "detail": item.detail} for item in items]
            for reason, items in self.by_reason().items()
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def show(self, console: Console, *, names: int = 3) -> None:
        """Prints the report; of each reason the first few `names`."""
        console.print(
            f"{self.utterances} utterances, {self.hours:.2f} hours, {self.speakers} speakers, "
            f"{self.transcribed} with a transcript",
            highlight=False,
        )
        lengths = Table("length", "utterances", "", title="Lengths", title_justify="left")
        most = max(self.histogram.values(), default=0) or 1
        for label, count in self.histogram.items():
            lengths.add_row(label, str(count), "#" * round(30 * count / most))
        console.print(lengths)
        if not self.left_out:
            console.print("nothing was left out")
            return
        table = Table("left out", "number", "for example", title="Left out", title_justify="left")
        for reason, items in self.by_reason().items():
            examples = "\n".join(f"{item.id}: {item.detail or item.audio}" for item in items[:names])
            more = f"\n... and {len(items) - names} more" if len(items) > names else ""
            table.add_row(f"{reason}\n({REASONS[reason]})", str(len(items)), escape(examples + more))
        console.print(table)


def scan(corpus: Corpus, rules: Rules, *, jobs: int = 0, progress: bool = True) -> tuple[Manifest, list[LeftOut]]:
    """Decodes every candidate whole and sorts out what is not sound.

    Args:
        corpus: from `speechssl.data.corpora`.
        rules: what counts as sound.
        jobs: reader processes; 0: one per core.
        progress: show a progress bar.

    Returns:
        The manifest, in the order of the candidates (it may be empty), and what was left out.

    Raises:
        ScanError: a reader process was killed.
    """
    kept, left_out, seen = [], [], set()
    results = parallel(functools.partial(check, rules=rules), corpus.candidates, "listening", jobs, progress)
    for result in results:
        if isinstance(result, Utterance) and result.id in seen:
            result = LeftOut("duplicate id", result.id, result.audio)
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            seen.add(result.id)
            columns = corpus.of_speakers.get(result.speaker or "", {})
            kept.append(replace(result, extra={**result.extra, **columns}))
    left_out += [LeftOut("no audio", name, source) for name, source in corpus.no_audio]
    return Manifest.of(kept), left_out


def cores() -> int:
    """Of the machine, or those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable, items: Sequence, title: str, jobs: int = 0, progress: bool = True) -> Iterator:
    """Results of `function` (a picklable one) over `items`, in order, from spawned processes if there are many items.

    Raises:
        ScanError: a process was killed.
    """
    if not items:
        return
    jobs = jobs or cores()
    console = Console(stderr=True)
    shown = functools.partial(track, description=title, total=len(items), console=console, disable=not progress)
    if jobs == 1 or len(items) < FEW:
        yield from shown(map(function, items))
        return
    context = multiprocessing.get_context("spawn")  # safe beside threads, and the same on every platform
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            yield from shown(pool.map(function, items, chunksize=16))
        except BrokenProcessPool:
            raise ScanError(
                "a reader process was killed (out of memory?); run again with fewer processes (--jobs 1)."
            ) from None


def check(candidate: Candidate, rules: Rules) -> Utterance | LeftOut:
    """Listens to one candidate."""

    def out(reason: str, detail: str = "") -> LeftOut:
        return LeftOut(reason, candidate.id, candidate.audio, detail)

    if rules.require_text and not candidate.text:
        return out("no transcript")
    if _num_bytes(candidate) == 0:
        return out("empty", "the file has no bytes")
    if candidate.sample_rate is not None:
        return _check_series(candidate, candidate.sample_rate, rules, out)
    try:
        with open_audio(Utterance(candidate.id, candidate.audio, 1, 1, byte_range=candidate.byte_range)) as file:
            rate, sound = file.samplerate, _listen(file, candidate.start, candidate.num_samples)
    except AudioError as error:
        return out("unreadable", str(error))
    seconds = sound.samples / rate
    if sound.promised >= UNKNOWN_LENGTH:
        return out("unreadable", "its header does not say how long it is; write the file again with a whole header")
    if sound.samples < sound.promised:
        return out("truncated", f"decoding breaks off after about {sound.samples} of {sound.promised} samples")
    if sound.samples == 0:
        return out("empty")
    if not sound.finite:
        return out("not finite")
    if seconds < rules.min_seconds:
        return out("too short", f"{seconds:.3f} s")
    if seconds > rules.max_seconds and not (rules.keep_long and not candidate.text):
        return out("too long", f"{seconds:.1f} s")
    if sound.clipped > rules.max_clipped:
        return out("clipped", f"{sound.clipped:.1%} of the samples are at full scale")
    return Utterance(
        id=candidate.id,
        audio=candidate.audio,
        num_samples=sound.samples,
        sample_rate=rate,
        start=candidate.start,
        byte_range=candidate.byte_range,
        text=candidate.text,
        speaker=candidate.speaker,
        extra={} if candidate.label is None else {"label": candidate.label},
    )


def _check_series(candidate: Candidate, rate: int, rules: Rules, out: Callable) -> Utterance | LeftOut:
    try:
        array = open_series(candidate.audio)
    except AudioError as error:
        return out("unreadable", str(error))
    channels, steps = array.shape
    count = steps - candidate.start if candidate.num_samples is None else candidate.num_samples
    if count == 0:
        return out("empty")
    if count / rate < rules.min_seconds:
        return out("too short", f"{count / rate:.3f} s: {count} steps of {channels} channels")
    step, stop = max(BLOCK // channels, 1), candidate.start + count
    for first in range(candidate.start, stop, step):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array[:, first : min(first + step, stop)].astype(np.float32))
        if bad.any():
            place = int(bad.any(0).argmax())
            return out("not finite", f"channel {int(bad[:, place].argmax())} at step {first + place}")
    return Utterance(
        id=candidate.id,
        audio=candidate.audio,
        num_samples=count,
        sample_rate=rate,
        start=candidate.start,
        channels=channels,
        extra={} if candidate.label is None else {"label": candidate.label},
    )


@dataclass(frozen=True)
class _Sound:
    samples: int  # decoded, per channel
    promised: int  # by the header or the list
    finite: bool
    clipped: float  # share of samples at full scale


def _listen(file: soundfile.SoundFile, start: int, count: int | None) -> _Sound:
    """Decodes [start, start + count) in blocks."""
    promised = count if count is not None else max(_promised(file) - start, 0)
    block = max(BLOCK // file.channels, 1)
    tally: Counter = Counter()
    finite = True
    try:
        if start:
            file.seek(start)
        while tally["samples"] < promised:
            samples = file.read(min(block, promised - tally["samples"]), dtype="float32", always_2d=True)
            if not len(samples):
                break
            finite = finite and bool(np.isfinite(samples).all())
            tally["samples"] += len(samples)
            tally["clipped"] += int(np.count_nonzero(np.abs(samples) >= FULL_SCALE))
    except (OSError, soundfile.LibsndfileError):
        pass  # decoding broke off: fewer samples than promised
    share = tally["clipped"] / max(tally["samples"] * file.channels, 1)
    return _Sound(tally["samples"], promised, finite, share)


def _promised(file: soundfile.SoundFile) -> int:
    """Samples per channel that the header promises.

    libsndfile quietly shortens a WAV to what the file holds and only logs the header's own number. Programs that write
    to a pipe leave a number near 2**32 or 2**31 there: that is no promise.
    """
    logged = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if logged is None or int(logged[1]) >= 2**31 - 2**16 or int(logged[1]) <= int(logged[2]):
        return file.frames
    return file.frames * int(logged[1]) // max(int(logged[2]), 1)


def _num_bytes(candidate: Candidate) -> int | None:
    if candidate.byte_range is not None:
        return candidate.byte_range[1]
    return os.path.getsize(candidate.audio) if os.path.isfile(candidate.audio) else None
