"""Series from files to answers: pretraining, surprise, features, probes and classes, all by the command line."""

import json

import numpy as np
import pytest
import torch
from tiny_run import one_sentence, train_here

import speechssl
from speechssl.config import load
from speechssl.data.audio import AudioError
from speechssl.data.corpora import series as corpus_series
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.scan import Rules, scan
from speechssl.surprise import surprise
from speechssl.units.features import shard_path

RATE = 50
SMALL = ["data.sample_rate=50", "data.min_seconds=1", "data.max_seconds=4", "data.seconds_per_batch=20"]
SMALL += ["data.workers=0", "train.updates=2", "train.seconds_per_update=20", "encoder.feature_encoder.channels=2"]


def series(seconds: float, turns: float, seed: int) -> np.ndarray:
    """(2, T): a turning thing, in units of its own."""
    phase = 2 * np.pi * turns * np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal((2, len(phase)))
    return (1000 + 300 * np.stack([np.sin(phase), np.cos(phase)]) + 30 * noise).astype(np.int16)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eight series of two machines."""
    root = tmp_path_factory.mktemp("series")
    for number in range(8):
        kind = ("slow", "fast")[number % 2]
        (root / kind).mkdir(exist_ok=True)
        np.save(root / kind / f"{number}.npy", series(4 + number / 2, (1.0, 4.0)[number % 2], number))
    found, left_out = scan(corpus_series.read(root, sample_rate=RATE, label_level=1), Rules(), jobs=1, progress=False)
    assert not left_out
    found.write(root / "series.jsonl")
    return root / "series.jsonl"


@pytest.fixture(scope="module")
def run(manifest, tmp_path_factory):
    """A run of CPC, of two updates."""
    folder = tmp_path_factory.mktemp("cpc") / "run"
    return train_here(load("cpc-series", [*SMALL, f"data.train={manifest}"]), folder)


@pytest.fixture
def ask(command):
    def answer(*arguments) -> str:
        status, out, err = command(*arguments)
        assert status == 0, err
        return out

    return answer


VIEWS = ["objective.augment.sample_rate=50", "objective.view_seconds=2"]


@pytest.mark.parametrize(("preset", "more"), [("masked-autoencoder-series", []), ("simclr-series", VIEWS)])
def test_presets_train(ask, manifest, tmp_path, preset, more):
    paths = ["--train", manifest, "--valid", manifest, "-o", tmp_path / "run"]
    ask("pretrain", "-p", preset, *paths, *SMALL, *more)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()


CUT = ["--window", 8, "--context", 1]


def manifest_of(path, folder):
    """All of a series but its first two seconds."""
    Manifest.of([Utterance("long", str(path), 1400, RATE, start=100, channels=2)]).write(folder / "long.jsonl")
    return folder / "long.jsonl"


def test_surprise_and_features_of_files_and_arrays(run, ask, tmp_path):
    array = series(30, 2.0, seed=9)
    path = tmp_path / "long.npy"
    np.save(path, array)
    whole, windows = (surprise(run, path, window=seconds, pool=64) for seconds in (60.0, 5.0))
    np.testing.assert_allclose(whole.scores, windows.scores, atol=1e-2)
    assert len(whole.scores) == 1500 // 8 - 1
    assert whole.times[0] == pytest.approx((8 + 4) / RATE)
    ask("surprise", path, "--model", run)
    assert len((tmp_path / "long.npy.surprise.tsv").read_text().splitlines()) == 1 + len(whole.scores)
    encoder = speechssl.load_encoder(run)
    expected = encoder.extract(str(path))
    assert expected.shape == (1500 // 8, 64)
    torch.testing.assert_close(encoder.extract(array), expected)
    torch.testing.assert_close(encoder.extract(torch.from_numpy(array)), expected)
    ask("features", manifest_of(path, tmp_path), "-o", tmp_path / "features", "--checkpoint", run, "--layer", 0, *CUT)
    kept = np.load(shard_path(tmp_path / "features", 0))
    np.testing.assert_allclose(
        kept, encoder.extract(array[:, 100:], layers=0), atol=2e-3, rtol=2e-3
    )  # of half precision
    # Layer 0 sees no other frame, so that windows change nothing.
    latents = encoder.extract([array, array[:, :600]], layers=0, window=8.0, context=1.0)
    torch.testing.assert_close(latents[0], encoder.extract(array, layers=0), atol=1e-4, rtol=1e-4)


def test_labels_by_probe_and_by_fine_tuning(run, manifest, ask, tmp_path):
    utterances = Manifest.read(manifest).utterances
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    Manifest.of(utterances[::2]).write(train)
    Manifest.of(utterances[1::2]).write(test)
    numbers = ["--label", "label", "--random-seeds", 1, "--no-hidden", "-o", tmp_path / "probe"]
    out = ask("probe", run, "--train", train, "--test", test, *numbers)
    assert "log-mel" not in out
    rows = json.loads((tmp_path / "probe" / "label.json").read_text())["rows"]
    assert {row["features"] for row in rows} == {"trained", "random weights", "channels"}
    data = ["--train", train, "--valid", test, "-o", tmp_path / "classes", "data.label=label", *SMALL[1:-1]]
    ask("finetune", "-p", "speaker-softmax-tiny", "--init", run, *data)
    ask("speaker", "identify", tmp_path / "classes", "--test", test, "-o", tmp_path / "answers")
    rows = (tmp_path / "answers" / "answers.tsv").read_text().splitlines()[1:]
    assert {row.split("\t")[1] for row in rows} == {"slow", "fast"}
    assert len(rows) == 4


def test_what_cannot_be_done_with_series_is_one_sentence(run, manifest, command, corpus, valid, tmp_path):
    def said(*arguments) -> str:
        return one_sentence(command(*arguments))

    out = ["-o", tmp_path / "x"]
    train = ["--train", manifest, *out]
    assert "sample_rate=50" in said("pretrain", "-p", "cpc-series", *train, *SMALL[1:])
    assert "feature_encoder.channels=2" in said("pretrain", "-p", "cpc-series", *train, *SMALL[:-1])
    assert "feature_encoder.channels=2" in said("pretrain", "-p", "autoencoder-tiny", *train, *SMALL[:-1])
    assert "these learn from several: cpc, " in said("pretrain", "-p", "autoencoder-tiny", *train, *SMALL)
    assert "encoder reads 2" in said("pretrain", "-p", "cpc-series", "--train", corpus.manifest, *out, *SMALL)
    assert "encoder reads 2" in said("probe", run, "--train", corpus.manifest, "--test", valid, *out)
    assert "encoder reads 2" in said("surprise", corpus.utterances[0].audio, "--model", run)
    np.save(tmp_path / "one.npy", np.ones((1, 500)))
    assert "encoder reads 2" in said("surprise", tmp_path / "one.npy", "--model", run)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "one.npy").read_bytes()[:-9])
    assert "truncated" in said("surprise", tmp_path / "cut.npy", "--model", run)
    for kind in ("hf", "torchaudio", "torch-export"):
        assert "2 channels" in said("export", run, tmp_path / kind, "--format", kind)
    assert "several channels" in said("bench", "cpc-series")
    encoder = speechssl.load_encoder(run)
    holes = series(4, 1.0, seed=0).astype(np.float64)
    holes[1, 20] = np.nan
    for array, why in (
        (np.ones(500), r"\(channels, time\)"),
        (np.ones((3, 500)), "encoder reads 2"),
        (np.ones((2, 500), complex), "complex"),
        (holes, "not numbers"),
    ):
        with pytest.raises(AudioError, match=why):
            encoder.extract(array)
    with pytest.raises(AudioError, match="100 Hz"):
        encoder.extract(np.ones((2, 500)), sample_rate=100)
    assert len(Manifest.read(manifest)) == 8
