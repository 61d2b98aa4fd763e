"""LibriSpeech: archives from a local mirror, and folders in its layout."""

import functools
import hashlib
import http.server
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data.corpora import CorpusError, librispeech
from speechssl.data.scan import Rules, scan

SPEAKERS = {"84": "121123", "174": "50561"}


def make_corpus(root: Path, subset: str = "dev-clean") -> Path:
    """Two speakers with three utterances each, and one transcript line without audio."""
    noise = np.random.default_rng(0)
    for speaker, chapter in SPEAKERS.items():
        folder = root / subset / speaker / chapter
        folder.mkdir(parents=True)
        lines = []
        for number in range(3):
            name = f"{speaker}-{chapter}-{number:04d}"
            soundfile.write(folder / f"{name}.flac", 0.1 * noise.standard_normal(8000 + number), 16_000)
            lines.append(f"{name} UTTERANCE {number} OF {speaker}")
        if speaker == "84":
            lines.append("84-121123-0099 NOBODY SAYS THIS")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    return root / subset


def test_folder_gives_speakers_transcripts_and_missing_audio(tmp_path):
    corpus = librispeech.read(make_corpus(tmp_path))
    manifest, left_out = scan(corpus, Rules(require_text=True), progress=False)
    assert [u.id for u in manifest] == [f"{s}-{SPEAKERS[s]}-{n:04d}" for s in ("174", "84") for n in range(3)]
    assert manifest.speakers == ["174", "84"]
    assert manifest[0].text == "UTTERANCE 0 OF 174"
    assert [u.num_samples for u in manifest[:3]] == [8000, 8001, 8002]
    assert [(item.reason, item.id) for item in left_out] == [("no audio", "84-121123-0099")]


@pytest.mark.parametrize("beside", [False, True])
def test_the_list_of_speakers_tells_their_gender(tmp_path, beside):
    folder = make_corpus(tmp_path)
    listed = ";ID  |SEX| SUBSET\n84   | F | dev-clean | 8.0 | |C|Chris\n174 | ? | dev-clean\n\n9999\n85 | M\n"
    ((folder.parent if beside else folder) / "SPEAKERS.TXT").write_text(listed)
    manifest, _ = scan(librispeech.read(folder), Rules(), progress=False)
    assert {(u.speaker, u.extra.get("gender")) for u in manifest} == {("84", "F"), ("174", None)}


def test_repeated_transcripts_must_agree(tmp_path):
    folder = make_corpus(tmp_path)
    again = folder / "174/50561/again.trans.txt"
    again.write_text("174-50561-0000 UTTERANCE 0 OF 174\n")
    librispeech.read(folder)
    again.write_text("174-50561-0000 SOMETHING ELSE\n")
    with pytest.raises(CorpusError, match=r"again.trans.txt, line 1|50561.trans.txt, line 1"):
        librispeech.read(folder)


@pytest.mark.parametrize(("make", "sentence"), [(False, "no such folder"), (True, "no audio in it")])
def test_folders_that_hold_nothing(tmp_path, make, sentence):
    if make:
        (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=sentence):
        librispeech.read(tmp_path / "empty")


def test_linked_folders_are_entered_once(tmp_path):
    folder = make_corpus(tmp_path / "real")
    (tmp_path / "data").mkdir()
    os.symlink(folder, tmp_path / "data/dev-clean")
    os.symlink(tmp_path / "data", folder / "circle")
    assert len(librispeech.read(tmp_path / "data").candidates) == 6


def test_the_table_of_archives():
    names = librispeech.expand(["all", "mini", "limited", "dev-clean"])
    assert len(librispeech.expand(["all"])) == 11
    assert set(names) == set(librispeech.ARCHIVES)
    assert len(names) == len(set(names))
    digits = {"md5": 32, "sha256": 64}
    for archive in librispeech.ARCHIVES.values():
        kind, _, value = archive.checksum.partition(":")
        assert len(bytes.fromhex(value)) * 2 == digits[kind]
    assert librispeech.ARCHIVES["train-clean-5"].file == "31/train-clean-5.tar.gz"
    with pytest.raises(CorpusError, match="no archive 'dev-dirty'"):
        librispeech.expand(["dev-dirty"])


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local server with 31/dev-clean-2.tar.gz, and that archive's checksum in the table."""
    make_corpus(tmp_path / "made/LibriSpeech", "dev-clean-2")
    archive = tmp_path / "served/31/dev-clean-2.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made/LibriSpeech", "LibriSpeech")
    md5 = "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
    entry = librispeech.Archive(librispeech.OPENSLR, "31/dev-clean-2.tar.gz", md5, "LibriSpeech/dev-clean-2")
    monkeypatch.setattr(librispeech, "ARCHIVES", {**librispeech.ARCHIVES, "dev-clean-2": entry})

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_fetch_downloads_checks_and_unpacks_once(mirror, tmp_path):
    data = tmp_path / "data"
    folder = librispeech.fetch("dev-clean-2", data, mirror=mirror, keep_archive=False, progress=False)
    assert folder == data / "LibriSpeech/dev-clean-2"
    assert len(librispeech.read(folder).candidates) == 6
    assert list((data / "archives").iterdir()) == [], "the archive was not to be kept"
    librispeech.fetch("dev-clean-2", data, mirror="http://127.0.0.1:9", progress=False)  # nothing is asked for again
