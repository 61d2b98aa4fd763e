"""LibriSpeech (OpenSLR 12), mini LibriSpeech (OpenSLR 31) and Libri-Light's limited set (10 h of LibriSpeech).

Any folder in their layout is read: `.../<speaker>/<chapter>/<id>.flac` beside `<speaker>-<chapter>.trans.txt`, whose
lines are `<id> <text>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.corpora import AUDIO_SUFFIXES, Candidate, Corpus, CorpusError, read_lines, walk
from speechssl.data.download import download, extract, marker_of

OPENSLR = "https://www.openslr.org/resources"
LIBRI_LIGHT = "https://dl.fbaipublicfiles.com/librilight/data"


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        base: address of the publisher.
        file: path below `base`; a mirror keeps it.
        checksum: as published ("md5:..." or "sha256:...").
        folder: where its speech lies once unpacked; "" if it holds no utterances with transcripts.
    """

    base: str
    file: str
    checksum: str
    folder: str = ""


def _speech(resource: int, name: str, md5: str) -> Archive:
    return Archive(OPENSLR, f"{resource}/{name}.tar.gz", f"md5:{md5}", f"LibriSpeech/{name}")


def _extra(name: str, md5: str) -> Archive:
    return Archive(OPENSLR, f"12/{name}.tar.gz", f"md5:{md5}")


# The sums are those of OpenSLR's md5sum.txt, the twelfth file of resource 12; the last is torchaudio's.
ARCHIVES: Mapping[str, Archive] = {
    "dev-clean": _speech(12, "dev-clean", "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": _speech(12, "dev-other", "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": _speech(12, "test-clean", "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": _speech(12, "test-other", "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": _speech(12, "train-clean-100", "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": _speech(12, "train-clean-360", "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": _speech(12, "train-other-500", "d1a0fd59409feb2c614ce4d30c387708"),
    "intro-disclaimers": _extra("intro-disclaimers", "92ba57a9611a70fd7d34b73249ae48cf"),
    "original-mp3": _extra("original-mp3", "7e14b6df14f1c04a852a50ba5f7be915"),
    "original-books": _extra("original-books", "9da96b465573c8d1ee1d5ad3d01c08e3"),
    "raw-metadata": _extra("raw-metadata", "25eced105e10f4081585af89b8d27cd2"),
    "dev-clean-2": _speech(31, "dev-clean-2", "6d7ab67ac6a1d2c993d050e16d61080d"),
    "train-clean-5": _speech(31, "train-clean-5", "5df7d4e78065366204ca6845bb08f490"),
    "librispeech_finetuning": Archive(
        LIBRI_LIGHT,
        "librispeech_finetuning.tgz",
        "sha256:5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af",
        "librispeech_finetuning",
    ),
}

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(name for name, archive in ARCHIVES.items() if archive.file.startswith("12/")),
    "960h": ("train-clean-100", "train-clean-360", "train-other-500"),
    "evaluation": ("dev-clean", "dev-other", "test-clean", "test-other"),
    "mini": ("train-clean-5", "dev-clean-2"),
    "limited": ("librispeech_finetuning",),
}


def expand(names: list[str]) -> list[str]:
    """Archive names, each once, with groups written out. Raises CorpusError for an unknown name."""
    result: dict[str, None] = {}
    for name in names:
        if name not in ARCHIVES and name not in GROUPS:
            raise CorpusError(f"no archive '{name}'; choose from {', '.join([*ARCHIVES, *GROUPS])}.")
        result.update(dict.fromkeys(GROUPS.get(name, (name,))))
    return list(result)


def fetch(
    name: str, data: str | Path, *, mirror: str | None = None, keep_archive: bool = True, progress: bool = True
) -> Path:
    """Downloads and unpacks one archive below `data`, unless that was done before.

    Args:
        name: a key of `ARCHIVES`.
        data: folder that receives `archives/<file>` and the unpacked `LibriSpeech/...`.
        mirror: address to use instead of the publisher's; it must hold the same paths (`12/dev-clean.tar.gz`).
        keep_archive: False deletes the archive once it is unpacked.
        progress: show progress bars.

    Returns:
        The folder of its speech (or `data`, if it holds none).

    Raises:
        DownloadError: see `speechssl.data.download`.
    """
    archive, data = ARCHIVES[name], Path(data)
    file_name = archive.file.rpartition("/")[2]
    if not marker_of(file_name, data).exists():
        url = f"{(mirror or archive.base).rstrip('/')}/{archive.file}"
        local = download(url, data / "archives" / file_name, checksum=archive.checksum, progress=progress)
        extract(local, data, progress=progress)
        if not keep_archive:
            local.unlink()
    return data / archive.folder


def read(folder: str | Path) -> Corpus:
    """Candidates of a folder in LibriSpeech layout, audio of any suffix in AUDIO_SUFFIXES.

    The speaker is the folder two levels above the file; a SPEAKERS.TXT in the folder or beside it tells the gender.
    Raises CorpusError.
    """
    audio: list[Path] = []
    texts: dict[str, tuple[str, str]] = {}
    for path in walk(folder):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            audio.append(path)
        elif path.name.endswith(".trans.txt"):
            _read_transcripts(path, texts)
    if not audio:
        raise CorpusError(
            f"{folder}: no audio in it; it should hold <speaker>/<chapter>/*.flac "
            "(for a tree of another shape: `speechssl manifest folder`)."
        )
    candidates = tuple(
        Candidate(path.stem, str(path), text=texts.get(path.stem, ("", ""))[0] or None, speaker=path.parts[-3])
        for path in audio
    )
    present = {candidate.id for candidate in candidates}
    no_audio = tuple((name, source) for name, (_, source) in texts.items() if name not in present)
    return Corpus(candidates, no_audio, _genders(Path(folder)))


def _genders(folder: Path) -> dict[str, dict[str, str]]:
    """Speaker -> {"gender": "F" or "M"}, of lines `ID | SEX | ...`; all other lines say nothing."""
    genders = {}
    for path in (folder.absolute().parent / "SPEAKERS.TXT", folder / "SPEAKERS.TXT"):
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                speaker, sex = ([field.strip() for field in line.split("|")] + [""])[:2]
                if sex in ("F", "M"):
                    genders[speaker] = {"gender": sex}
    return genders


def _read_transcripts(path: Path, texts: dict[str, tuple[str, str]]) -> None:
    """Adds id -> (text, file). Libri-Light repeats whole chapters in several folders: the same line twice is fine."""
    for number, line in enumerate(read_lines(path), 1):
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        if texts.get(name, (text,))[0] != text:
            raise CorpusError(
                f"{path}, line {number}: '{name}' has another text in {texts[name][1]}; keep one of them."
            )
        texts.setdefault(name, (text, str(path)))
