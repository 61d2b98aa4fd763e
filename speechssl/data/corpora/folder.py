"""Any tree of audio files. Uncompressed tars in it give their members by byte range: nothing is unpacked."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from speechssl.data.corpora import AUDIO_SUFFIXES, Candidate, Corpus, CorpusError, name_by_folder, read_text, walk

MAX_TEXT = 1_000_000  # bytes of a transcript inside a tar


def read(
    folder: str | Path,
    *,
    speaker_level: int | None = None,
    label_level: int | None = None,
    transcripts: str | Path | None = None,
) -> Corpus:
    """Candidates of a tree. The id is the path below `folder` without its suffix; a tar counts as a folder.

    Args:
        folder: any depth; any rate and channel count; suffixes in AUDIO_SUFFIXES, and .tar.
        speaker_level, label_level: which folder names the speaker, or the label (a genre, a keyword): 1 = the first
            below `folder`; None: it is not known.
        transcripts: table `id or path<TAB>text` (.tsv, .txt) or `id or path,text` (.csv). Paths may be relative to
            `folder` or to the table. Where the table says nothing, a .txt of the same stem beside the audio counts.

    Raises:
        CorpusError: no audio, no such level, a damaged tar, a line of the table without text.
    """
    folder = Path(os.path.abspath(folder))
    files = list(walk(folder))
    candidates = []
    for path in files:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            candidates.append(Candidate(_stem(path.relative_to(folder)), str(path), text=_text_beside(path)))
        elif path.suffix.lower() == ".tar":
            candidates += _members(path, folder)
    if not candidates:
        packed = any(path.name.endswith((".tar.gz", ".tgz", ".zip")) for path in files)
        advice = "unpack its compressed archives" if packed else f"audio ends in {', '.join(AUDIO_SUFFIXES)} or .tar"
        raise CorpusError(f"{folder}: no audio in it; {advice}.")
    for column, level in (("speaker", speaker_level), ("label", label_level)):
        if level is not None:
            candidates = name_by_folder(candidates, column, level, folder)
    if transcripts is None:
        return Corpus(tuple(candidates))
    return _label(candidates, folder, Path(os.path.abspath(transcripts)))


def _stem(path: Path | PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def _text_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    return " ".join(read_text(beside).split()) or None if beside.is_file() else None


def _members(path: Path, folder: Path) -> list[Candidate]:
    """Audio members of an uncompressed tar, with the text of a .txt member of the same stem."""
    prefix = _stem(path.relative_to(folder))
    audio, texts = [], {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name.removeprefix("./"))
                if not member.isreg() or member.issparse() or name.name.startswith("."):
                    continue
                if name.suffix.lower() in AUDIO_SUFFIXES:
                    span = (member.offset_data, member.size)
                    audio.append(Candidate(f"{prefix}/{_stem(name)}", str(path), byte_range=span))
                elif name.suffix == ".txt":
                    content = tar.extractfile(member).read(MAX_TEXT)  # type: ignore[union-attr]
                    texts[f"{prefix}/{_stem(name)}"] = " ".join(content.decode("utf-8-sig").split())
    except tarfile.TarError as error:
        raise CorpusError(
            f"{path}: not an uncompressed tar, or a damaged one ({error}); repair or remove it."
        ) from None
    except UnicodeDecodeError:
        raise CorpusError(f"{path}: {member.name} is not UTF-8 text.") from None
    return [replace(candidate, text=texts.get(candidate.id) or None) for candidate in audio]


def _label(candidates: list[Candidate], folder: Path, table: Path) -> Corpus:
    texts = _read_table(table)

    def key_of(candidate: Candidate) -> str | None:
        inside = PurePosixPath(candidate.audio).suffix if candidate.byte_range is None else ""
        paths = () if candidate.byte_range else (candidate.audio, os.path.relpath(candidate.audio, table.parent))
        keys = (candidate.id, candidate.id + inside, *paths)
        return next((key for key in keys if key in texts), None)

    keys = [key_of(candidate) for candidate in candidates]
    labelled = (
        replace(c, text=texts[k] or None) if k is not None else c for c, k in zip(candidates, keys, strict=True)
    )
    used = set(keys)
    return Corpus(tuple(labelled), tuple((key, str(table)) for key in texts if key not in used))


def _read_table(table: Path) -> dict[str, str]:
    """Path or id -> text, as written; other columns are ignored."""
    comma = table.suffix.lower() == ".csv"
    rows = csv.reader(
        io.StringIO(read_text(table)),
        delimiter="," if comma else "\t",
        quoting=csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE,
    )
    texts: dict[str, str] = {}
    try:
        for row in rows:
            if not row:
                continue
            key = row[0].strip().removeprefix("./")
            if len(row) < 2:
                raise CorpusError(
                    f"{table}, line {rows.line_num}: '{key}' has no text; "
                    "write `id<TAB>text` (.tsv) or `id,text` (.csv)."
                )
            if key in texts:
                raise CorpusError(f"{table}, line {rows.line_num}: '{key}' is there twice; keep one.")
            texts[key] = " ".join(row[1].split())
    except csv.Error as error:
        raise CorpusError(f"{table}, line {rows.line_num}: {error}.") from None
    return texts
