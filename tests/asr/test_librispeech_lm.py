"""LibriSpeech's language models, fetched from a small local server."""

import gzip
import http.server
import threading

import pytest

from speechssl.asr.librispeech_lm import MODELS, fetch
from speechssl.asr.ngram import Ngram
from speechssl.data.download import DownloadError

ARPA = b"\n\\data\\\nngram 1=3\n\n\\1-grams:\n-99 <s>\n-0.3 </s>\n-0.3 A\n\n\\end\\\n"


@pytest.fixture
def server():
    """Serves `files` and counts what is asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            body = server.files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.files = [], {f"/{path}": gzip.compress(ARPA) for path in MODELS.values()}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, which, folder):
    return fetch(which, folder, mirror=f"http://127.0.0.1:{server.server_port}/", progress=False)


def test_each_model_is_fetched_once_and_can_be_read(server, tmp_path):
    for which in MODELS:
        path = get(server, which, tmp_path)
        assert path == tmp_path / "lm" / f"{which}.arpa.gz"
        assert Ngram.read(path).sentence(["A"]) == pytest.approx(-0.6)
        assert get(server, which, tmp_path) == path
    assert server.asked == [f"/{path}" for path in MODELS.values()]


@pytest.mark.parametrize(
    "body",
    [gzip.compress(ARPA)[:-9], gzip.compress(ARPA)[:-8] + bytes(8), b"<html>", gzip.compress(b"<html>")],
    ids=["cut", "wrong sum", "a page", "a packed page"],
)
def test_what_is_damaged_is_deleted_and_fetched_again(server, tmp_path, body):
    server.files["/11/3-gram.arpa.gz"] = body
    with pytest.raises(DownloadError, match="was deleted; run again"):
        get(server, "3-gram", tmp_path)
    assert list((tmp_path / "lm").iterdir()) == []
    server.files["/11/3-gram.arpa.gz"] = gzip.compress(ARPA)
    assert get(server, "3-gram", tmp_path).exists()


def test_an_interrupted_check_is_done_again(server, tmp_path):
    path = get(server, "4-gram", tmp_path)
    path.with_name(".4-gram.arpa.gz.whole").unlink()
    path.write_bytes(b"half")
    with pytest.raises(DownloadError, match="damaged"):
        get(server, "4-gram", tmp_path)


def test_no_such_model(tmp_path):
    with pytest.raises(DownloadError, match=r"no language model '5-gram'; choose one of 3-gram, 3-gram\.pruned"):
        fetch("5-gram", tmp_path)
