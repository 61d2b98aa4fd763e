"""Downloads against a small local server, and archives that try to leave their folder."""

import hashlib
import http.server
import io
import tarfile
import threading
import urllib.request

import pytest

from speechssl.data.download import DownloadError, download, extract, has_checksum, marker_of

CONTENT = bytes(range(256)) * 4000  # about 1 MB
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any address, by HTTP Range too; `faults` break the next answers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/corpus.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            return self.send_error(int(fault))
        start = int(wanted[6:-1]) if wanted and fault != "no range" else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = CONTENT[start:]
        self.send_response(206 if wanted and fault != "no range" else 200)
        if wanted and fault != "no range":
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "break" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, tmp_path, **options):
    return download(server.url, tmp_path / "corpus.bin", progress=False, wait=0, **options)


def test_whole_file_with_checksum(server, tmp_path):
    path = fetch(server, tmp_path, checksum=MD5)
    assert path.read_bytes() == CONTENT
    assert has_checksum(path, "sha256:" + hashlib.sha256(CONTENT).hexdigest())
    assert not (tmp_path / "corpus.bin.part").exists()


def test_a_broken_line_is_resumed_by_range(server, tmp_path):
    server.faults = ["break", "503", "break"]
    assert fetch(server, tmp_path, checksum=MD5).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_second_run_goes_on_from_the_part(server, tmp_path):
    server.faults = ["break", "500"]
    with pytest.raises(DownloadError, match="run again to go on from"):
        fetch(server, tmp_path, attempts=1)
    assert fetch(server, tmp_path, checksum=MD5).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize(
    ("part", "fault"),
    [(CONTENT, ""), (CONTENT + b"more", ""), (CONTENT[:99], "no range")],
    ids=["whole", "too long", "not resumable"],
)
def test_parts_that_are_whole_too_long_or_not_resumable(server, tmp_path, part, fault):
    (tmp_path / "corpus.bin.part").write_bytes(part)
    server.faults = [fault]
    assert fetch(server, tmp_path, checksum=MD5).read_bytes() == CONTENT


def test_checksum_mismatch_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(DownloadError, match="checksum"):
        fetch(server, tmp_path, checksum="md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept_or_refused(server, tmp_path):
    (tmp_path / "corpus.bin").write_bytes(CONTENT)
    fetch(server, tmp_path, checksum=MD5)
    assert server.ranges == []
    (tmp_path / "corpus.bin").write_bytes(b"other")
    with pytest.raises(DownloadError, match="delete it"):
        fetch(server, tmp_path, checksum=MD5)


def test_addresses_that_do_not_exist(server, tmp_path):
    server.faults = ["404"]
    with pytest.raises(DownloadError, match="404"):
        fetch(server, tmp_path)
    assert len(server.ranges) == 1, "a missing file is not asked for again"
    with pytest.raises(DownloadError, match="only http"):
        download("file:///etc/hostname", tmp_path / "x")


# ------------------------------------------------------------------------------------------------------------ archives


def make_tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content.decode()
                tar.addfile(info)
    return path


def test_https_does_not_lead_to_http(server, tmp_path, monkeypatch):
    real = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, **named: real(server.url, **named))
    with pytest.raises(DownloadError, match="which anybody on the way could change"):
        download("https://example.org/corpus.bin", tmp_path / "corpus.bin", progress=False, wait=0)
    assert not list(tmp_path.iterdir())


def test_extraction_and_its_marker(tmp_path):
    archive = make_tar(
        tmp_path / "good.tar.gz", ("./a", tarfile.DIRTYPE, b""), ("./a/b/c.txt", tarfile.REGTYPE, b"hello")
    )
    marker = extract(archive, tmp_path / "out", progress=False)
    assert (tmp_path / "out/a/b/c.txt").read_bytes() == b"hello"
    assert marker == marker_of("good.tar.gz", tmp_path / "out")
    (tmp_path / "out/a/b/c.txt").unlink()
    extract(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/a/b/c.txt").exists(), "done once, not done again"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.txt", tarfile.REGTYPE, b"x"),
        ("a/../../evil.txt", tarfile.REGTYPE, b"x"),
        ("{outside}/evil.txt", tarfile.REGTYPE, b"x"),
        ("link", tarfile.SYMTYPE, b"/"),
        ("link", tarfile.SYMTYPE, b"inside"),
        ("link", tarfile.LNKTYPE, b"../secret"),
        ("device", tarfile.CHRTYPE, b""),
        ("pipe", tarfile.FIFOTYPE, b""),
    ],
)
def test_members_that_could_leave_the_folder_are_refused(tmp_path, member):
    name = member[0].format(outside=tmp_path / "outside")
    archive = make_tar(tmp_path / "evil.tar.gz", (name, *member[1:]), ("after.txt", tarfile.REGTYPE, b"x"))
    with pytest.raises(DownloadError, match="not safe"):
        extract(archive, tmp_path / "deep/out", progress=False)
    assert [p for p in tmp_path.rglob("*") if not p.is_dir() and p != archive] == []


def test_damaged_archives(tmp_path):
    archive = make_tar(tmp_path / "cut.tar.gz", ("a.bin", tarfile.REGTYPE, CONTENT))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DownloadError, match="damaged"):
        extract(archive, tmp_path / "out", progress=False)
    (tmp_path / "no.tar").write_bytes(b"not a tar")
    with pytest.raises(DownloadError, match="not a tar"):
        extract(tmp_path / "no.tar", tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob(".*extracted"))
