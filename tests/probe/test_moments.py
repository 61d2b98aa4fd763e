"""Frames as examples: which there are, the frame that stands for each, and the probe from the command line."""

import json

import numpy as np
import pytest
import torch
from tiny_run import RATE, one_sentence
from voices import make_voices, untrained

from speechssl.checkpoint import load_checkpoint
from speechssl.data.alignment import Interval
from speechssl.data.manifest import Manifest
from speechssl.extract import load_encoder
from speechssl.probe.features import encoder_source, extract, log_mel_source
from speechssl.probe.labels import LabelError
from speechssl.probe.moments import examples_of
from speechssl.probe.probing import read_result

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifests of three voices, a run with random weights, and labels: the voice in the first and in the last half."""
    folder = tmp_path_factory.mktemp("voices")
    train, test = make_voices(folder, 6), make_voices(folder, 4, name="test", first=50)
    paths = []
    for manifest in (train, test):
        lines = []
        for u in Manifest.read(manifest):
            half = u.seconds / 2
            labels = [
                {"label": u.speaker, "start": 0.0, "end": half},
                {"label": u.speaker, "start": half, "end": u.seconds},
            ]
            lines.append(json.dumps({"id": u.id, "labels": labels}) + "\n")
        paths.append(manifest.with_suffix(".aligned.jsonl"))
        paths[-1].write_text("".join(lines))
    return train, test, untrained("wav2vec2", folder / "run", train), paths


def test_one_example_for_each_label(data):
    manifest = Manifest.read(data[0])
    first, second = manifest[0].id, manifest[1].id
    labels = {first: [Interval(0.0, 0.1, "A"), Interval(0.2, 0.3, "B")], second: [Interval(0.1, 0.1, "C")]}
    labels["elsewhere"] = [Interval(0.0, 1.0, "Z")]
    found = examples_of(manifest, labels, "a", most=10, seed=0)
    assert found.labels == {f"{first}#0": "A", f"{first}#1": "B", f"{second}#0": "C"}
    assert found.moments == {first: {f"{first}#0": 0.05, f"{first}#1": 0.25}, second: {f"{second}#0": 0.1}}
    few = [examples_of(manifest, labels, "a", most=2, seed=seed).labels for seed in range(6)]
    assert all(len(one) == 2 and one.items() <= found.labels.items() for one in few)
    assert len({tuple(one) for one in few}) > 1
    assert set(found.with_labels({"A", "C"}).labels.values()) == {"A", "C"}
    assert set(found.with_labels({"C"}).moments) == {second}
    with pytest.raises(LabelError, match="not one of 18 utterances is in the alignment"):
        examples_of(manifest, {"elsewhere": labels["elsewhere"]}, "a", most=2, seed=0)


def test_the_frame_nearest_to_a_moment(data, tmp_path):
    train, _, run, _ = data
    manifest, encoder, hears = Manifest.read(train), load_encoder(run), load_checkpoint(run).config.data
    moments = {u.id: {f"{u.id}#0": 0.0, f"{u.id}#1": 0.123, f"{u.id}#2": 99.0} for u in manifest.utterances[:3]}
    numbers = {"title": "", "seconds_per_batch": 5.0, "moments": moments}
    found = extract(encoder_source(encoder, hears, CPU), manifest, tmp_path, **numbers)
    assert found.ids == tuple(name for names in moments.values() for name in names)
    for row, u in enumerate(manifest.utterances[:3]):
        whole = encoder.extract(u.audio, layers=2).numpy()
        middles = [(i * encoder.hop + encoder.feature_encoder.receptive_field / 2) / RATE for i in range(len(whole))]
        nearest = min(range(len(middles)), key=lambda i: abs(middles[i] - 0.123))
        expected = whole[[0, nearest, -1]]
        np.testing.assert_allclose(found.layers["2"][3 * row : 3 * row + 3], expected, rtol=1e-3, atol=1e-4)
    again = extract(encoder_source(encoder, hears, CPU), manifest, tmp_path, **numbers)
    assert all(np.array_equal(again.layers[layer], rows) for layer, rows in found.layers.items())
    mel = extract(log_mel_source(hears, CPU), manifest, tmp_path, **numbers)
    assert log_mel_source(hears, CPU).middles(2) == pytest.approx([0.0125, 0.0225])  # windows of 25 ms every 10 ms
    assert mel.ids == found.ids  # the same examples, whatever the frame rate
    assert mel.layers["log-mel"].shape == (9, 80)
    pooled = extract(encoder_source(encoder, hears, CPU), manifest, tmp_path, title="", seconds_per_batch=5.0)
    assert pooled.ids == tuple(u.id for u in manifest)  # another file in the cache


def test_probe_of_frames(command, data, tmp_path):
    train, test, run, (first, second) = data
    arguments = ["probe", run, "--train", train, "--test", test, "-o", tmp_path, "--random-seeds", 0, "--no-hidden"]
    aligned = ["--alignment", first, "--alignment", second]
    status, out, err = command(*arguments, *aligned, "--labels-per-class", 3, "--draws", 1)
    assert status == 0, err
    result = read_result(tmp_path / "aligned.json")
    facts = result.facts
    assert (facts["classes"], facts["num_train"], facts["num_test"]) == (3, 36, 24)
    assert facts["held_out"] == "utterances"
    assert facts["note"] == ""
    assert "24 test frames, 3 classes, 36 training frames" in out
    assert {row.layer for row in result.rows} == {"latents", "0", "1", "2", "sum", "log-mel"}
    assert result.at_layer("log-mel", "log-mel", "linear").mean > 0.8  # the voices differ in pitch
    assert set(result.curve("trained")) == {"3 per class"}
    assert "already made" in command(*arguments, *aligned, "--labels-per-class", 3, "--draws", 1)[1]
    assert "holds another probe" in one_sentence(command(*arguments, *aligned, "--examples", 9))

    second_with_more = tmp_path / "more.jsonl"
    lines = second.read_text().replace("chandra", "dora")
    second_with_more.write_text(lines.replace("cross/dora", "cross/chandra").replace("calm/dora", "calm/chandra"))
    other = ["--alignment", first, "--alignment", second_with_more, "--force"]
    status, out, err = command(*arguments, *other)
    assert status == 0, err
    assert "8 test labels that do not occur in training are left out: dora." in out
    assert read_result(tmp_path / "aligned.json").facts["num_test"] == 16


def test_what_is_refused(command, data, tmp_path):
    train, test, run, (first, _) = data
    arguments = ["probe", run, "--train", train, "--test", test, "-o", tmp_path, "--random-seeds", 0]
    assert "give one of them" in one_sentence(command(*arguments, "--alignment", first, "--label", "text"))
    missing = one_sentence(command(*arguments, "--alignment", first))
    assert missing.startswith(f"{test}: not one of 12 utterances is in the alignment")
    assert "cannot be read" in one_sentence(command(*arguments, "--alignment", tmp_path / "none.jsonl"))
