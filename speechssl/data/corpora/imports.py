"""Lists made by other toolkits: fairseq's tsv (with .ltr or .wrd labels) and lhotse's cuts. Neither is imported."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from speechssl.data.corpora import Candidate, Corpus, CorpusError, read_lines

MAX_LINE = 10_000_000  # characters of a cut


def read_fairseq(tsv: str | Path, *, root: str | Path | None = None) -> Corpus:
    """Candidates of a fairseq list: the root folder on line 1, then `path<TAB>samples`.

    A path may be `file:offset:size` (bytes inside an archive). Texts come from `<stem>.wrd` (words) or `<stem>.ltr`
    (letters, "|" between words) beside the list, one line an utterance. The id is the path without its suffix.

    Args:
        tsv: the list.
        root: folder to use instead of line 1, if the corpus was moved.

    Raises:
        CorpusError: with file and line.
    """
    tsv = Path(tsv)
    lines = read_lines(tsv)
    if len(lines) < 2:
        raise CorpusError(f"{tsv}: no utterances; line 1 is the root folder, the others are path<TAB>samples.")
    root = os.path.abspath(root if root is not None else lines[0].strip())
    texts = _labels_beside(tsv, len(lines) - 1)
    candidates = []
    for number, (line, text) in enumerate(zip(lines[1:], texts, strict=True), 2):
        path, _, samples = line.partition("\t")
        if not path or not re.fullmatch(r"\s*0*[1-9][0-9]{0,14}\s*", samples):
            raise CorpusError(f"{tsv}, line {number}: {line[:80]!r} is not path<TAB>samples.")
        packed = re.fullmatch(r"(.+):([0-9]{1,15}):([0-9]{1,15})", path)
        file = packed[1] if packed else path
        span = (int(packed[2]), int(packed[3])) if packed else None
        name = path if packed else os.path.splitext(path)[0]
        audio = os.path.join(root, file)
        candidates.append(Candidate(name, audio, byte_range=span, text=text, num_samples=int(samples)))
    return Corpus(tuple(candidates))


def _labels_beside(tsv: Path, count: int) -> list[str | None]:
    words, letters = tsv.with_suffix(".wrd"), tsv.with_suffix(".ltr")
    labels = next((path for path in (words, letters) if path.is_file()), None)
    if labels is None:
        return [None] * count
    lines = read_lines(labels)
    if len(lines) != count:
        raise CorpusError(f"{labels}: {len(lines)} lines for the {count} utterances of {tsv}; they must be equal.")
    if labels == letters:
        lines = [line.replace(" ", "").replace("|", " ") for line in lines]
    return [" ".join(line.split()) or None for line in lines]


def read_lhotse(cuts: str | Path, *, root: str | Path | None = None) -> Corpus:
    """Candidates of a lhotse cut set (.jsonl or .jsonl.gz) of MonoCuts over files of one channel.

    The texts of a cut's supervisions are joined in time order; the speaker is theirs if it is one.

    Args:
        cuts: the cut set.
        root: folder that relative paths start from; None: the current one, as in lhotse.

    Raises:
        CorpusError: with file and line; other cuts (mixed, padded, transformed, several channels) are named.
    """
    root = os.path.abspath(root if root is not None else ".")
    candidates = []
    for number, line in enumerate(_lines(Path(cuts)), 1):
        if not line.strip():
            continue
        try:
            candidates.append(_from_cut(json.loads(line), root))
        except json.JSONDecodeError:
            raise CorpusError(
                f"{cuts}, line {number}: not JSON; the file must be lhotse's .jsonl or .jsonl.gz."
            ) from None
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CorpusError(f"{cuts}, line {number}: not a lhotse cut ({error!r}).") from None
        except ValueError as error:
            raise CorpusError(f"{cuts}, line {number}: {error}.") from None
    if not candidates:
        raise CorpusError(f"{cuts}: no cuts in it.")
    return Corpus(tuple(candidates))


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                yield line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path}: damaged after line {number} ({error}).") from None


def _from_cut(cut: dict, root: str) -> Candidate:
    if cut.get("type", "MonoCut") != "MonoCut":
        raise ValueError(f"a {cut['type']}; only MonoCuts can be imported (save the cut set before mixing or padding)")
    recording = cut["recording"]
    if recording.get("transforms"):
        raise ValueError("its recording is transformed on the fly; import the original recording")
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        raise ValueError("its recording is not one file")
    if len(sources[0]["channels"]) != 1 or not isinstance(cut["channel"], int):
        raise ValueError("its recording has several channels; write each channel to a file first")
    rate = int(recording["sampling_rate"])
    start, samples = round(cut["start"] * rate), round(cut["duration"] * rate)
    if rate < 1 or start < 0 or samples < 1:
        raise ValueError("start, duration or sampling_rate is not possible")
    spoken = sorted(cut.get("supervisions") or [], key=lambda supervision: supervision["start"])
    text = " ".join((supervision.get("text") or "").strip() for supervision in spoken).strip()
    speakers = {str(supervision["speaker"]) for supervision in spoken if supervision.get("speaker") is not None}
    return Candidate(
        id=str(cut["id"]),
        audio=os.path.join(root, sources[0]["source"]),
        text=text or None,
        speaker=speakers.pop() if len(speakers) == 1 else None,
        start=start,
        num_samples=samples,
    )
