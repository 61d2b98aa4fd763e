"""`speechssl manifest ...` and `speechssl vocab`: what they write, that they are idempotent, and what they refuse."""

import json

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from speechssl.cli import data
from speechssl.data.audio import read_waveform
from speechssl.data.corpora import librispeech
from speechssl.data.manifest import Manifest
from speechssl.errors import UserError

RATE = 16_000
app = typer.Typer()
app.add_typer(data.manifest_app, name="manifest")
app.command("vocab")(data.vocab)


def run(*arguments):
    """The output of a verb; a UserError is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def speech(seconds, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


@pytest.fixture
def corpus(tmp_path):
    """LibriSpeech layout: two speakers, three utterances each, one of them damaged."""
    for speaker in ("1", "2"):
        folder = tmp_path / "corpus" / speaker / "10"
        folder.mkdir(parents=True)
        for n in range(3):
            soundfile.write(folder / f"{speaker}-10-{n}.flac", speech(1 + n), RATE)
        (folder / f"{speaker}-10.trans.txt").write_text("".join(f"{speaker}-10-{n} WORD {n}\n" for n in range(3)))
    (tmp_path / "corpus/2/10/2-10-2.flac").write_bytes(b"damaged")
    return tmp_path / "corpus"


def test_librispeech_folder(corpus, tmp_path):
    output = tmp_path / "out/train.jsonl"
    shown = run("manifest", "librispeech", "--folder", corpus, "-o", output)
    assert "next: speechssl pretrain" in shown
    assert "2-10-2" in shown
    manifest = Manifest.read(output)
    assert [u.id for u in manifest] == ["1-10-0", "1-10-1", "1-10-2", "2-10-0", "2-10-1"]
    assert read_waveform(manifest[2], RATE).shape == (3 * RATE,)
    report = json.loads((tmp_path / "out/train.jsonl.report.json").read_text())
    assert list(report["left_out"]) == ["unreadable"]
    assert report["made_by"]["command"] == "manifest librispeech"


def test_a_second_run_leaves_it_alone_and_another_command_is_refused(corpus, tmp_path):
    output = tmp_path / "train.jsonl"
    verb = ("manifest", "librispeech", "--folder", corpus, "-o", output)
    run(*verb)
    before = output.stat().st_mtime_ns
    assert "already made" in run(*verb, "--jobs", 1)
    assert output.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not made by this command"):
        run(*verb, "--min-seconds", 1.5)
    run(*verb, "--min-seconds", 1.5, "--force")
    assert len(Manifest.read(output)) == 3
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("precious")
    with pytest.raises(UserError, match="not made by this command"):
        run("manifest", "folder", corpus, "-o", foreign)
    assert foreign.read_text() == "precious"


def test_nothing_left_is_an_error_and_writes_nothing(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no utterance is left \(1 unreadable, 5 too short\)"):
        run("manifest", "librispeech", "--folder", corpus, "-o", tmp_path / "none.jsonl", "--min-seconds", 9)
    assert not (tmp_path / "none.jsonl").exists()


def test_librispeech_archives_give_a_manifest_each(corpus, tmp_path, monkeypatch):
    asked = []

    def fetch(name, data, *, mirror, keep_archive):
        asked.append((name, mirror, keep_archive))
        return corpus

    monkeypatch.setattr(librispeech, "fetch", fetch)
    verb = ("manifest", "librispeech", "mini", "raw-metadata", "--data", tmp_path / "data", "--mirror", "http://x")
    assert "raw-metadata: unpacked" in run(*verb, "--no-keep-archives")
    assert asked == [(name, "http://x", False) for name in ("train-clean-5", "dev-clean-2", "raw-metadata")]
    assert len(Manifest.read(tmp_path / "data/manifests/dev-clean-2.jsonl")) == 5
    assert run(*verb).count("already made") == 2
    assert len(asked) == 4, "what has its manifest is not fetched again"


def test_librispeech_wants_archives_or_a_folder(tmp_path):
    with pytest.raises(UserError, match="name archives to download"):
        run("manifest", "librispeech")
    with pytest.raises(UserError, match="give --output"):
        run("manifest", "librispeech", "--folder", tmp_path)
    with pytest.raises(UserError, match="no archive 'tiny'"):
        run("manifest", "librispeech", "tiny")


def test_folder_cuts_long_recordings(tmp_path):
    (tmp_path / "tree/anna").mkdir(parents=True)
    pause = np.zeros(2 * RATE)
    soundfile.write(tmp_path / "tree/anna/long.wav", np.concatenate([speech(4), pause, speech(4)]), RATE)
    arguments = ("manifest", "folder", tmp_path / "tree", "--speaker-level", 1, "--max-seconds", 5)
    run(*arguments, "-o", tmp_path / "cut.jsonl", "--detector", "energy")
    manifest = Manifest.read(tmp_path / "cut.jsonl")
    assert [u.id for u in manifest] == ["anna/long_00000000-00004100", "anna/long_00005900-00010000"]
    assert manifest.speakers == ["anna"]
    with pytest.raises(UserError, match="1 too long"):
        run(*arguments, "-o", tmp_path / "whole.jsonl", "--no-segment")


def test_imports(tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(1), RATE)
    (tmp_path / "list.tsv").write_text(f"{tmp_path}\na.wav\t{RATE}\n")
    run("manifest", "fairseq", tmp_path / "list.tsv", "-o", tmp_path / "fairseq.jsonl")
    cut = {
        "id": "a",
        "start": 0,
        "duration": 1.0,
        "channel": 0,
        "recording": {"sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "sampling_rate": RATE},
    }
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    run("manifest", "lhotse", tmp_path / "cuts.jsonl", "-o", tmp_path / "lhotse.jsonl", "--root", tmp_path)
    first, second = (Manifest.read(tmp_path / f"{name}.jsonl")[0] for name in ("fairseq", "lhotse"))
    assert first == second


@pytest.fixture
def labelled(tmp_path):
    """A manifest of 25 labelled minutes (its audio is never read)."""
    lines = [
        {
            "id": f"u{n}",
            "audio": "u.wav",
            "num_samples": 10 * RATE,
            "sample_rate": RATE,
            "text": "HI",
            "speaker": str(n % 7),
        }
        for n in range(150)
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_split_writes_what_there_is_and_names_what_is_not(labelled, tmp_path):
    shown = run("manifest", "split", labelled, "-o", tmp_path / "splits")
    assert sorted(p.name for p in (tmp_path / "splits").glob("*.jsonl")) == ["10min-0.jsonl", "10min-1.jsonl"]
    assert "not made: 1h: 60 minutes with transcripts are needed, the manifest has 25.0" in shown
    folds = [Manifest.read(tmp_path / f"splits/10min-{k}.jsonl") for k in (0, 1)]
    assert not {u.id for u in folds[0]} & {u.id for u in folds[1]}
    assert run("manifest", "split", labelled, "-o", tmp_path / "splits", "--labels", "10min").count("already made") == 2
    with pytest.raises(UserError, match="largest available is 10min-1"):
        run("manifest", "split", labelled, "-o", tmp_path / "splits", "--labels", "1h")
    with pytest.raises(UserError, match="not made by this command"):
        run("manifest", "split", labelled, "-o", tmp_path / "splits", "--seed", 1)


def test_split_of_any_length(labelled, tmp_path):
    shown = run("manifest", "split", labelled, "-o", tmp_path, "--labels", "3min", "--labels", "10min")
    assert "3min.jsonl: 18 utterances, 3.0 minutes" in shown
    assert sorted(p.name for p in tmp_path.glob("*min*.jsonl")) == ["10min-0.jsonl", "10min-1.jsonl", "3min.jsonl"]
    with pytest.raises(UserError, match="no split '3'; choose from 10min, 1h, 10h, 100h, or say a length as 3min"):
        run("manifest", "split", labelled, "-o", tmp_path, "--labels", "3")
    with pytest.raises(UserError, match="Libri-Light has no list of 3min"):
        run("manifest", "split", labelled, "-o", tmp_path, "--labels", "3min", "--libri-light", limited_set(tmp_path))


def limited_set(folder):
    for name in ("9h", *(f"1h/{fold}" for fold in range(6))):
        (folder / "librispeech_finetuning" / name).mkdir(parents=True)
    return folder


def test_vocab(labelled, tmp_path):
    output = tmp_path / "vocabulary.json"
    assert "4 tokens from 150 transcripts" in run("vocab", labelled, "-o", output)
    assert "already there" in run("vocab", labelled, "-o", output)
    with pytest.raises(UserError, match="another vocabulary"):
        run("vocab", labelled, "-o", output, "--case", "lower")
    run("vocab", labelled, "-o", output, "--case", "lower", "--force")


def test_every_option_has_a_help_text():
    commands = typer.main.get_command(app).commands
    for command in [*commands["manifest"].commands.values(), commands["vocab"]]:
        assert command.help
        assert all(getattr(parameter, "help", None) for parameter in command.params), command.name
