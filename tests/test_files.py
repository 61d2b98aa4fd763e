"""Files are written whole or not at all, whatever happens on the way."""

import os
import resource

import pytest

from speechssl.files import append_whole, whole_file, write_whole


def test_written_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_interrupted_on_the_way(tmp_path, error):
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def write():
        with whole_file(path) as file:
            file.write("half of the new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path):
    """The system's limit on the size of a file: a write is cut short, the next refused, as on a full disk."""
    path = tmp_path / "lines.jsonl"
    append_whole(path, "x" * 900 + "\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match="File too large"):
            append_whole(path, "y" * 500 + "\n")
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, "z" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "x" * 900 + "\n"
    append_whole(path, "y\n")
    assert path.read_text().splitlines()[1:] == ["y"]
    assert os.listdir(tmp_path) == ["lines.jsonl"]
