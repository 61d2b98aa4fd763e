"""A demo corpus of seconds: layout, disjoint speakers and sentences, sane sound, and the same bytes every time."""

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import demo_sentences
import make_demo_corpus as demo

from speechssl.errors import UserError

MINUTES = {"test": 0.12, "dev": 0.12, "train": 0.15, "unlabelled": 0.2}
needs_espeak = pytest.mark.skipif(
    demo.importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader (the [demo] extra) is missing"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "demo"
    assert demo.make_corpus(folder, minutes=MINUTES, seed=3, jobs=2)
    return folder


def transcripts(folder):
    lines = [line for path in sorted(folder.rglob("*.trans.txt")) for line in path.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


def digests(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@needs_espeak
def test_layout_is_librispeechs(corpus):
    for subset in MINUTES:
        flacs = sorted((corpus / subset).rglob("*.flac"))
        assert flacs
        for path in flacs:
            speaker, chapter, _ = path.stem.split("-")
            assert path.parent == corpus / subset / speaker / chapter
        texts = transcripts(corpus / subset)
        assert set(texts) == (set() if subset == "unlabelled" else {path.stem for path in flacs})
        assert all(3 <= len(text.split()) <= 10 and text.isupper() for text in texts.values())
        seconds = sum(soundfile.info(path).duration for path in flacs)
        assert 60 * MINUTES[subset] <= seconds <= 60 * MINUTES[subset] + 12  # each of two speakers ends a sentence
    rows = [line.split("|") for line in (corpus / "SPEAKERS.TXT").read_text().splitlines()[1:]]
    assert {(row[0].strip(), row[2].strip()) for row in rows} == {
        (path.name, subset) for subset in MINUTES for path in (corpus / subset).iterdir()
    }
    assert "GPL-3" in (corpus / "LICENSE.TXT").read_text()


@needs_espeak
def test_speakers_and_sentences_are_in_one_subset_only(corpus):
    speakers = [path.name for subset in MINUTES for path in (corpus / subset).iterdir()]
    sentences = [text for subset in MINUTES for text in transcripts(corpus / subset).values()]
    assert len(set(speakers)) == len(speakers)
    assert len(set(sentences)) == len(sentences)


@needs_espeak
def test_sound_is_finite_neither_silent_nor_clipped_and_voices_differ(corpus):
    centres = {}
    for path in sorted(corpus.rglob("*.flac")):
        samples, rate = soundfile.read(path)
        assert rate == 16_000
        assert samples.ndim == 1
        assert 0.8 <= len(samples) / rate <= 10
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() < 0.99
        assert -40 < 20 * np.log10(demo.rms(samples)) < -15
        power = np.abs(np.fft.rfft(samples)) ** 2
        centre = (power * np.linspace(0, rate / 2, len(power))).sum() / power.sum()
        centres.setdefault(path.parent, []).append(centre)
    means = [np.mean(values) for values in centres.values()]
    within = np.mean([np.std(values) for values in centres.values() if len(values) > 1])
    assert np.std(means) > within  # a voice differs more from others than from itself


@needs_espeak
def test_second_run_does_nothing_and_the_bytes_never_change(corpus, tmp_path):
    before = digests(corpus)
    assert not demo.make_corpus(corpus, minutes=MINUTES, seed=3)
    assert demo.make_corpus(tmp_path / "again", minutes=MINUTES, seed=3, jobs=1)
    assert digests(tmp_path / "again") == before == digests(corpus)


@needs_espeak
def test_an_interrupted_run_is_finished(corpus, tmp_path):
    minutes = {**MINUTES, "train": 0.0, "unlabelled": 0.0}
    folder = tmp_path / "demo"
    folder.mkdir()
    arguments = {"version": demo.VERSION, "seed": 3, "minutes": minutes, "complete": False}
    (folder / demo.MARKER).write_text(json.dumps(arguments))
    assert demo.make_corpus(folder, minutes=minutes, seed=3)
    assert digests(folder / "dev") == digests(corpus / "dev")  # which does not depend on the other subsets
    assert not (folder / "train").exists()


def test_refuses_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a demo corpus"):
        demo.make_corpus(tmp_path, minutes=MINUTES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / demo.MARKER).write_text(json.dumps({"version": 0, "seed": 1, "minutes": {}, "complete": True}))
    with pytest.raises(UserError, match="other arguments"):
        demo.make_corpus(tmp_path, minutes=MINUTES)


def test_missing_espeak_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install speechssl\[demo\]"):
        demo.make_corpus(tmp_path / "demo", minutes=MINUTES)
    assert not (tmp_path / "demo").exists()


def test_held_out_voices_are_heard_nowhere_else():
    minutes = {"test": 20, "dev": 20, "train": 90, "unlabelled": 300}
    speakers = demo.plan(minutes, seed=1)
    variants = {subset: {s.variant for s in speakers if s.subset == subset} for subset in minutes}
    assert not variants["test"] & variants["dev"]
    assert not (variants["test"] | variants["dev"]) & (variants["train"] | variants["unlabelled"])
    assert {s.accent for s in speakers if s.subset == "dev"} == set(demo.ACCENTS)
    assert len({(s.variant, s.accent, s.words_per_minute, s.pitch) for s in speakers}) == len(speakers)


def test_sentences_are_distinct_seeded_and_use_every_letter():
    first = list(islice(demo_sentences.sentences(1), 2000))
    assert len(set(first)) == 2000
    assert first == list(islice(demo_sentences.sentences(1), 2000))
    assert first != list(islice(demo_sentences.sentences(2), 2000))
    assert all(sentence == sentence.lower() for sentence in first)  # no slot of the grammar is left unfilled
    assert len(set("".join(first)) - {" "}) == 26
    assert 300 <= len(set(" ".join(first).split())) <= 500


def test_room_sounds_have_the_stated_colour_and_decay():
    generator = np.random.default_rng(0)
    white, brown = demo.coloured_noise(60_000, 0, generator), demo.coloured_noise(60_000, 2, generator)
    assert demo.rms(white) == pytest.approx(1)
    low = [
        (np.abs(np.fft.rfft(x))[: len(x) // 16] ** 2).sum() / (np.abs(np.fft.rfft(x)) ** 2).sum()
        for x in (white, brown)
    ]
    assert low[0] < 0.2 < 0.9 < low[1]  # share of the power below 1 kHz
    response = demo.impulse_response(generator)
    assert response[0] == 1
    assert 0.1 < np.linalg.norm(response[1:]) < 0.6
    assert demo.rms(response[-160:]) < 0.01
    signal = generator.standard_normal(500)
    assert np.allclose(demo.convolve(signal, response[:300]), np.convolve(signal, response[:300]))
