"""What the fuzz tests share: how many inputs they get, and damaged bytes and altered records to make them of."""

from __future__ import annotations

import contextlib
import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from speechssl.errors import UserError

INPUTS = int(os.environ.get("SPEECHSSL_FUZZ", "100"))
fuzz = settings(max_examples=INPUTS, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
STRANGE = ["\0", "\ud800", "\x1b[2J", "../" * 9, "~", "a" * 5000, "\u2028", "9" * 5000, "1e999", "[" * 3000, "{" * 3000]


@contextlib.contextmanager
def only_our_errors():
    with contextlib.suppress(UserError):
        yield


@st.composite
def damaged(draw, sound: bytes) -> bytes:
    """A sound file with some bytes changed, taken out, put in or moved; or bytes that never were one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("change", "take", "put", "move", "end"))):
            case "change":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "take":
                del data[place : place + draw(st.integers(1, 64))]
            case "put":
                data[place:place] = draw(
                    st.binary(max_size=16) | st.sampled_from([s.encode("utf-8", "surrogatepass") for s in STRANGE])
                )
            case "move":
                piece = data[place : place + draw(st.integers(1, 64))]
                data[0:0] = piece
            case "end":
                del data[place:]
    return bytes(data)


@st.composite
def altered(draw, record: dict) -> dict:
    """JSON with some of its values replaced by others, at any depth, or gone."""
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, 3))):
        place = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)) == 0 and isinstance(place, dict):
                del place[key]
            else:
                place[key] = draw(VALUES | st.sampled_from(STRANGE))
            break
    return record
