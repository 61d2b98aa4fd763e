"""The three commands in order, from a manifest to a run on its units, and every way to get them wrong."""

import json

import pytest
import yaml
from tiny_run import make_corpus, metrics, one_sentence, speechssl, tiny_plain

from speechssl.data.units import Units

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus(folder), make_corpus(folder, (0.6, 0.8), name="valid")


def preset(folder, corpus, **parts):
    plain = tiny_plain("hubert", corpus, **parts)
    plain["data"] = {k: v for k, v in plain["data"].items() if k not in ("train", "units")}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(plain))))
    return path


@pytest.mark.slow
def test_two_iterations(corpora, tmp_path, capsys, monkeypatch):
    train, valid = corpora

    def run(*arguments):
        status, out, err = speechssl(capsys, monkeypatch, *arguments)
        assert status == 0, err
        return out

    # Iteration 1: MFCC every 10 ms, two to each of this encoder's frames of 20 ms.
    slow = {"feature_encoder": {"name": "waveform", "dims": [12, 12, 16], "kernels": [10, 8, 8], "strides": [5, 8, 8]}}
    config = preset(tmp_path, train, encoder=slow, train={"updates": 2, "valid_every": 2})
    one = tmp_path / "one"
    for corpus, name in ((train, "train"), (valid, "valid")):
        out = run("features", corpus.manifest, "--mfcc", "--hop-ms", 10, "-o", one / name)
        assert "next: speechssl kmeans" in out
    out = run("kmeans", one / "train", "-k", 6, "-o", one / "kmeans", "--starts", 2, "--epochs", 3)
    assert "mean squared distance" in out
    folders = (one / "train", one / "valid")
    labels = tmp_path / "letters.ctm"
    labels.write_text("train-0 1 0.0 0.2 a\ntrain-0 1 0.2 0.2 b\nvalid-1 1 0.0 0.5 a\n")
    out = run("units", *folders, "--kmeans", one / "kmeans", "-o", one / "units", "--labels", labels)
    assert "of 6 used, perplexity" in out
    assert "label purity" in out
    units = Units(one / "units")
    assert (units.record.hop, units.record.num_units, len(units)) == (160, 6, 12)
    assert units.record.source["features"]["kind"] == "mfcc"
    common = ("pretrain", "--preset", config, "--train", train.manifest, "--valid", valid.manifest)
    run(*common, "-o", one / "run", f"data.units={one / 'units'}", "objective.targets_per_frame=2")
    assert "accuracy" in metrics(one / "run")[-1]

    # Iteration 2: a layer of iteration 1.
    two = tmp_path / "two"
    for corpus, name in ((train, "train"), (valid, "valid")):
        arguments = ["--checkpoint", one / "run", "--layer", 1, "-o", two / name, "--device", "cpu"]
        out = run("features", corpus.manifest, *arguments)
        assert "Layer 1: output of block 1 after residual and norm." in out
    run("kmeans", two / "train", "-k", 6, "-o", two / "kmeans", "--starts", 2, "--epochs", 3)
    run("units", two / "train", two / "valid", "--kmeans", two / "kmeans", "-o", two / "units")
    assert Units(two / "units").record.source["features"]["layer"] == 1
    run(*common, "-o", two / "run", f"data.units={two / 'units'}")

    # Once more: nothing is done again, and nothing else is overwritten.
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*") if path.is_file() and "run" not in path.parts}
    out = run("units", two / "train", two / "valid", "--kmeans", two / "kmeans", "-o", two / "units")
    assert "made before with these settings" in out
    run("kmeans", two / "train", "-k", 6, "-o", two / "kmeans", "--starts", 2, "--epochs", 3)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    def wrong(*arguments):
        return one_sentence(speechssl(capsys, monkeypatch, *arguments))

    assert "holds units made otherwise" in wrong(
        "units", two / "train", "--kmeans", two / "kmeans", "-o", two / "units"
    )
    message = wrong("units", one / "train", "--kmeans", two / "kmeans", "-o", tmp_path / "x")
    assert "not of the kind that" in message
    message = wrong("units", two / "train", two / "train", "--kmeans", two / "kmeans", "-o", tmp_path / "x")
    assert "is in 2 of the folders" in message
    assert not (tmp_path / "x").exists()
    message = wrong(*common, "-o", tmp_path / "y", f"data.units={one / 'units'}")
    assert "do not fit the objective: one comes every 160 samples" in message
    assert message.endswith("set objective.targets_per_frame=2.")
    message = wrong(*common, "-o", tmp_path / "y", f"data.units={two / 'units'}", "objective.num_units=9")
    assert message.endswith("there are 6 of them, and not 9; set objective.num_units=6.")
    assert "set data.units=FOLDER" in wrong(*common, "-o", tmp_path / "y")
    assert "not a units folder" in wrong(*common, "-o", tmp_path / "y", f"data.units={tmp_path}")
    run("units", two / "train", "--kmeans", two / "kmeans", "-o", two / "less")
    message = wrong(*common, "-o", tmp_path / "y", f"data.units={two / 'less'}")
    assert "not one of its utterances is in" in message
    assert "valid.jsonl" in message


@pytest.mark.parametrize(
    "arguments", [(), ("--mfcc", "--layer", 1), ("--checkpoint", "run"), ("--mfcc", "--checkpoint", "run")]
)
def test_features_of_what(corpora, tmp_path, capsys, monkeypatch, arguments):
    result = speechssl(capsys, monkeypatch, "features", corpora[0].manifest, "-o", tmp_path / "f", *arguments)
    assert one_sentence(result) == "give either --mfcc, or --checkpoint RUN with --layer N."


def test_cmvn_is_for_mfcc(corpora, tmp_path, capsys, monkeypatch):
    arguments = ("features", corpora[0].manifest, "-o", tmp_path / "f", "--cmvn")
    result = speechssl(capsys, monkeypatch, *arguments, "--checkpoint", "run", "--layer", 1)
    assert one_sentence(result).startswith("--cmvn is for --mfcc")
    assert speechssl(capsys, monkeypatch, *arguments, "--mfcc")[0] == 0
    assert json.loads((tmp_path / "f" / "features.json").read_text())["cmvn"] is True


def test_utterances_without_units_are_left_out(corpora, tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from speechssl.data.manifest import Manifest

    train, _ = corpora
    known = tiny_plain("hubert", train)["data"]["units"]
    odd = [replace(train.utterances[0], id="stranger"), *train.utterances[1:]]
    Manifest.of(odd).write(tmp_path / "odd.jsonl")
    config = preset(tmp_path, train, train={"updates": 1})
    arguments = ("pretrain", "-p", config, "--train", tmp_path / "odd.jsonl", "-o", tmp_path / "run")
    status, out, err = speechssl(capsys, monkeypatch, *arguments, f"data.units={known}")
    assert status == 0, err
    assert "1 of 10 utterances have no units and are left out: stranger" in out
