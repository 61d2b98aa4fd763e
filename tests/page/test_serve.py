"""The server over a real socket: what it answers, and everything that it refuses."""

import http.client
import io
import json
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import one_sentence, speech, speechssl

from speechssl.listener import Listener

serve = pytest.importorskip("speechssl.serve", reason="the server needs the extra [serve]", exc_type=ImportError)
uvicorn = serve.uvicorn

LIMITS = serve.Limits(megabytes=0.5, seconds=3.0)


def sound_file(seconds=1.0, *, rate=16_000, channels=1, kind="WAV", seed=0) -> bytes:
    samples = np.stack([speech(seconds, seed=seed + i, rate=rate) for i in range(channels)], 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


class Slow:
    """A listener that takes its time."""

    sample_rate, least, about = 16_000, 400, "slow"

    def __init__(self, seconds: float):
        self.seconds, self.at_once, self.most_at_once = seconds, 0, 0

    def listen(self, waveform):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds)
        self.at_once -= 1
        return {"seconds": len(waveform) / 16_000}


@pytest.fixture
def ask():
    """Starts a server for a listener and gives a function that asks it: (status, JSON or text, headers)."""
    started = []

    def start(listener, limits=LIMITS):
        server = uvicorn.Server(uvicorn.Config(serve.build_app(listener, limits), port=0, log_level="critical"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]

        def request(method="POST", path="/listen", body=None, headers=None):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, path, body, {serve.HEADER: "1"} if headers is None else headers)
            reply = connection.getresponse()
            text = reply.read().decode()
            connection.close()
            is_json = reply.headers.get_content_type() == "application/json"
            return reply.status, json.loads(text) if is_json else text, reply.headers

        request.port = port
        return request

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
def listener(demo):
    return Listener(demo / "tuned/ctc", demo / "corpus/train.jsonl")


def test_it_transcribes_as_decoding_does_and_knows_its_speakers(ask, listener, demo):
    request = ask(listener)
    decoded = [json.loads(line) for line in (demo / "tuned/ctc/decode/test.jsonl").read_text().splitlines()]
    for row in decoded[:2]:
        content = (demo / f"corpus/{row['id']}.flac").read_bytes()
        status, answer, _ = request(body=content)
        assert status == 200
        assert answer["text"] == row["text"]
        assert answer["seconds"] == pytest.approx(row["seconds"])
        assert " ".join(word["text"] for word in answer["words"]) == row["text"]
        assert {near["name"] for near in answer["speakers"]} == {"speaker0", "speaker1"}
        cosines = [near["cosine"] for near in answer["speakers"]]
        assert cosines == sorted(cosines, reverse=True)
        assert "spectrogram of" in answer["html"]


def test_the_page_has_a_policy_and_loads_nothing(ask, listener):
    status, html, headers = ask(listener)("GET", "/", headers={})
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "https://" not in html
    assert "transcribes and names the nearest voices" in html


def test_other_sites_cannot_use_it(ask):
    request = ask(Slow(0))
    good = sound_file()
    assert request(body=good)[0] == 200
    assert request(body=good, headers={})[0] == 403
    assert request(body=good, headers={serve.HEADER: "1", "Host": "evil.example"})[0] == 400
    assert request("GET", "/", headers={"Host": "evil.example:80"})[0] == 400
    assert request("OPTIONS", "/listen", headers={"Origin": "http://evil.example"})[0] == 405


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/%2e%2e/setup.cfg", "/page.css", "/listen/x"])
def test_no_path_opens_a_file(ask, path):
    assert ask(Slow(0))("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 415, "not sound"),
        (b"/etc/passwd", 415, "not sound"),
        (b"RIFF" + bytes(400), 415, "not sound"),
        (sound_file(3.5), 413, "Longer than 3 s"),
        (sound_file(0.01), 400, "Too short"),
        (sound_file(0.5, channels=9), 415, "9 channels"),
        (sound_file(0.5, rate=15_999), 415, "15999 Hz"),
        (bytes(600_000), 413, "Larger than 0.5 MB"),
    ],
)
def test_what_is_refused(ask, content, status, said):
    found, answer, _ = ask(Slow(0))(body=content)
    assert found == status
    assert said in answer["error"]
    assert len(answer["error"].splitlines()) == 1


def test_a_body_without_a_length_is_counted_as_it_comes(ask):
    parts = (bytes(100_000) for _ in range(9))
    assert ask(Slow(0))(body=parts)[0] == 413


def test_an_upload_that_stalls_is_ended(ask):
    request = ask(Slow(0), serve.Limits(upload_seconds=0.5))
    connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=20)
    connection.putrequest("POST", "/listen")
    connection.putheader(serve.HEADER, "1")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"RIFF")
    assert connection.getresponse().status == 408
    connection.close()


def test_one_at_a_time_and_nobody_waits_for_ever(ask):
    slow = Slow(1.6)
    request = ask(slow, serve.Limits(answer_seconds=1.0))
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(request(body=sound_file())[:2])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [503] * 3
    assert slow.most_at_once == 1
    slow.seconds = 0
    deadline = time.monotonic() + 30
    while request(body=sound_file())[0] != 200:  # until the turn is given back
        assert time.monotonic() < deadline


FLAC = sound_file(0.2, kind="FLAC")


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_damaged_files_never_break_it(noise, place):
    content = bytearray(FLAC)
    content[place : place + len(noise)] = noise
    try:
        waveform = serve.read_upload(bytes(content), 16_000, LIMITS)
    except serve.UploadError:
        return
    assert waveform.ndim == 1
    assert torch.isfinite(waveform).all()


def test_a_header_that_promises_hours_is_not_believed():
    content = bytearray(sound_file(0.5))
    content[4:8] = content[40:44] = (2**31 - 1).to_bytes(4, "little")
    try:
        waveform = serve.read_upload(bytes(content), 16_000, LIMITS)
    except serve.UploadError:
        return
    assert len(waveform) <= 8000


def test_stereo_at_another_rate_is_mixed_and_resampled():
    assert len(serve.read_upload(sound_file(0.5, rate=44_100, channels=2, kind="OGG"), 16_000, LIMITS)) == 8000


def test_models_and_ports_that_cannot_be_used_are_one_sentence(demo, capsys, monkeypatch):
    said = one_sentence(speechssl(capsys, monkeypatch, "serve", demo / "pretrain"))
    assert "was not fine-tuned to transcribe" in said
    said = one_sentence(speechssl(capsys, monkeypatch, "serve", demo / "tuned/ctc", "--host", "203.0.113.7"))
    assert "choose another --port" in said


def test_an_encoder_alone_names_voices(demo):
    answer = Listener(demo / "pretrain", demo / "corpus/train.jsonl").listen(torch.from_numpy(speech(0.8, seed=2)))
    assert "text" not in answer
    assert answer["speakers"][0]["name"] == "speaker0"
    assert answer["speakers"][0]["cosine"] <= 1
