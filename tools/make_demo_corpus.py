"""Makes the demo corpus: sentences of a small grammar, spoken by espeak-ng in many voices, in LibriSpeech layout.

    python tools/make_demo_corpus.py data/demo

<folder>/<subset>/<speaker>/<chapter>/*.flac (16 kHz), with transcripts in *.trans.txt for `train`, `dev` and `test`;
`unlabelled` has none. No speaker and no sentence is in two subsets; the voices of dev and test are heard nowhere else.
The same arguments give the same bytes. espeak-ng is GPL-3 and comes with the extra [demo]; it only runs here, and the
sound that it makes is yours.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from demo_sentences import sentences
from rich.console import Console
from rich.progress import track

from speechssl.data.audio import resample
from speechssl.data.scan import cores
from speechssl.errors import UserError

VERSION = 1  # of the sentences, voices and rooms: raise it when the same arguments give other files
MARKER = "demo-corpus.json"
RATE = 16_000
ACCENTS = ("en-us", "en-us-nyc", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# espeak's voice variants (women, men). Those of dev and test are heard in no other subset.
SEEN = (
    "f1 f3 f5 anika belinda linda shelby",
    "m1 m3 m4 m5 m7 m8 Andy Denis Diogo Jacky Mario Mike Nguyen Reed adam antonio benjamin boris edward grandpa "
    "gustave ian john marcelo max norbert pedro quincy robert sandro travis victor",
)
VARIANTS = {
    "test": ("f4 Andrea grandma aunty", "m6 Alex Marco Gene paul"),
    "dev": ("f2 Annie steph Alicia", "m2 Michael ed pablo david"),
    "train": SEEN,
    "unlabelled": SEEN,
}
MINUTES_PER_SPEAKER = {"test": 1.25, "dev": 1.25, "train": 1.5, "unlabelled": 3.0}
PRELOADED = ["torchaudio.transforms", "soundfile", "typer", "rich.progress", "speechssl.data.audio"]
LICENSE = """The sentences are made by a grammar of speechssl and spoken by espeak-ng
(https://github.com/espeak-ng/espeak-ng), which is licensed under GPL-3 or later.
The licence covers the program, not the sound that it makes: these files are yours.
"""

# --------------------------------------------------------------------------------------------------------- speakers


@dataclass(frozen=True)
class Speaker:
    """A voice in a room, and what it says until its seconds are full."""

    id: int
    subset: str
    sex: str
    variant: str
    accent: str
    words_per_minute: int
    pitch: int  # espeak's 0..99, relative to the variant's own
    pitch_range: int
    seconds: float
    sentences: tuple[str, ...]
    seed: int


def plan(minutes: dict[str, float], seed: int) -> list[Speaker]:
    """The speakers of every subset. dev and test do not depend on how much else is made."""
    speakers = []
    source = sentences(seed)
    for first, (subset, variants) in enumerate(VARIANTS.items(), 1):
        count = max(2, round(minutes[subset] / MINUTES_PER_SPEAKER[subset])) if minutes[subset] else 0
        accents = random.Random(f"accents {seed} {subset}").sample(ACCENTS, len(ACCENTS))
        for number in range(count):
            seconds = 60 * minutes[subset] / count
            generator = random.Random(f"speaker {seed} {subset} {number}")
            choices = variants[number % 2].split()
            speakers.append(
                Speaker(
                    id=10_000 * first + number,
                    subset=subset,
                    sex="FM"[number % 2],
                    variant=choices[number // 2 % len(choices)],
                    accent=accents[(number // 2 + 4 * (number % 2)) % 8],  # 16 speakers: each sex has each accent
                    words_per_minute=generator.randint(145, 205),
                    pitch=generator.randint(30, 70),
                    pitch_range=generator.randint(30, 75),
                    seconds=seconds,
                    sentences=tuple(next(source) for _ in range(round(seconds) + 2)),  # each lasts over a second
                    seed=seed,
                )
            )
    return speakers


class Espeak:
    """The espeak-ng library. Its state is global and outlives a sentence: one process speaks for one speaker."""

    SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
    WORDS_PER_MINUTE, PITCH, PITCH_RANGE = 1, 3, 4

    def __init__(self, voice: str, seed: int):
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path()
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, os.fsencode(folder), self.DO_NOT_EXIT)
        if self.rate <= 0:
            raise UserError(f"espeak-ng cannot read its voices in {folder} (a path past 150 letters is too long).")
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice '{voice}'; install the version of espeakng-loader in [demo].")
        self.chunks: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = callback(self._collect)  # kept alive as long as the library may call it
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # else seeded by the clock

    def _collect(self, samples, count: int, events) -> int:
        if samples and count:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, *, words_per_minute: int, pitch: int, pitch_range: int) -> np.ndarray:
        """(T,) float32 at `self.rate`, without the silence around it."""
        self.chunks.clear()
        for parameter, value in (
            (self.WORDS_PER_MINUTE, words_per_minute),
            (self.PITCH, pitch),
            (self.PITCH_RANGE, pitch_range),
        ):
            self.library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.chunks).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(samples) > 1e-3)
        return samples[loud[0] : loud[-1] + 1]


# ------------------------------------------------------------------------------------------------------------ rooms


def impulse_response(generator: np.random.Generator) -> np.ndarray:
    """A light room: the direct sound, then noise that decays by 60 dB in 0.1 to 0.4 s, 6 to 18 dB below it."""
    decay, ratio = generator.uniform(0.1, 0.4), generator.uniform(6, 18)
    time = np.arange(round(decay * RATE)) / RATE
    tail = generator.standard_normal(len(time)) * 10 ** (-3 * time / decay)
    tail[: RATE // 300] = 0  # the first reflection comes after 3 ms
    tail *= 10 ** (-ratio / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return tail


def convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = len(samples) + len(response) - 1
    padded = 1 << (size - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(samples, padded) * np.fft.rfft(response, padded), padded)[:size]


def coloured_noise(count: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Noise whose power falls as frequency ** -exponent above 60 Hz (0: white, 1: pink, 2: brown); RMS 1."""
    padded = 1 << (count - 1).bit_length()
    frequency = np.fft.rfftfreq(padded, 1 / RATE)
    shape = np.where(frequency >= 60, np.maximum(frequency, 60) ** (-exponent / 2), 0)
    noise = np.fft.irfft(np.fft.rfft(generator.standard_normal(padded)) * shape, padded)[:count]
    return noise / rms(noise)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def record(speaker: Speaker) -> Iterator[tuple[str, np.ndarray]]:
    """Sentences of a speaker and their recordings (T,) at 16 kHz."""
    espeak = Espeak(f"{speaker.accent}+{speaker.variant}", speaker.seed)
    room = np.random.default_rng([speaker.seed, speaker.id])
    response, colour, quiet = impulse_response(room), room.uniform(0, 2), room.uniform(17, 28)
    spoken = 0.0
    for number, sentence in enumerate(speaker.sentences):
        generator = np.random.default_rng([speaker.seed, speaker.id, number])
        rate, pitch = generator.integers(-8, 9), generator.integers(-4, 5)
        dry = espeak.speak(
            sentence,
            words_per_minute=int(speaker.words_per_minute + rate),
            pitch=int(speaker.pitch + pitch),
            pitch_range=speaker.pitch_range,
        )
        speech = resample(torch.from_numpy(dry), espeak.rate, RATE).numpy()
        before, after = generator.uniform(0.05, 0.35, size=2)
        speech = convolve(np.pad(speech, (round(before * RATE), round(after * RATE))), response)
        noise = coloured_noise(len(speech), colour, generator) * 10 ** (-(quiet + generator.uniform(-2, 2)) / 20)
        samples = speech / rms(speech) + noise
        level = 10 ** (generator.uniform(-32, -20) / 20)
        yield sentence, samples * min(level, 0.95 / np.abs(samples).max())  # never clipped
        spoken += len(samples) / RATE
        if spoken >= speaker.seconds:
            return


# ----------------------------------------------------------------------------------------------------------- writing


def write_speaker(task: tuple[Speaker, str]) -> tuple[int, float]:
    """Writes a speaker's recordings and transcripts; returns id and minutes. Runs in a process of its own."""
    speaker, root = task
    torch.set_num_threads(1)
    chapter = 100_000 + speaker.id
    folder = Path(root) / speaker.subset / str(speaker.id) / str(chapter)
    folder.mkdir(parents=True, exist_ok=True)
    lines, samples = [], 0
    for number, (sentence, sound) in enumerate(record(speaker)):
        name = f"{speaker.id}-{chapter}-{number:04d}"
        soundfile.write(folder / f"{name}.flac", sound, RATE, subtype="PCM_16")
        lines.append(f"{name} {sentence.upper()}\n")
        samples += len(sound)
    if speaker.subset != "unlabelled":
        (folder / f"{speaker.id}-{chapter}.trans.txt").write_text("".join(lines))
    return speaker.id, samples / RATE / 60


def make_corpus(folder: Path, *, minutes: dict[str, float], seed: int = 1, jobs: int | None = None) -> bool:
    """Makes the corpus in `folder`; minutes: of each subset. Returns False if it was there already.

    Raises UserError: espeakng-loader is missing, or the folder holds something else.
    """
    arguments = {"version": VERSION, "seed": seed, "minutes": minutes}
    if _is_complete(folder, arguments):
        return False
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError("espeakng-loader is missing; install it with `pip install speechssl[demo]`.")
    folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, arguments, complete=False)
    speakers = plan(minutes, seed)
    tasks = [(speaker, str(folder)) for speaker in sorted(speakers, key=lambda s: -s.seconds)]
    # A fork of a small server that has imported everything: a fresh espeak for each speaker in a few milliseconds.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(PRELOADED)
    with context.Pool(jobs or cores(), maxtasksperchild=1) as pool:
        results = pool.imap_unordered(write_speaker, tasks, chunksize=1)
        spoken = dict(track(results, "speaking", total=len(tasks), console=Console(stderr=True)))
    rows = [f"{s.id} | {s.sex} | {s.subset:<16} | {spoken[s.id]:5.2f} | {s.variant}, {s.accent}\n" for s in speakers]
    (folder / "SPEAKERS.TXT").write_text(";ID  |SEX| SUBSET           |MINUTES| NAME\n" + "".join(rows))
    (folder / "LICENSE.TXT").write_text(LICENSE)
    _mark(folder, arguments, complete=True)
    return True


def _is_complete(folder: Path, arguments: dict) -> bool:
    """Whether this very corpus is there. Raises UserError if something else is."""
    marker = folder / MARKER
    if marker.is_file():
        made = json.loads(marker.read_text())
        complete = made.pop("complete")
        if made != arguments:
            raise UserError(f"{folder}: holds a demo corpus made with other arguments ({made}); give another folder.")
        return complete
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not a demo corpus; give a new folder.")
    return False


def _mark(folder: Path, arguments: dict, *, complete: bool) -> None:
    temporary = folder / f"{MARKER}.part"
    temporary.write_text(json.dumps({**arguments, "complete": complete}) + "\n")
    os.replace(temporary, folder / MARKER)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the corpus goes: a new folder, or one made by this tool.")],
    hours: Annotated[float, typer.Option(min=0, help="Unlabelled speech, in hours.")] = 2.0,
    train_minutes: Annotated[float, typer.Option(min=0, help="Labelled speech to train on.")] = 30.0,
    dev_minutes: Annotated[float, typer.Option(min=0, help="Speech of other speakers, to choose settings by.")] = 10.0,
    test_minutes: Annotated[float, typer.Option(min=0, help="Speech of other speakers again, to report on.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="The same arguments give the same bytes.")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Make the demo corpus: a small grammar spoken by espeak-ng in many voices, as FLAC in LibriSpeech layout."""
    minutes = {"test": test_minutes, "dev": dev_minutes, "train": train_minutes, "unlabelled": 60 * hours}
    try:
        made = make_corpus(folder, minutes=minutes, seed=seed, jobs=jobs)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{folder}: {'made' if made else 'was there already'}. Next: speechssl manifest librispeech")


if __name__ == "__main__":
    typer.run(main)
