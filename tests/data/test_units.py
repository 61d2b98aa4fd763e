"""Units by utterance id: what is written is read, crops keep them beside their samples, and bad folders are named."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import RATE, make_corpus

from speechssl.config import DataConfig
from speechssl.data.arrays import growing_array
from speechssl.data.batching import plan_epoch
from speechssl.data.dataset import SpeechDataset, load
from speechssl.data.manifest import Manifest
from speechssl.data.units import Units, UnitsError, UnitsRecord, read_record, write_units

HOP = 320
RECORD = UnitsRecord(hop=HOP, sample_rate=RATE, num_units=1000, source={"kind": "mfcc"})
CROPPED = DataConfig(min_seconds=0.4, max_seconds=0.9, seconds_per_batch=3.0, workers=0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Manifest.read(make_corpus(tmp_path_factory.mktemp("corpus")).manifest)


@pytest.fixture
def units(manifest, tmp_path):
    """Unit u of an utterance is u, so that a unit says where it is from. The last utterance has none."""
    counts = {u.id: (u.num_samples - 400) // HOP + 1 for u in manifest[:-1]}
    write_units(tmp_path / "units", RECORD, ((name, np.arange(count)) for name, count in counts.items()))
    return Units(tmp_path / "units")


# ------------------------------------------------------------------------------------------------------ the folder


def test_what_is_written_is_read(tmp_path):
    rows = {"a": np.array([3, 1, 2]), "empty": np.array([], dtype=np.int64), "ö": np.array([9, 9, 9, 9])}
    write_units(tmp_path / "units", RECORD, rows.items())
    units = Units(tmp_path / "units")
    assert units.record == RECORD
    assert len(units) == 3
    assert units.ids == list(rows)
    assert "a" in units
    assert "b" not in units
    for name, row in rows.items():
        assert units.read(name).tolist() == row.tolist()
    assert units.read("a", 1, 4).tolist() == [1, 2, -1, -1]
    assert units.read("a", 3, 2).tolist() == [-1, -1]
    assert units.read("a", 9, 2).tolist() == [-1, -1]
    assert units.read("ö", 0, 2).tolist() == [9, 9]
    assert units.read("nobody", 0, 2).tolist() == [-1, -1]
    assert units.read("nobody").tolist() == []


def test_two_bytes_are_enough_for_most(tmp_path):
    for count, kind in ((1000, "<i2"), (40_000, "<i4")):
        folder = tmp_path / str(count)
        write_units(folder, replace(RECORD, num_units=count), [("a", np.array([count - 1]))])
        assert np.load(folder / "units.npy").dtype == kind
        assert Units(folder).read("a").tolist() == [count - 1]


def test_a_copy_for_another_process_is_small(units):
    units.read(units.ids[0])
    assert len(pickle.dumps(units)) < 5000
    copy = pickle.loads(pickle.dumps(units))
    assert copy.read(units.ids[0]).tolist() == units.read(units.ids[0]).tolist()


def test_nothing_is_left_of_a_broken_write(tmp_path):
    def rows():
        yield "a", np.arange(3)
        yield "a", np.arange(3)

    with pytest.raises(UnitsError, match="utterance 'a' comes twice"):
        write_units(tmp_path / "units", RECORD, rows())
    assert not (tmp_path / "units").exists()
    write_units(tmp_path / "units", RECORD, [("a", np.arange(3))])
    assert [path.name for path in tmp_path.iterdir()] == ["units"]


def test_bad_folders_are_named(tmp_path):
    folder = tmp_path / "units"
    with pytest.raises(UnitsError, match=r"not a units folder \(no units.json\); make one with `speechssl units`"):
        Units(folder)
    write_units(folder, RECORD, [("a", np.arange(3))])
    good = (folder / "units.json").read_text()
    for change, message in (
        ({"format": 9}, "written by another version"),
        ({"hop": 0}, "must be whole numbers from 1"),
        ({"hop": "x"}, "must be whole numbers from 1"),
        ({"colour": 1}, "cannot be read"),
    ):
        (folder / "units.json").write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(UnitsError, match=message):
            read_record(folder)
    for text in ("", "[]", "{"):
        (folder / "units.json").write_text(text)
        with pytest.raises(UnitsError, match="cannot be read"):
            read_record(folder)
    (folder / "units.json").write_text(good)
    (folder / "index.jsonl").write_text('{"id": "a", "first": 0, "count": 4}\n')
    with pytest.raises(UnitsError, match="asks for more than the 3 units"):
        Units(folder)
    (folder / "index.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UnitsError, match="make the units again"):
        Units(folder)
    (folder / "units.npy").unlink()
    (folder / "index.jsonl").write_text("")
    with pytest.raises(UnitsError, match="make the units again"):
        Units(folder)


@pytest.mark.parametrize("rows", [0, 1, 123_456])
def test_an_array_grows_to_any_size(tmp_path, rows):
    """The header is written again with the number of rows: numpy must leave room for it."""
    with growing_array(tmp_path / "a.npy", np.float16, (2,)) as append:
        for first in range(0, rows, 50_000):
            assert append(np.full((min(50_000, rows - first), 2), 1.5)) == first
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert array.shape == (rows, 2)
    assert array.dtype == np.float16
    assert (array == 1.5).all()


def test_an_array_that_was_not_finished_is_not_there(tmp_path):
    with pytest.raises(AssertionError, match="rows of shape"), growing_array(tmp_path / "b.npy", np.float32) as append:
        append(np.zeros((3, 2)))
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- batches


def test_a_crop_begins_where_its_units_do(manifest, units):
    dataset = SpeechDataset(manifest, CROPPED, seed=3, units=units)
    whole = SpeechDataset(manifest, replace(CROPPED, crop=False, max_seconds=1.5))
    starts = set()
    for epoch in range(3):
        for indices in plan_epoch(dataset.lengths, dataset.budget, seed=3, epoch=epoch, crop=True):
            batch = dataset[epoch, indices].batch
            assert batch.units.shape == (len(indices), -(-batch.waveforms.shape[1] // HOP))
            for row, waveform, index in zip(batch.units, batch.waveforms, indices.tolist(), strict=True):
                if index == len(manifest) - 1:
                    assert row.eq(-1).all()
                    continue
                first = int(row[0])
                starts.add(first)
                full = whole[0, np.array([index])].batch.waveforms[0]
                torch.testing.assert_close(waveform, full[first * HOP : first * HOP + len(waveform)])
                known = row[row >= 0]
                assert known.equal(torch.arange(first, first + len(known)))
                assert len(known) >= (len(waveform) - 400) // HOP + 1, "a unit for every frame"
    assert len(starts) > 5


def test_a_crop_is_a_function_of_seed_epoch_and_id(manifest, units):
    first, again, other = (SpeechDataset(manifest, CROPPED, seed=s, units=units) for s in (3, 3, 4))
    longest = np.array([int(np.argmax([u.num_samples for u in manifest[:-1]])), 6])
    assert first[1, longest].batch.units.equal(again[1, longest].batch.units)
    assert not first[1, longest].batch.units.equal(first[2, longest].batch.units)
    assert not first[1, longest].batch.units.equal(other[1, longest].batch.units)


def test_whole_utterances_are_padded_with_minus_one(manifest, units):
    dataset = SpeechDataset(manifest, replace(CROPPED, crop=False, max_seconds=1.5), units=units)
    batch = dataset[0, np.array([0, 7])].batch
    assert batch.units.shape[1] == -(-batch.waveforms.shape[1] // HOP)
    for row, length in zip(batch.units, batch.lengths.tolist(), strict=True):
        count = (length - 400) // HOP + 1
        assert row[:count].equal(torch.arange(count))
        assert row[count:].eq(-1).all()


def test_without_units_nothing_changes(manifest):
    assert SpeechDataset(manifest, CROPPED)[0, np.array([0, 1])].batch.units is None


def test_readers_in_other_processes_give_the_same(manifest, units):
    dataset = SpeechDataset(manifest, CROPPED, seed=3, units=units)
    requests = [(0, i) for i in plan_epoch(dataset.lengths, dataset.budget, seed=3, epoch=0, crop=True)]
    here, there = (list(load(dataset, requests, workers=workers)) for workers in (0, 1))
    for left, right in zip(here, there, strict=True):
        assert left.batch.units.equal(right.batch.units)


def test_the_sample_rate_must_be_the_same(manifest, tmp_path):
    write_units(tmp_path / "units", replace(RECORD, sample_rate=8000), [("a", np.arange(3))])
    with pytest.raises(UnitsError, match=r"made at 8000 Hz, and data\.sample_rate is 16000"):
        SpeechDataset(manifest, CROPPED, units=Units(tmp_path / "units"))
