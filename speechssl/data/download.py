"""Downloads that survive a broken line, checksums, and tar archives that cannot write outside their folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from speechssl.errors import UserError

BLOCK = 1 << 20  # bytes read at once
TIMEOUT = 60  # seconds without an answer
MOST = 100  # times its own size that an archive may unfold to: speech hardly compresses, a bomb does a thousandfold
_BROKEN_LINE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class DownloadError(UserError):
    """A download or an archive that cannot be used. The message names the address or file and what to do."""


def download(
    url: str,
    path: str | Path,
    *,
    checksum: str | None = None,
    attempts: int = 5,
    wait: float = 2.0,
    progress: bool = True,
) -> Path:
    """Downloads `url` to `path`, going on where an earlier try stopped (`path` + ".part", HTTP Range).

    Args:
        url: http or https.
        path: the file to write; it appears only when it is whole and its checksum is right.
        checksum: "md5:..." or "sha256:...", in hex; None: only the length is checked.
        attempts: tries in a row that bring nothing new before it gives up.
        wait: seconds between two tries.
        progress: show a progress bar.

    Returns:
        `path`. A file that is already there is kept if its checksum is right.

    Raises:
        DownloadError: no such address, a line that stays broken, a wrong checksum, a full disk.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url}: only http and https addresses can be downloaded.")
    if path.exists():
        if checksum and not has_checksum(path, checksum):
            raise DownloadError(f"{path}: its checksum is not {checksum}; delete it and run the command again.")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _progress(progress) as bar:
        task = bar.add_task(path.name, total=None)
        left = attempts
        while reason := _go_on(url, part, lambda done, total: bar.update(task, completed=done, total=total)):
            left = attempts if reason.advanced else left - 1
            if left <= 0:
                raise DownloadError(f"{url}: {reason.text}; run again to go on from {_size(part)} bytes.")
            time.sleep(wait)
    if checksum and not has_checksum(part, checksum):
        part.unlink()
        raise DownloadError(f"{url}: what arrived does not have the checksum {checksum} and was deleted; run again.")
    os.replace(part, path)
    return path


def has_checksum(path: str | Path, checksum: str) -> bool:
    """True if the file has this checksum ("md5:..." or "sha256:...")."""
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == expected.lower()


def extract(archive: str | Path, folder: str | Path, *, progress: bool = True) -> Path:
    """Unpacks a tar (compressed or not) into `folder`, once: a marker file in it says that it was done.

    Every member must be a plain file or folder with a relative path and no "..": links, devices and files with holes
    are refused, so nothing can be written outside `folder`; and all of them together may not be much larger than the
    archive. Members before a refused one may have been written.

    Returns:
        The marker file, `folder/.<archive name>.extracted`.

    Raises:
        DownloadError: not a tar, a damaged one, or one with a member that is refused or cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    marker = marker_of(archive.name, folder)
    if marker.exists():
        return marker
    folder.mkdir(parents=True, exist_ok=True)
    files, room = 0, MOST * archive.stat().st_size
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw) as tar, _progress(progress) as bar:
            task = bar.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
            for member in tar:
                _refuse_unsafe(member, archive)
                room -= member.size
                if room < 0:
                    raise DownloadError(f"{archive}: unfolds to more than {MOST} times its size; it is not safe.")
                _write_member(tar, member, folder / member.name)
                files += member.isfile()
                bar.update(task, completed=raw.tell())
    except _DAMAGED as error:
        raise DownloadError(f"{archive}: damaged or not a tar ({error}); delete it and download it again.") from None
    except OSError as error:
        raise DownloadError(f"{archive}: a member cannot be written to {folder}: {error.strerror or error}.") from None
    marker.write_text(f"{files} files\n")
    return marker


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(tar.extractfile(member), file, BLOCK)  # type: ignore[arg-type]


def marker_of(archive_name: str, folder: str | Path) -> Path:
    """The file that says that `extract` unpacked this archive into `folder`."""
    return Path(folder) / f".{archive_name}.extracted"


# ------------------------------------------------------------------------------------------------------------- one try


class _Broken:
    """Why a try stopped early, and whether it brought anything."""

    def __init__(self, text: str, advanced: bool):
        self.text, self.advanced = text, advanced


def _go_on(url: str, part: Path, tell: Callable[[int, int | None], None]) -> _Broken | None:
    """One try. Returns None when the file is whole, else why another try may help."""
    before = _size(part)
    try:
        _receive(url, part, tell)
        return None
    except urllib.error.HTTPError as error:
        if error.code not in (408, 429) and error.code < 500:
            raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; check the address.") from None
        reason = f"the server answers {error.code} {error.reason}"
    except _BROKEN_LINE as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DownloadError(f"{part}: the disk is full; free some space and run again to go on.") from None
    return _Broken(reason, advanced=_size(part) > before)


def _receive(url: str, part: Path, tell: Callable[[int, int | None], None]) -> None:
    have = _size(part)
    headers = {"User-Agent": "speechssl"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return  # nothing is missing
        part.unlink()  # longer than the file on the server: start again
        return _receive(url, part, tell)
    with answer:
        if url.startswith("https://") and not answer.url.startswith("https://"):
            raise DownloadError(
                f"{url}: leads to {answer.url}, which anybody on the way could change; nothing is taken."
            )
        resumed = re.match(rf"bytes {have}-", answer.headers.get("Content-Range", ""))
        done = have if answer.status == 206 and resumed else 0
        if answer.status == 206 and not done:
            raise DownloadError(f"{url}: the server sends another part than was asked for; delete {part}.")
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                done += len(block)
                tell(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the line broke after {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse_unsafe(member: tarfile.TarInfo, archive: Path) -> None:
    name = Path(member.name)
    if name.is_absolute() or name.drive or ".." in (*name.parts, *PurePosixPath(member.name).parts):
        raise DownloadError(f"{archive}: member '{member.name}' would lie outside the folder; the archive is not safe.")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise DownloadError(f"{archive}: member '{member.name}' is a link or a device; the archive is not safe.")
    if "\0" in member.name:
        raise DownloadError(f"{archive}: the name {member.name!r} of a member cannot be written.")


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show)
