"""K-means in pieces: finds clusters that are there, is repeatable, and assigns by the plain formula."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from speechssl.data.arrays import growing_array
from speechssl.errors import UserError
from speechssl.units import kmeans
from speechssl.units.features import FeaturesRecord, claim, shard_path, write_index
from speechssl.units.kmeans import KMeans, KMeansConfig, KMeansError, fit, fit_to_file, open_features, read_kmeans

pytest.importorskip("sklearn")
CENTRES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], dtype=np.float32)
RECORD = FeaturesRecord(kind="mfcc", hop=320, sample_rate=16_000, dim=2, num_shards=2, manifest="m")
CONFIG = KMeansConfig(num_units=4, hours=1.0, batch_frames=50, starts=2, seed=3)


def make_features(folder, utterances=20, seed=0, record=RECORD):
    """Noise around CENTRES in two shards; returns all frames in order."""
    generator = np.random.default_rng(seed)
    claim(folder, record)
    everything = []
    for number in range(record.num_shards):
        rows = []
        with growing_array(shard_path(folder, number), np.float16, (2,)) as append:
            for i in range(utterances):
                count = int(generator.integers(1, 30))
                frames = CENTRES[generator.integers(0, 4, count)] + 0.3 * generator.standard_normal((count, 2))
                rows.append((f"{folder.name}-{number}-{i}", append(frames), count))
                everything.append(frames.astype(np.float16).astype(np.float32))
        write_index(folder, number, rows)
    return np.concatenate(everything)


def test_clusters_that_are_there_are_found(tmp_path):
    frames = make_features(tmp_path / "a")
    result = fit([tmp_path / "a"], CONFIG)
    nearest = torch.cdist(torch.from_numpy(CENTRES), result.centroids).min(1)
    assert nearest.values.max() < 0.2
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3]
    assert result.made_with["frames"] == len(frames)
    assert result.made_with["mean_squared_distance"] == pytest.approx(2 * 0.3**2, rel=0.15)
    assert result.source == RECORD.source()


def test_it_is_repeatable_and_seeded(tmp_path):
    make_features(tmp_path / "a")
    first, again = fit([tmp_path / "a"], CONFIG), fit([tmp_path / "a"], CONFIG)
    other = fit([tmp_path / "a"], replace(CONFIG, seed=4))
    assert first.centroids.equal(again.centroids)
    assert not first.centroids.equal(other.centroids)


def test_a_subset_of_the_hours(tmp_path):
    frames = make_features(tmp_path / "a")
    seconds = 100 * 320 / 16_000
    result = fit([tmp_path / "a"], replace(CONFIG, hours=seconds / 3600))
    assert 100 <= result.made_with["frames"] < 130 < len(frames)


def test_every_frame_comes_once_a_pass_in_even_pieces(tmp_path):
    frames = make_features(tmp_path / "a")
    sets = open_features([tmp_path / "a"])
    generator = np.random.default_rng(0)
    subset = kmeans._subset(sets, 1.0, generator)
    pieces = list(kmeans._batches(sets, subset, 70, generator))
    assert {len(piece) for piece in pieces[:-1]} == {70}
    together = np.concatenate(pieces)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, frames.tolist()))
    assert not np.array_equal(together, frames), "in another order"


def test_assignment_by_the_plain_formula():
    model = KMeans(torch.randn(9, 5), {}, {})
    frames = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    distances = ((frames[:, None] - model.centroids.numpy()[None]) ** 2).sum(-1)
    assert model.assign(frames).tolist() == distances.argmin(1).tolist()
    assert model.assign(frames[:0]).shape == (0,)


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_made_once(tmp_path, monkeypatch, capsys):
    make_features(tmp_path / "a")
    path = tmp_path / "kmeans.safetensors"
    made = fit_to_file([tmp_path / "a"], path, CONFIG)
    read = read_kmeans(path)
    assert read.centroids.equal(made.centroids)
    assert (read.source, read.made_with) == (made.source, json.loads(json.dumps(made.made_with)))
    monkeypatch.setattr(kmeans, "fit", None)
    again = fit_to_file([tmp_path / "a"], path, CONFIG)
    assert again.centroids.equal(made.centroids)
    assert "made before with these settings" in capsys.readouterr().out
    with pytest.raises(KMeansError, match=r"made otherwise \(seed differs\)"):
        fit_to_file([tmp_path / "a"], path, replace(CONFIG, seed=9))
    make_features(tmp_path / "b", record=replace(RECORD, hop=160))
    with pytest.raises(KMeansError, match=r"made otherwise \(the kind of features differs\)"):
        fit_to_file([tmp_path / "b"], path, CONFIG)


def test_it_overwrites_nothing_else(tmp_path):
    make_features(tmp_path / "a")
    path = tmp_path / "notes.safetensors"
    path.write_text("mine")
    with pytest.raises(KMeansError, match="cannot be read"):
        fit_to_file([tmp_path / "a"], path, CONFIG)
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(1)}, path)
    with pytest.raises(KMeansError, match="was not made by `speechssl kmeans`"):
        fit_to_file([tmp_path / "a"], path, CONFIG)
    with pytest.raises(KMeansError, match="no such file"):
        read_kmeans(tmp_path / "nothing")


def test_bad_input_is_named(tmp_path):
    make_features(tmp_path / "a", utterances=1)
    with pytest.raises(KMeansError, match="frames cannot make 400 clusters; give more speech"):
        fit([tmp_path / "a"], replace(CONFIG, num_units=400))
    make_features(tmp_path / "b", record=replace(RECORD, hop=160))
    with pytest.raises(KMeansError, match=r"not of the kind of .*a \(hop differs\)"):
        open_features([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="not a features folder"):
        open_features([tmp_path / "c"])


def test_what_the_settings_are():
    assert asdict(KMeansConfig()) | {"hours": 0.0} == {
        "num_units": 500,
        "hours": 0.0,
        "batch_frames": 10_000,
        "starts": 20,
        "epochs": 100,
        "tolerance": 1e-3,
        "seed": 1,
    }
