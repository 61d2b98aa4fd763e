"""Files that are written whole or not at all. Standard library only: every layer may import this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[str]]:
    """A text file to write to, beside `path`; it takes the name `path` once it is closed and on the disk.

    Whatever is raised on the way, `path` is as it was before. Makes the folder if it is missing. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def write_whole(path: str | Path, content: str) -> None:
    """Writes a text file whole or not at all. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def append_whole(path: str | Path, content: str) -> None:
    """Appends to a text file all of `content` or, where the disk refuses, nothing. Raises OSError."""
    with Path(path).open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            data = content.encode()
            if (written := file.write(data)) != len(data):  # the rest did not fit; trying again names the reason
                file.write(data[written:])
        except OSError:
            file.truncate(end)
            raise


def flush_to_disk(path: str | Path) -> None:
    """Returns once a file, or a folder's list of names, is on the disk and not only in memory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
