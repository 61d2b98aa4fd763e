"""The check of exports says "the same" of a sound one, names every other text, and refuses what does not transcribe."""

import sys

import pytest
import torch
import typer
from parity import shake
from tiny_run import ROOT, make_corpus, tiny_config

from speechssl.build import build_objective
from speechssl.checkpoint import save_model
from speechssl.data.tokens import Tokenizer

sys.path.insert(0, str(ROOT / "tools"))

import check_export

pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def speller(tmp_path_factory):
    """A CTC model with random weights, and its corpus."""
    folder = tmp_path_factory.mktemp("speller")
    corpus = make_corpus(folder / "sound", (0.5, 1.3, 0.7))
    config = tiny_config("ctc", corpus, data={"normalize": True})
    objective = build_objective(config)
    torch.manual_seed(1)
    shake(objective)
    (folder / "run").mkdir()
    save_model(objective, config, folder / "run", tokenizer=Tokenizer.read(corpus.vocabulary))
    return folder / "run", corpus.manifest


def status(*arguments) -> int:
    with pytest.raises(typer.Exit) as ended:
        check_export.main(*arguments)
    return ended.value.exit_code


def test_a_sound_export(speller, capsys):
    assert status(*speller) == 0
    said = capsys.readouterr().out
    for program in ("transformers", "onnxruntime"):
        assert f"{program}: 3 of 3 texts are those of decode" in said


def test_another_text_is_shown(speller, capsys, monkeypatch):
    texts = iter(["one  two", "one two", ""])
    monkeypatch.setattr(check_export, "PROGRAMS", {"parrot": lambda run, folder: lambda waveform: next(texts)})
    monkeypatch.setattr(check_export, "read_decoded", lambda path: (dict.fromkeys(IDS, "one two"), {}))
    assert status(*speller) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "parrot: 1 of 3 texts are those of decode, 1 but for spaces",
        "  train-2",
        "    decode        one two",
        "    parrot        ",
    ]


IDS = ("train-0", "train-1", "train-2")


def test_what_does_not_transcribe_is_one_sentence(tmp_path, speller, capsys):
    config = tiny_config("cpc", make_corpus(tmp_path / "sound", (0.5,)))
    (tmp_path / "run").mkdir()
    save_model(build_objective(config), config, tmp_path / "run")
    assert status(tmp_path / "run", speller[1]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("is a cpc model, and transformers takes models of the objective ctc alone.")
    )
    assert status(tmp_path / "nothing", speller[1]) == 2
