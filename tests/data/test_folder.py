"""Any tree of audio: formats, rates, channels, tars, speakers and transcripts."""

import tarfile

import numpy as np
import pytest
import soundfile

from speechssl.data.audio import read_waveform
from speechssl.data.corpora import CorpusError, folder
from speechssl.data.scan import Rules, scan

FORMATS = {
    "a.wav": ("WAV", "PCM_16", 8000),
    "b.flac": ("FLAC", "PCM_16", 44_100),
    "c.ogg": ("OGG", "VORBIS", 44_100),
    "d.opus": ("OGG", "OPUS", 48_000),
    "e.mp3": ("MP3", "MPEG_LAYER_III", 22_050),
    "f.WAV": ("WAV", "FLOAT", 16_000),
}


def tone(rate, seconds=1.0, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, axis=1)


def manifest_of(root, **options):
    manifest, left_out = scan(folder.read(root, **options), Rules(), progress=False)
    assert not left_out
    return {u.id: u for u in manifest}


@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count_reads_as_the_same_tone(tmp_path, channels):
    for name, (kind, subtype, rate) in FORMATS.items():
        soundfile.write(tmp_path / name, tone(rate, channels=channels), rate, format=kind, subtype=subtype)
    manifest = manifest_of(tmp_path)
    assert sorted(manifest) == ["a", "b", "c", "d", "e", "f"]
    expected = tone(16_000)[:, 0]
    for utterance in manifest.values():
        assert utterance.seconds == pytest.approx(1.0, abs=0.06)
        heard = read_waveform(utterance, 16_000).numpy()
        middle = slice(4000, 12_000)
        spectrum = np.abs(np.fft.rfft(heard[middle] * np.hanning(8000)))
        assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=4), utterance.id
        assert heard[middle].std() == pytest.approx(expected[middle].std(), rel=0.1), utterance.id


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for file, name in files:
            tar.add(file, name)


def test_tar_members_are_read_in_place(tmp_path):
    noise = np.random.default_rng(0)
    (tmp_path / "loose").mkdir()
    for name in ("x.flac", "y.wav"):
        soundfile.write(tmp_path / "loose" / name, 0.1 * noise.standard_normal((5000, 2)), 44_100)
    (tmp_path / "x.txt").write_text("said  in\nthe tar\n")
    (tmp_path / "tree").mkdir()
    members = [(tmp_path / "loose" / n, f"./anna/{n}") for n in ("x.flac", "y.wav")]
    make_tar(tmp_path / "tree/part1.tar", [*members, (tmp_path / "x.txt", "./anna/x.txt")])
    inside = manifest_of(tmp_path / "tree", speaker_level=2)
    outside = manifest_of(tmp_path / "loose")
    for name in ("x", "y"):
        member = inside[f"part1/anna/{name}"]
        assert member.audio.endswith("part1.tar")
        assert member.byte_range[1] == next((tmp_path / "loose").glob(f"{name}.*")).stat().st_size
        assert member.speaker == "anna"
        assert read_waveform(member, 16_000).equal(read_waveform(outside[name], 16_000))
    assert inside["part1/anna/x"].text == "said in the tar"
    assert inside["part1/anna/y"].text is None


def test_damaged_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(CorpusError, match=r"a\.tar: not an uncompressed tar"):
        folder.read(tmp_path)


def test_speakers_are_a_part_of_the_path(tmp_path):
    for path in ("read/anna/1.wav", "read/ben/deep/2.wav", "stray.wav"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / path, tone(8000), 8000)
    speakers = {name: u.speaker for name, u in manifest_of(tmp_path, speaker_level=2).items()}
    assert speakers == {"read/anna/1": "anna", "read/ben/deep/2": "ben", "stray": None}
    with pytest.raises(CorpusError, match="speaker level 4"):
        folder.read(tmp_path, speaker_level=4)
    labels = {name: u.extra for name, u in manifest_of(tmp_path, label_level=1).items()}
    assert labels == {"read/anna/1": {"label": "read"}, "read/ben/deep/2": {"label": "read"}, "stray": {}}
    with pytest.raises(CorpusError, match="label level 5"):
        folder.read(tmp_path, label_level=5)


def test_transcripts_beside_the_audio_and_in_a_table(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcde":
        soundfile.write(tmp_path / "in" / f"{name}.wav", tone(8000), 8000)
    (tmp_path / "in/e.txt").write_text("beside\n")
    table = tmp_path / "texts.tsv"
    table.write_text(
        f"a\tby id\nb.wav\tby path\nin/c.wav\tfrom the table's folder\n{tmp_path}/in/d.wav\twhole\nz\tnone\n"
    )
    corpus = folder.read(tmp_path / "in", transcripts=table)
    texts = {c.id: c.text for c in corpus.candidates}
    assert texts == {"a": "by id", "b": "by path", "c": "from the table's folder", "d": "whole", "e": "beside"}
    assert corpus.no_audio == (("z", str(table)),)
    comma = tmp_path / "texts.csv"
    comma.write_text('a,"well, yes"\n')
    assert folder.read(tmp_path / "in", transcripts=comma).candidates[0].text == "well, yes"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("a\tx\nb\n", "line 2: 'b' has no text"), ("a\tx\na\ty\n", "line 2: 'a' is there twice"), (b"\xff\xfe", "UTF-8")],
)
def test_tables_that_cannot_be_read(tmp_path, content, sentence):
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    (tmp_path / "t.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=sentence):
        folder.read(tmp_path, transcripts=tmp_path / "t.tsv")


def test_a_tree_without_audio_says_what_to_do(tmp_path):
    (tmp_path / "speech.tar.gz").write_bytes(b"")
    with pytest.raises(CorpusError, match="unpack its compressed archives"):
        folder.read(tmp_path)
