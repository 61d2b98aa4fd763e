"""A page on this machine that transcribes a file or the microphone (the extra [serve]: starlette and uvicorn).

What comes over the network is never a path, and is read by libsndfile from memory alone. Requests are answered only
for the names this server goes by (a page elsewhere cannot reach it under a name of its own), only with a header that
no other site may send, only up to a size and a length, and one at a time.
"""

from __future__ import annotations

import asyncio
import functools
import io
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import soundfile
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from speechssl.data.audio import is_odd_rate, resample
from speechssl.errors import UserError
from speechssl.listener import Listener
from speechssl.page.frame import POLICY, asset, frame

LOOPBACK = ("127.0.0.1", "localhost")
HEADER = "x-speechssl"  # a page of another site cannot send it
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_CHANNELS, LEAST_RATE, MOST_RATE = 8, 4_000, 96_000


@dataclass(frozen=True)
class Limits:
    """
    megabytes: of an upload. seconds: of sound in it. upload_seconds: how long it may take to arrive.
    answer_seconds: how long a request may wait for its turn, and then for its answer.
    """

    megabytes: float = 20.0
    seconds: float = 60.0
    upload_seconds: float = 30.0
    answer_seconds: float = 60.0


class UploadError(UserError):
    """A request that is refused; `code` is the HTTP status."""

    def __init__(self, sentence: str, code: int = 400):
        super().__init__(sentence)
        self.code = code


def read_upload(content: bytes, sample_rate: int, limits: Limits) -> Tensor:
    """Sound in memory -> (T,) at `sample_rate`, mixed to mono. Raises UploadError.

    No more is decoded than the limit allows, whatever the file says about itself.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate = file.samplerate
            if file.channels > MOST_CHANNELS or not LEAST_RATE <= rate <= MOST_RATE or is_odd_rate(rate, sample_rate):
                raise UploadError(f"{file.channels} channels at {rate} Hz are not sound that can be used here.", 415)
            most = round(limits.seconds * rate)
            samples = file.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, ValueError, MemoryError) as error:
        if isinstance(error, UploadError):
            raise
        raise UploadError("This is not sound that libsndfile can read (WAV, FLAC, OGG, MP3).", 415) from None
    if len(samples) > most:
        raise UploadError(f"Longer than {limits.seconds:g} s; send a part of it.", 413)
    waveform = torch.from_numpy(samples.mean(1))
    if not torch.isfinite(waveform).all():
        raise UploadError("It holds samples that are not numbers.")
    return resample(waveform, rate, sample_rate)


def build_app(listener: Listener, limits: Limits, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The application: `/`, and `/listen`, which takes the bytes of a sound file and answers with JSON.

    hosts: names under which it may be asked for; none: any.
    """
    html = _front_page(listener, limits)
    busy = asyncio.Semaphore(1)

    async def front(request: Request) -> Response:
        return HTMLResponse(html, headers=HEADERS)

    async def listen(request: Request) -> Response:
        try:
            if request.headers.get(HEADER) != "1":
                raise UploadError(f"Requests need the header {HEADER}: 1.", 403)
            content = await _body(request, limits)
            answer = await _in_turn(busy, functools.partial(_answer, listener, content, limits), limits.answer_seconds)
            return JSONResponse(answer, headers=HEADERS)
        except UploadError as error:
            return JSONResponse({"error": str(error)}, status_code=error.code, headers=HEADERS)
        except ClientDisconnect:
            return Response(status_code=400)

    routes = [Route("/", front, methods=["GET"]), Route("/listen", listen, methods=["POST"])]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts] or ["*"])
    return Starlette(routes=routes, middleware=[guard])


def _answer(listener: Listener, content: bytes, limits: Limits) -> dict[str, Any]:
    waveform = read_upload(content, listener.sample_rate, limits)
    if len(waveform) < listener.least:
        raise UploadError(f"Too short: {len(waveform) / listener.sample_rate:.2f} s.")
    return listener.listen(waveform)


async def _body(request: Request, limits: Limits) -> bytes:
    """The bytes of a request, as long as they come soon and are few enough."""
    most = round(limits.megabytes * 1e6)
    too_large = UploadError(f"Larger than {limits.megabytes:g} MB.", 413)
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_large

    async def collect() -> bytes:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > most:
                raise too_large
        return bytes(content)

    return await _within(collect(), limits.upload_seconds, UploadError("The upload took too long.", 408))


async def _in_turn(busy: asyncio.Semaphore, work: Callable[[], dict], patience: float) -> dict:
    """Runs `work` in a thread, one at a time. A thread cannot be stopped: its turn lasts until it is done."""
    await _within(busy.acquire(), patience, UploadError("Busy; try again later.", 503))
    task = asyncio.ensure_future(asyncio.to_thread(work))

    def leave(done: asyncio.Task) -> None:
        busy.release()
        if not done.cancelled():
            done.exception()  # seen, so that asyncio does not print it

    task.add_done_callback(leave)
    return await _within(asyncio.shield(task), patience, UploadError("This took too long; send less.", 503))


async def _within(waited_for: Awaitable, seconds: float, late: UploadError) -> Any:
    try:
        return await asyncio.wait_for(waited_for, seconds)
    except asyncio.TimeoutError:
        raise late from None


def _front_page(listener: Listener, limits: Limits) -> str:
    body = (
        f'<section class="ask" data-seconds="{limits.seconds:g}" data-megabytes="{limits.megabytes:g}">'
        "<h2>Listen</h2>"
        f"<p>{listener.about} A file of at most {limits.seconds:g} s, or the microphone. "
        "Nothing is kept.</p>"
        '<p><label class="file">Choose a file <input type="file" accept="audio/*,video/*"></label> '
        '<button type="button" class="record" aria-pressed="false">Record</button></p>'
        '<p role="status" aria-live="polite"></p></section><section class="answer"></section>'
    )
    return frame("speechssl", body, generator="speechssl serve", more_script=asset("serve.js"))


def serve(listener: Listener, *, host: str = "127.0.0.1", port: int = 8000, limits: Limits = Limits()) -> None:
    """Serves until it is interrupted. Raises UserError: the port is taken, or the address is none of this machine's."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise UserError(f"{host}, port {port}: cannot be used ({error.strerror}); choose another --port.") from None
    names = () if host == "0.0.0.0" else (host, *LOOPBACK)
    app = build_app(listener, limits, names)
    if host not in LOOPBACK:
        print("Warning: others on the network can reach this server; it knows no passwords.")
    print(f"Open http://{host}:{bound.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", timeout_keep_alive=5, limit_concurrency=16, server_header=False, access_log=False
    )
    uvicorn.Server(config).run(sockets=[bound])
