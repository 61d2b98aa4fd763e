"""Strangers' bytes: whatever a file holds, reading it gives a result or one of our own sentences, and nothing else.

Every reader gets SPEECHSSL_FUZZ inputs (default 100): sound files with bytes changed, lines shuffled and values of
other kinds put in, and noise. `SPEECHSSL_FUZZ=10000 pytest tests/test_fuzz.py` takes its time.
"""

import io
import json
import tarfile
from pathlib import Path

import pytest
from fuzzing import STRANGE, altered, damaged, fuzz, only_our_errors
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE, WORDS

from speechssl.asr.files import read_decoded
from speechssl.asr.ngram import Ngram
from speechssl.config import Config, load, parse
from speechssl.data.corpora import folder, imports, librispeech
from speechssl.data.download import DownloadError, extract
from speechssl.data.manifest import Manifest
from speechssl.data.tokens import Tokenizer
from speechssl.errors import UserError

# ---------------------------------------------------------------------------------------------------- lists and tables

ROW = {"id": "a", "audio": "a.flac", "num_samples": 8000, "sample_rate": RATE, "start": 5, "byte_range": [512, 900]}
ROW |= {"text": "ONE TWO", "speaker": "84"}
ROWS = [ROW, ROW | {"id": "b", "byte_range": None}]
CUT = {
    "id": "cut",
    "type": "MonoCut",
    "start": 0.5,
    "duration": 1.5,
    "channel": 0,
    "supervisions": [{"id": "s", "start": 0.1, "text": "one", "speaker": "84"}],
    "recording": {
        "id": "r",
        "sampling_rate": RATE,
        "num_samples": 48_000,
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    },
}
ARPA = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-1.0\t<s>\t-0.3\n-0.5\t</s>\n-0.7\t<unk>\n-0.9\tONE\t-0.2\n\n"
ARPA += "\\2-grams:\n-0.2\t<s> ONE\n-0.1\tONE </s>\n\n\\end\\\n"
TEXTS = {
    "manifest.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "cuts.jsonl": json.dumps(CUT) + "\n",
    "list.tsv": "/corpus/of/it\na/1.flac\t8000\nb.tar:512:900\t700\n",
    "table.tsv": "a\tone two\nb\tthree\n",
    "table.csv": 'a,"one, two"\nb,three\n',
    "84-1.trans.txt": "84-1-0000 ONE TWO\n84-1-0001 THREE\n",
    "lm.arpa": ARPA,
    "decoded.jsonl": '{"id": "a", "text": "ONE", "reference": "ONE"}\n{"id": "b", "text": ""}\n',
    "preset.yaml": "about: x\ndata: {crop: true}\noptim: {lr: 5e-4, betas: [0.9, 0.98]}\ntrain:\n  seed: 3\n",
    "vocabulary.json": json.dumps(Tokenizer.train(WORDS).to_dict()),
}


def read_text_file(path: Path) -> object:
    match path.name:
        case "manifest.jsonl":
            return "".join(f"{u.id} {u.audio} {u.seconds} {u.length_at(RATE)}" for u in Manifest.read(path)).encode()
        case "cuts.jsonl":
            return imports.read_lhotse(path)
        case "list.tsv":
            return imports.read_fairseq(path)
        case "table.tsv" | "table.csv":
            return folder.read(path.parent, transcripts=path)
        case "84-1.trans.txt":
            return librispeech.read(path.parent)
        case "lm.arpa":
            return Ngram.read(path)
        case "decoded.jsonl":
            return read_decoded(path)
        case "preset.yaml":
            return load(path)
        case "vocabulary.json":
            return Tokenizer.read(path).encode("one")
    raise AssertionError(path)


@pytest.mark.parametrize("name", TEXTS)
def test_the_sound_files_can_be_read(tmp_path, name):
    (tmp_path / "a.flac").touch()
    (tmp_path / name).write_text(TEXTS[name])
    assert read_text_file(tmp_path / name)


@pytest.mark.parametrize("name", TEXTS)
@fuzz
@given(data=st.data())
def test_text_files(tmp_path, name, data):
    (tmp_path / "a.flac").touch()
    (tmp_path / name).write_bytes(data.draw(damaged(TEXTS[name].encode())))
    with only_our_errors():
        read_text_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "record"), [("manifest.jsonl", ROW), ("cuts.jsonl", CUT), ("decoded.jsonl", {"id": "a", "text": "ONE"})]
)
@fuzz
@given(data=st.data())
def test_rows(tmp_path, name, record, data):
    """Well-formed JSON with values of other kinds; what is read of a manifest can be printed."""
    (tmp_path / name).write_text(json.dumps(data.draw(altered(record))) + "\n")
    with only_our_errors():
        read_text_file(tmp_path / name)


@fuzz
@given(record=altered(Tokenizer.train(WORDS).to_dict()))
def test_vocabularies(record):
    with only_our_errors():
        Tokenizer.from_dict(record).encode("one two")


@fuzz
@given(record=altered(Config().to_dict()))
def test_configurations(record):
    with only_our_errors():
        parse(Config, record, source="stranger")


@fuzz
@given(text=st.text(max_size=60) | st.sampled_from(STRANGE))
def test_overrides(tmp_path, text):
    (tmp_path / "preset.yaml").write_text(TEXTS["preset.yaml"])
    for override in (text, f"optim.lr={text}"):
        with only_our_errors():
            load(tmp_path / "preset.yaml", [override])


def test_bombs(tmp_path):
    """Little to write, and much to read: refused without unfolding it."""
    path = tmp_path / "bomb.yaml"
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    for text in (f"a0: &a0 [x]\n{levels}", "[" * 100_000, "a: " * 10_000, "? " * 10_000, "x: 9" + "9" * 50_000):
        path.write_text(text)
        with pytest.raises(UserError):
            load(path)
    path.write_text("\n".join(f"key{i}: 1" for i in range(10_000)))
    with pytest.raises(UserError, match="unknown key"):
        load(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UserError, match="no configuration"):
        load(path)
    with (tmp_path / "long.jsonl").open("wb") as file:
        file.truncate(100_000_000)  # one line of 100 MB
    with pytest.raises(UserError, match="line 1: longer than 1000000 characters"):
        Manifest.read(tmp_path / "long.jsonl")


# ------------------------------------------------------------------------------------------------------------ archives


def tar_of(names: list[tuple[str, bytes]], link: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link.decode()
            member.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"abc"))
    return stream.getvalue()


def unpack(folder: Path, data: bytes) -> None:
    """Whatever it is, nothing may lie outside `folder`/in/it."""
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(data)
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "it").mkdir(exist_ok=True)
    marker = folder / "in" / "it" / ".a.tar.extracted"
    marker.unlink(missing_ok=True)
    with only_our_errors():
        extract(folder / "a.tar", folder / "in" / "it", progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["a.tar", "in"]
    assert [path.name for path in (folder / "in").iterdir()] == ["it"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@fuzz
@given(data=damaged(tar_of([("a/b.txt", tarfile.REGTYPE), ("c", tarfile.DIRTYPE), ("d.txt", tarfile.REGTYPE)])))
def test_damaged_archives(tmp_path, data):
    unpack(tmp_path / "here", data)


@fuzz
@given(
    names=st.lists(
        st.tuples(
            st.text(st.sampled_from("ab./\\~: \0é"), min_size=1, max_size=12)
            | st.sampled_from(["..", "/etc/x", "a" * 300]),
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]),
        ),
        max_size=4,
    )
)
def test_names_in_archives(tmp_path, names):
    unpack(tmp_path / "here", tar_of(names, link=b"../../x"))


def test_archives_that_unfold_without_end(tmp_path):
    """A member that is all hole, and zeros that compress a thousandfold."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 100_000_000
        tar.addfile(member, _Zeros())
    (tmp_path / "zeros.tar.gz").write_bytes(stream.getvalue())
    with pytest.raises(DownloadError, match="unfolds to more than"):
        extract(tmp_path / "zeros.tar.gz", tmp_path / "out", progress=False)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 50_000_000
    header = tarfile.TarInfo("hole")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 0
    (tmp_path / "hole.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DownloadError):
        extract(tmp_path / "hole.tar", tmp_path / "other", progress=False)


class _Zeros(io.RawIOBase):
    def read(self, size=-1):
        return bytes(size)
