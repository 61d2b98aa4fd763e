"""Pictures and sound as data URIs. A picture holds strength only, as the opacity of 16 steps: the page lays its own ink
under it, dark on a light page and light on a dark one.

Shapes: T samples, N windows, M mel bins, H x W pixels.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib

import numpy as np
import soundfile
import torch
from torch import Tensor

LEVELS = 16  # 4 bits a pixel
RANGE = 10.0  # of a spectrogram, in natural logarithms of power (43 dB)
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


def png(strength: np.ndarray) -> bytes:
    """(H, W) in 0 to 1 -> a PNG whose opacity it is; row 0 is the top."""
    height, width = strength.shape
    levels = np.rint(np.nan_to_num(strength).clip(0, 1) * (LEVELS - 1)).astype(np.uint8)
    even = np.pad(levels, ((0, 0), (0, width % 2)))
    rows = np.pad(even[:, ::2] << 4 | even[:, 1::2], ((0, 0), (1, 0)))  # a row begins with its filter: 0, none
    opacity = bytes(255 * level // (LEVELS - 1) for level in range(LEVELS))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        (b"PLTE", bytes(3 * LEVELS)),
        (b"tRNS", opacity),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def ink(strength: np.ndarray, label: str, classes: str = "") -> str:
    """A picture as HTML; the label is what a screen reader says (already escaped)."""
    return (
        f'<div class="ink {classes}" role="img" aria-label="{label}" '
        f"style=\"--picture:url('{data_uri('image/png', png(strength))}')\"></div>"
    )


def spectrogram(waveform: Tensor, sample_rate: int, *, num_bins: int = 64, most: int = 600) -> np.ndarray:
    """(T,) -> (M, N) in 0 to 1, the lowest frequency in the last row: log-mel, at most `most` windows wide.

    From 25 ms windows every 10 ms, or as far apart as `most` asks.
    """
    from torchaudio.transforms import MelSpectrogram

    window = max(sample_rate // 40, 2)
    hop = max(sample_rate // 100, -(-len(waveform) // most), 1)
    size = 2 ** math.ceil(math.log2(max(window, 16 * num_bins)))  # fine enough for the narrowest bins
    mel = MelSpectrogram(
        sample_rate, n_fft=size, win_length=window, hop_length=hop, n_mels=num_bins, mel_scale="htk", power=2.0
    )
    if len(waveform) <= size:
        waveform = torch.nn.functional.pad(waveform, (0, size + 1 - len(waveform)))
    with torch.no_grad():
        loud = (mel(waveform.float()) + 1e-10).log()
    top = float(loud.flatten().kthvalue(max(1, int(0.999 * loud.numel()))).values)
    return ((loud - top) / RANGE + 1).clamp(0, 1).flip(0).numpy()


def sound(waveform: Tensor, sample_rate: int) -> str:
    """(T,) as a data URI: Ogg Opus, or 16-bit WAV where this machine's libsndfile cannot write that.

    Louder or softer, so that its peak is -1 dB: what is heard does not tell how loud the file was.
    """
    samples = waveform.float().numpy()
    samples = samples * (0.89 / max(float(np.abs(samples).max(initial=0.0)), 1e-9))
    buffer = io.BytesIO()
    if sample_rate in OPUS_RATES and "OPUS" in soundfile.available_subtypes("OGG"):
        soundfile.write(buffer, samples, sample_rate, format="OGG", subtype="OPUS")
        return data_uri("audio/ogg", buffer.getvalue())
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype="PCM_16")
    return data_uri("audio/wav", buffer.getvalue())
