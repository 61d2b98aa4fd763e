"""A probe from the command line: every layer, the baselines, the cache, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_encoder
from tiny_run import RATE, one_sentence
from voices import make_voices, untrained

from speechssl.batch import Batch
from speechssl.config import DataConfig
from speechssl.data.audio import read_waveform
from speechssl.data.manifest import Manifest, Utterance
from speechssl.extract import load_encoder
from speechssl.probe import features as of_features
from speechssl.probe.features import encoder_source, extract, log_mel_source
from speechssl.probe.probing import ProbeResult, Row, read_result

HEARS = DataConfig(workers=0)
CPU = torch.device("cpu")
LAYERS = ["latents", "0", "1", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    train, test = make_voices(folder, 6), make_voices(folder, 4, name="test", first=50)
    return train, test, untrained("wav2vec2", folder / "run", train)


# ------------------------------------------------------------------------------------------------------------ features


def test_features_are_those_of_each_utterance_alone(data, tmp_path):
    train, _, run = data
    manifest, encoder = Manifest.read(train), load_encoder(run)
    found = extract(encoder_source(encoder, HEARS, CPU), manifest, tmp_path, title="", seconds_per_batch=1.0)
    assert found.ids == tuple(u.id for u in manifest)
    assert list(found.layers) == LAYERS
    for row in (0, 7, 17):
        with torch.inference_mode():
            output = encoder(read_waveform(manifest[row], RATE)[None])
        for name, frames in zip(LAYERS, [output.latents, *output.layers], strict=True):
            expected = torch.cat((frames[0].mean(0), frames[0].std(0, correction=0)))
            np.testing.assert_allclose(found.layers[name][row], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_long_utterances_are_heard_in_windows(data, tmp_path, monkeypatch, normalize):
    """Vectors and single frames: log-mel and what convolutions give are those of the whole; attention is near."""
    manifest = Manifest.read(data[0])
    manifest = Manifest.of(manifest.utterances[:3])
    hears = DataConfig(workers=0, normalize=normalize)
    sources = [encoder_source(tiny_encoder("layer"), hears, CPU), log_mel_source(hears, CPU)]
    moments = {u.id: {f"{u.id}#{i}": 0.07 * i for i in range(5)} for u in manifest}
    found = {}
    for name, seconds in (("whole", 60.0), ("windows", 0.15)):
        monkeypatch.setattr(of_features, "SECONDS", seconds)
        monkeypatch.setattr(of_features, "CONTEXT", 0.04)
        numbers = {"title": "", "seconds_per_batch": 0.5}
        pooled = [extract(source, manifest, tmp_path, **numbers) for source in sources]
        single = [extract(source, manifest, tmp_path, **numbers, moments=moments) for source in sources]
        assert single[0].ids == tuple(name for times in moments.values() for name in times)
        found[name] = [parts[0].layers | parts[1].layers for parts in (pooled, single)]
    assert len(list(tmp_path.iterdir())) == 8, "other windows are other features"
    for whole, windows in zip(found["whole"], found["windows"], strict=True):
        for layer in ("latents", "0", "log-mel"):
            np.testing.assert_allclose(windows[layer], whole[layer], atol=1e-4, rtol=1e-4)
        assert not np.allclose(windows["2"], whole["2"], atol=1e-4)
    np.testing.assert_allclose(found["windows"][0]["2"], found["whole"][0]["2"], atol=0.5)


def test_features_are_kept(data, tmp_path, monkeypatch):
    train, _, run = data
    manifest, source = Manifest.read(train), encoder_source(load_encoder(run), HEARS, CPU)
    first = extract(source, manifest, tmp_path, title="", seconds_per_batch=5.0)
    monkeypatch.setattr(of_features, "_compute", None)  # nobody computes again
    again = extract(source, manifest, tmp_path, title="", seconds_per_batch=5.0)
    assert again.ids == first.ids
    assert all(np.array_equal(again.layers[k], v) for k, v in first.layers.items())


def test_other_weights_and_other_hearing_are_other_features():
    torch.manual_seed(0)
    encoder, other = tiny_encoder(), tiny_encoder()
    keys = {
        encoder_source(encoder, HEARS, CPU).key,
        encoder_source(other, HEARS, CPU).key,
        encoder_source(encoder, DataConfig(normalize=True), CPU).key,
        log_mel_source(HEARS, CPU).key,
    }
    assert len(keys) == 4
    other.load_state_dict(encoder.state_dict())
    assert encoder_source(other, HEARS, CPU).key in keys


def test_log_mel_keeps_the_level(data, tmp_path):
    """Ten decibels less are as much less in every bin, as far as sound is above the floor."""
    manifest = Manifest.read(data[0])
    source = log_mel_source(HEARS, CPU)
    waveform = read_waveform(manifest[0], RATE)[None]
    loud, soft = (
        source.pool(Batch(("a",), waveform * gain, torch.tensor([waveform.shape[1]])))["log-mel"][0, :80]
        for gain in (100.0, 100.0 * 10**-0.5)
    )
    assert (loud - soft).median().item() == pytest.approx(np.log(10), rel=0.02)


def test_what_cannot_be_used_is_named(data, tmp_path):
    manifest = Manifest.read(data[0])
    gone = Utterance("gone", str(tmp_path / "gone.wav"), 8000, RATE)
    short = Utterance("short", manifest[0].audio, 20, RATE)
    mixed = Manifest.of([gone, *manifest.utterances[:2], short])
    source = encoder_source(tiny_encoder(), HEARS, CPU)
    found = extract(source, mixed, tmp_path / "cache", title="", seconds_per_batch=5.0)
    assert found.ids == tuple(u.id for u in manifest[:2])
    assert sorted(p.split(":")[0] for p in found.problems)[-1] == "short"
    assert len(found.problems) == 2
    with pytest.raises(of_features.FeatureError, match="not one of 2"):
        extract(source, Manifest.of([gone, short]), tmp_path / "cache", title="", seconds_per_batch=5.0)


# ------------------------------------------------------------------------------------------------------------ the verb


def test_probe_of_speakers(command, data, tmp_path):
    train, test, run = data
    arguments = ["probe", run, "--train", train, "--test", test, "-o", tmp_path, "--random-seeds", 1]
    arguments += ["--labels-per-class", "1,2,all", "--labels-in-all", 9, "--draws", 2]
    status, out, err = command(*arguments)
    assert status == 0, err
    result = read_result(tmp_path / "speaker.json")
    facts = result.facts
    assert (facts["classes"], facts["num_train"], facts["num_test"]) == (3, 18, 12)
    assert facts["chance"] == pytest.approx(1 / 3)
    assert facts["problems"] == []
    assert facts["held_out"] == "utterances"
    whole = {(r.features, r.seed, r.layer, r.classifier) for r in result.rows if r.labels == "all"}
    kinds = ("linear", "hidden")
    expected = {("log-mel", 0, "log-mel", kind) for kind in kinds}
    for features, seed in (("trained", 0), ("random weights", 1)):
        expected |= {(features, seed, layer, kind) for layer in LAYERS for kind in kinds}
        expected |= {(features, seed, "sum", "linear")}
    assert whole == expected
    assert result.at_layer("log-mel", "log-mel", "linear").mean == 1.0  # the voices differ in pitch
    assert set(result.curve("trained")) == {"1 per class", "2 per class", "9 in all"}
    assert len([r for r in result.rows if r.labels == "1 per class"]) == 3 * 2  # sources, draws
    assert "random weights x 1" in out
    assert "always the commonest label: 33.3%" in out
    # the untrained run has the weights of its seed, so the random baseline of that seed is itself
    rows = {(r.features, r.seed, r.layer, r.classifier): r.accuracy for r in result.rows if r.labels == "all"}
    assert all(rows["trained", 0, x, "linear"] == rows["random weights", 1, x, "linear"] for x in LAYERS)

    again = command(*arguments)
    assert again[0] == 0
    assert "already made, left as it is" in again[1]
    assert "holds another probe; choose another --output" in one_sentence(command(*arguments, "--seed", 1))
    assert command(*arguments[:8], "--random-seeds", 0, "--force", "--no-hidden")[0] == 0


def test_probe_of_any_column(command, data, tmp_path):
    train, test, run = data
    for label, name in (("text", "text"), ("mood", "mood"), ("folder:1", "folder-1")):
        arguments = ["--train", train, "--test", test, "-o", tmp_path, "--label", label]
        status, _, err = command("probe", run, *arguments, "--random-seeds", 0, "--no-hidden")
        assert status == 0, err
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["classes"] == 2
        assert {row["features"] for row in record["rows"]} == {"trained", "log-mel"}
    assert len(list((tmp_path / "features").iterdir())) == 4  # two sources, two manifests; the labels share them


def test_other_speakers_in_test_hold_speakers_out(command, data, tmp_path):
    train, test, run = data
    paths = []
    for path, names in ((train, ("anna", "boris")), (test, ("chandra",))):
        paths.append(tmp_path / path.name)
        Manifest.read(path).filter(lambda u, names=names: u.speaker in names).write(paths[-1])
    arguments = ["--train", paths[0], "--test", paths[1], "--label", "mood", "--random-seeds", 0, "--no-hidden"]
    status, out, err = command("probe", run, *arguments, "-o", tmp_path, "--labels-per-class", 2)
    assert status == 0, err
    assert "best on speakers of train held out" in out
    assert read_result(tmp_path / "mood.json").facts["held_out"] == "speakers"


def test_what_is_refused(command, data, tmp_path):
    train, test, run = data

    def sentence(*changes, train=train, test=test):
        common = ["probe", run, "--train", train, "--test", test, "-o", tmp_path / "out", "--random-seeds", 0]
        return one_sentence(command(*common, *changes))

    assert "12 utterances are in the training manifest too" in sentence(train=test)
    assert "has a label 'colour'; choose speaker, text, folder:1, mood" in sentence("--label", "colour")
    assert "write whole numbers from 1 with commas" in sentence("--labels-per-class", "1,two")
    assert "no such manifest" in sentence(test=tmp_path / "none.jsonl")
    assert "device 'tpu9' is not there" in sentence("--device", "tpu9")
    few = tmp_path / "few.jsonl"
    Manifest.read(train).filter(lambda u: u.speaker != "boris").write(few)
    assert "4 test utterances have labels that training does not: boris" in sentence(train=few)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "speaker.json").write_text("{}")
    assert "exists and was not made by a probe" in sentence()


def test_the_layer_is_chosen_by_the_held_out_part():
    def row(layer, held_out, accuracy):
        return Row("trained", 0, layer, "linear", "all", 0, accuracy, 1.0, held_out)

    rows = (row("0", 0.5, 0.9), row("1", 0.7, 0.6), row("2", 0.7, 0.65), row("sum", 0.9, 1.0))
    result = ProbeResult(rows, {"num_test": 100})
    assert result.chosen("trained", "linear", 0).layer == "2"
    assert result.at_chosen("trained", "linear").mean == 0.65
    assert result.at_layer("trained", "3", "linear") is None
