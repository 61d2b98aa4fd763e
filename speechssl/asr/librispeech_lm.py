"""LibriSpeech's own language models (OpenSLR 11), made from 14,500 books that hold none of its dev and test texts.

OpenSLR gives no checksums for them. So their length is checked against the server's, and the whole file against the
CRC-32 and the length that gzip keeps inside it.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from speechssl.data.corpora.librispeech import OPENSLR
from speechssl.data.download import BLOCK, DownloadError, download
from speechssl.files import write_whole

MODELS = {
    "3-gram": "11/3-gram.arpa.gz",
    "3-gram.pruned.1e-7": "11/3-gram.pruned.1e-7.arpa.gz",
    "3-gram.pruned.3e-7": "11/3-gram.pruned.3e-7.arpa.gz",
    "4-gram": "11/4-gram.arpa.gz",
}


def fetch(which: str, data: str | Path, *, mirror: str | None = None, progress: bool = True) -> Path:
    """Downloads one model into `data`/lm, unless it is there, and checks it once.

    Args:
        which: a key of MODELS.
        mirror: address to use instead of OpenSLR's; it must hold the same paths (`11/4-gram.arpa.gz`).

    Returns:
        The ARPA file, still gzipped: `decode --lm` reads it as it is.

    Raises:
        DownloadError: no such model, what `download` raises, or a damaged file (which is deleted).
    """
    if which not in MODELS:
        raise DownloadError(f"no language model '{which}'; choose one of {', '.join(MODELS)}.")
    path = Path(data) / "lm" / MODELS[which].rpartition("/")[2]
    marker = path.with_name(f".{path.name}.whole")
    if path.exists() and marker.exists() and marker.read_text() == f"{path.stat().st_size}\n":
        return path
    download(f"{(mirror or OPENSLR).rstrip('/')}/{MODELS[which]}", path, progress=progress)
    try:
        with gzip.open(path) as file:
            if not file.read(BLOCK).lstrip().startswith(b"\\data\\"):
                raise EOFError
            while file.read(BLOCK):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        path.unlink()
        raise DownloadError(f"{path}: what arrived is damaged or no ARPA file, and was deleted; run again.") from None
    write_whole(marker, f"{path.stat().st_size}\n")
    return path
