"""Features of a manifest: MFCC by their definition, layers by the encoder itself, shards that are made once."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import RATE, speech, tiny_config, train_here

from speechssl.data.audio import read_waveform
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.windows import WindowError
from speechssl.device import DeviceError
from speechssl.errors import UserError
from speechssl.extract import load_encoder
from speechssl.nn.frontend import WaveformConfig
from speechssl.nn.lengths import conv_lengths
from speechssl.units import extract
from speechssl.units.extract import extract_layer, extract_mfcc, mfcc, normalize_cepstra
from speechssl.units.features import (
    Features,
    FeaturesError,
    FeaturesRecord,
    claim,
    manifest_hash,
    read_record,
    shards_of,
)

SHARDS = {"shard_hours": 2 / 3600, "jobs": 1}  # two seconds
NUM_SHARDS = 6  # of `corpus`


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    config = tiny_config("wav2vec2", corpus, train={"updates": 1})
    return train_here(config, tmp_path_factory.mktemp("runs") / "run")


# ---------------------------------------------------------------------------------------------------------------- MFCC


def test_deltas_by_loops():
    """Deltas: sum of n (c[t + n] - c[t - n]) over n = 1, 2, divided by 10; the ends are repeated."""
    frames = mfcc(torch.from_numpy(speech(0.3)), RATE)
    assert frames.shape == ((4800 - 400) // 160 + 1, 39)

    def deltas(rows):
        padded = torch.cat((rows[:1], rows[:1], rows, rows[-1:], rows[-1:]))
        return sum(n * (padded[2 + n : len(rows) + 2 + n] - padded[2 - n : len(rows) + 2 - n]) for n in (1, 2)) / 10

    torch.testing.assert_close(frames[:, 13:26], deltas(frames[:, :13]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(frames[:, 26:], deltas(frames[:, 13:26]), atol=1e-4, rtol=1e-4)


def test_a_frame_begins_every_ten_milliseconds():
    waveform = torch.from_numpy(speech(0.5))
    static = slice(0, 13)
    later = mfcc(waveform[1600:], RATE)
    torch.testing.assert_close(mfcc(waveform, RATE)[10:, static], later[:, static], atol=1e-4, rtol=1e-4)
    assert mfcc(waveform[:399], RATE).shape == (0, 39)
    assert mfcc(waveform[:400], RATE).shape == (1, 39)


@pytest.mark.parametrize(
    ("hop_ms", "jobs"), [(10, 1), (20, 1), pytest.param(40, 2, marks=pytest.mark.slow, id="two processes")]
)
def test_mfcc_of_a_manifest(corpus, tmp_path, hop_ms, jobs):
    extract_mfcc(corpus.manifest, tmp_path / "mfcc", hop_ms=hop_ms, shard_hours=2 / 3600, jobs=jobs)
    features = Features(tmp_path / "mfcc")
    assert features.record.hop == 16 * hop_ms
    assert features.record.num_shards == NUM_SHARDS
    assert [name for name, _ in features.utterances()] == [u.id for u in corpus.utterances]
    for utterance, (_, frames) in zip(corpus.utterances, features.utterances(), strict=True):
        expected = mfcc(read_waveform(utterance, RATE), RATE)[:: hop_ms // 10]
        assert frames.dtype == np.float32
        np.testing.assert_allclose(frames, expected.numpy(), atol=1e-3)
    assert features.num_frames == sum(len(frames) for _, frames in features.utterances())
    assert len(list((tmp_path / "mfcc").iterdir())) == 1 + 2 * NUM_SHARDS, "nothing half-made is left"


def test_cmvn_by_hand(corpus, tmp_path):
    extract_mfcc(corpus.manifest, tmp_path / "plain", **SHARDS)
    extract_mfcc(corpus.manifest, tmp_path / "cmvn", cmvn=True, **SHARDS)
    plain, normalized = Features(tmp_path / "plain"), Features(tmp_path / "cmvn")
    assert normalized.index == plain.index
    for (_, frames), (_, before) in zip(normalized.utterances(), plain.utterances(), strict=True):
        assert frames.dtype == np.float32
        for channel in range(39):
            mean = sum(before[:, channel]) / len(before)
            variance = sum((before[:, channel] - mean) ** 2) / len(before)
            np.testing.assert_allclose(frames[:, channel], (before[:, channel] - mean) / variance**0.5, atol=1e-3)
    assert normalized.record.source() == plain.record.source() | {"cmvn": True}
    with pytest.raises(FeaturesError, match="cmvn is False there and True here"):
        extract_mfcc(corpus.manifest, tmp_path / "plain", cmvn=True, **SHARDS)


def test_cmvn_hears_neither_level_nor_colour():
    rng = np.random.default_rng(1)
    frames, gain, offset = (rng.normal(size=size).astype(np.float32) for size in ((50, 39), 39, 39))
    expected = normalize_cepstra(frames)
    np.testing.assert_allclose(normalize_cepstra(frames * np.exp(gain) + offset), expected, atol=1e-4)
    frames[:, 3] = 7.0
    assert not normalize_cepstra(frames)[:, 3].any(), "what never changes"
    np.testing.assert_array_equal(normalize_cepstra(frames[:1]), np.zeros((1, 39), np.float32))


def test_units_come_as_often_as_frames(corpus):
    """The waveform convolutions of wav2vec 2.0 and MFCC every 20 ms: as many, and each begins where the other does."""
    published = WaveformConfig()
    for utterance in corpus.utterances:
        frames = mfcc(read_waveform(utterance, RATE), RATE)[::2]
        assert len(frames) == conv_lengths(utterance.num_samples, published.kernels, published.strides)


@pytest.mark.parametrize("cmvn", [False, True])
def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys, cmvn):
    good = Utterance("good", str(tmp_path / "good.wav"), RATE, RATE)
    soundfile.write(good.audio, speech(1.0), RATE)
    gone = replace(good, id="gone", audio=str(tmp_path / "gone.wav"))
    short = replace(good, id="short", num_samples=200)
    Manifest.of([gone, good, short]).write(tmp_path / "m.jsonl")
    extract_mfcc(tmp_path / "m.jsonl", tmp_path / "mfcc", cmvn=cmvn, **SHARDS)
    out = capsys.readouterr().out
    assert "2 utterances have no features" in out
    assert "gone.wav" in out
    assert "short: too short for one frame (0.013 s)" in out
    assert [name for name, _ in Features(tmp_path / "mfcc").utterances()] == ["good"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"hop_ms": 15}, "--hop-ms must be a multiple of it, not 15"),
        ({"sample_rate": 22_050}, "10 and 25 ms are no whole samples at 22050 Hz"),
    ],
)
def test_numbers_that_cannot_be(corpus, tmp_path, numbers, message):
    with pytest.raises(FeaturesError, match=message):
        extract_mfcc(corpus.manifest, tmp_path / "mfcc", **SHARDS, **numbers)
    assert not (tmp_path / "mfcc").exists()


# -------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_are_those_of_the_encoder(corpus, checkpoint, tmp_path, layer):
    extract_layer(checkpoint, layer, corpus.manifest, tmp_path / "layer", shard_hours=1.0, jobs=1, device="cpu")
    features = Features(tmp_path / "layer")
    assert (features.record.kind, features.record.layer, features.record.hop) == ("layer", layer, 80)
    assert features.record.layers.startswith("0 = input of the context network's first block")
    encoder = load_encoder(checkpoint)
    utterances = {u.id: u for u in corpus.utterances}
    assert sorted(name for name, _ in features.utterances()) == sorted(utterances)
    for name, frames in features.utterances():
        with torch.no_grad():
            expected = encoder(read_waveform(utterances[name], RATE)[None]).layers[layer][0]
        np.testing.assert_allclose(frames, expected.numpy(), atol=5e-3)


def test_there_is_no_such_layer(corpus, checkpoint, tmp_path):
    for layer in (-1, 3):
        with pytest.raises(FeaturesError, match=f"has layers 0 to 2, and no layer {layer}"):
            extract_layer(checkpoint, layer, corpus.manifest, tmp_path / "layer", **SHARDS)
    with pytest.raises(DeviceError, match="device 'tpu' is not there"):
        extract_layer(checkpoint, 1, corpus.manifest, tmp_path / "layer", **SHARDS, device="tpu")


def test_too_short_for_the_encoder(corpus, checkpoint, tmp_path, capsys):
    short = replace(corpus.utterances[0], id="short", num_samples=50)
    Manifest.of([short]).write(tmp_path / "short.jsonl")
    extract_layer(checkpoint, 1, tmp_path / "short.jsonl", tmp_path / "layer", **SHARDS, device="cpu")
    assert "short: too short for one frame" in capsys.readouterr().out
    assert len(Features(tmp_path / "layer")) == 0


# ---------------------------------------------------------------------------------------------------- long recordings


@pytest.mark.parametrize(("hop_ms", "cmvn"), [(10, False), (30, False), (10, True)])
def test_mfcc_of_long_recordings_are_those_of_the_whole(corpus, tmp_path, monkeypatch, hop_ms, cmvn):
    extract_mfcc(corpus.manifest, tmp_path / "whole", hop_ms=hop_ms, cmvn=cmvn, **SHARDS)
    monkeypatch.setattr(extract, "SECONDS", 0.3)
    extract_mfcc(corpus.manifest, tmp_path / "windows", hop_ms=hop_ms, cmvn=cmvn, **SHARDS)
    whole, windows = Features(tmp_path / "whole"), Features(tmp_path / "windows")
    assert windows.index == whole.index
    for (_, mine), (_, other) in zip(windows.utterances(), whole.utterances(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_layers_in_windows_are_those_that_extract_gives(corpus, checkpoint, tmp_path, jobs):
    """What is short is read whole."""
    numbers = {"window": 0.8, "context": 0.2}
    extract_layer(checkpoint, 2, corpus.manifest, tmp_path / "cut", shard_hours=1.0, jobs=jobs, device="cpu", **numbers)
    features, encoder = Features(tmp_path / "cut"), load_encoder(checkpoint)
    assert (features.record.window, features.record.context) == (0.8, 0.2)
    assert sorted(name for name, *_ in features.index) == sorted(u.id for u in corpus.utterances)
    audio = {u.id: u.audio for u in corpus.utterances}
    for name, frames in features.utterances():
        np.testing.assert_allclose(frames, encoder.extract(audio[name], 2, **numbers).numpy(), atol=5e-3)
    with pytest.raises(FeaturesError, match=r"holds other features \(window is 0.8 there and 0.7 here\)"):
        extract_layer(
            checkpoint,
            2,
            corpus.manifest,
            tmp_path / "cut",
            shard_hours=1.0,
            jobs=1,
            device="cpu",
            window=0.7,
            context=0.2,
        )
    with pytest.raises(WindowError, match=r"windows of 0.3 s leave nothing between 0.2 s"):
        extract_layer(checkpoint, 2, corpus.manifest, tmp_path / "no", **SHARDS, device="cpu", window=0.3, context=0.2)


def test_what_breaks_off_in_a_later_window_has_no_features(corpus, checkpoint, tmp_path, capsys):
    whole = corpus.utterances[7]
    claimed = replace(whole, id="truncated", num_samples=whole.num_samples + 800)
    Manifest.of([claimed, whole]).write(tmp_path / "m.jsonl")
    numbers = {"window": 0.6, "context": 0.1, "shard_hours": 1.0, "jobs": 1, "device": "cpu"}
    extract_layer(checkpoint, 1, tmp_path / "m.jsonl", tmp_path / "layer", **numbers)
    assert "1 utterances have no features" in capsys.readouterr().out
    features = Features(tmp_path / "layer")
    assert [name for name, *_ in features.index] == [whole.id]
    expected = load_encoder(checkpoint).extract(whole.audio, 1, window=0.6, context=0.1)
    np.testing.assert_allclose(features.read(0), expected.numpy(), atol=5e-3)


def test_half_precision_is_near_and_recorded(corpus, checkpoint, tmp_path):
    for precision in ("fp32", "bf16"):
        extract_layer(checkpoint, 1, corpus.manifest, tmp_path / precision, **SHARDS, device="cpu", precision=precision)
    single, half = Features(tmp_path / "fp32"), Features(tmp_path / "bf16")
    assert half.record.precision == "bf16"
    for (_, mine), (_, other) in zip(half.utterances(), single.utterances(), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.15, rtol=0.1)
        assert not np.array_equal(mine, other)


# ------------------------------------------------------------------------------------------------- stopped and resumed


def test_finished_shards_are_not_made_again(corpus, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mfcc"
    extract_mfcc(corpus.manifest, folder, **SHARDS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "shard-00001.jsonl").unlink()  # stopped between the array and its index
    (folder / "shard-00003.npy").unlink()
    with pytest.raises(FeaturesError, match=r"2 of 6 shards are not finished; run the same `speechssl features` again"):
        Features(folder)
    made = []
    one = extract._make_shard
    monkeypatch.setattr(extract, "_make_shard", lambda *args: made.append(args[-1][0]) or one(*args))
    extract_mfcc(corpus.manifest, folder, **SHARDS)
    assert made == [1, 3]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    extract_mfcc(corpus.manifest, folder, **SHARDS)
    assert made == [1, 3]
    assert "made before with these settings" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(corpus, tmp_path):
    folder = tmp_path / "mfcc"
    extract_mfcc(corpus.manifest, folder, **SHARDS)
    with pytest.raises(FeaturesError, match=r"holds other features \(hop is 320 there and 160 here\)"):
        extract_mfcc(corpus.manifest, folder, hop_ms=10, **SHARDS)
    Manifest.of(corpus.utterances[:3]).write(tmp_path / "less.jsonl")
    with pytest.raises(FeaturesError, match="holds other features"):
        extract_mfcc(tmp_path / "less.jsonl", folder, **SHARDS)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FeaturesError, match="holds files, and no features of speechssl"):
        extract_mfcc(corpus.manifest, mine, **SHARDS)


def test_a_damaged_folder_is_named(corpus, tmp_path):
    folder = tmp_path / "mfcc"
    extract_mfcc(corpus.manifest, folder, **SHARDS)
    (folder / "shard-00000.npy").write_bytes(b"")
    with pytest.raises(FeaturesError, match=r"shard-00000.npy: cannot be read"):
        Features(folder).read(0)
    np.save(folder / "shard-00000.npy", np.zeros((1, 39), np.float32))
    with pytest.raises(FeaturesError, match="does not fit its index"):
        Features(folder).read(0)
    (folder / "shard-00000.jsonl").write_text("{}")
    with pytest.raises(FeaturesError, match=r"shard-00000.jsonl: cannot be read"):
        Features(folder)
    (folder / "features.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(FeaturesError, match="another version"):
        read_record(folder)
    (folder / "features.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        read_record(folder)


def test_shards_are_neighbours(corpus):
    manifest = Manifest.of(corpus.utterances)
    shards = shards_of(manifest, 2 / 3600)
    assert [u for shard in shards for u in shard] == list(manifest)
    assert all(shard.hours * 3600 <= 2 for shard in shards)
    assert len(shards_of(manifest, 1e-9)) == len(manifest), "one that is longer has a shard of its own"
    assert len(shards_of(manifest, 1.0)) == 1


def test_hash_and_claim(corpus, tmp_path):
    manifest = Manifest.of(corpus.utterances)
    moved = Manifest.of(replace(u, audio=f"/elsewhere/{u.id}") for u in manifest)
    assert manifest_hash(moved) == manifest_hash(manifest)
    assert manifest_hash(Manifest.of(manifest[1:])) != manifest_hash(manifest)
    record = FeaturesRecord(kind="layer", hop=80, sample_rate=RATE, dim=4, num_shards=1, manifest="m", checkpoint="a")
    claim(tmp_path / "f", record)
    claim(tmp_path / "f", replace(record, checkpoint="moved/a"))
    assert read_record(tmp_path / "f") == record
    assert asdict(record).keys() >= record.source().keys()
