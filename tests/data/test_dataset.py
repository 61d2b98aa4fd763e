"""Crops without padding, whole utterances with it, and every reason to refuse a manifest."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny_run import RATE, speech

import speechssl.data.dataset as dataset_module
from speechssl.config import DataConfig
from speechssl.data.batching import crop_start, plan_epoch
from speechssl.data.dataset import SpeechDataset, load, padded_batches, reader_processes
from speechssl.data.manifest import Manifest, ManifestError, Utterance
from speechssl.data.tokens import Tokenizer

CROPPED = DataConfig(min_seconds=0.4, max_seconds=0.9, seconds_per_batch=3.0, workers=0)
WHOLE = replace(CROPPED, crop=False, max_seconds=1.5)


@pytest.fixture(scope="module")
def manifest(corpus):
    return Manifest.read(corpus.manifest)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.read(corpus.vocabulary)


def samples(utterance) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(utterance.audio, dtype="float32")[0])


# ------------------------------------------------------------------------------------------------------------- crops


def test_cropped_batches_have_no_padding(manifest):
    dataset = SpeechDataset(manifest, CROPPED, seed=3)
    for indices in plan_epoch(dataset.lengths, dataset.budget, seed=3, epoch=0, crop=True):
        batch = dataset[0, indices].batch
        size = min(manifest[i].num_samples for i in indices)
        assert batch.waveforms.shape == (len(indices), min(size, round(0.9 * RATE)))
        assert batch.lengths.tolist() == [batch.waveforms.shape[1]] * len(indices)
        assert not batch.padded
        assert batch.lengths_or_none is None
        assert batch.tokens is None


def test_a_crop_depends_on_seed_epoch_and_id_alone(manifest):
    shuffled = Manifest.of(reversed(list(manifest)))
    size = round(0.9 * RATE)
    longest = next(i for i, u in enumerate(manifest) if u.num_samples == round(1.2 * RATE))
    crops = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        batch = SpeechDataset(manifest, CROPPED, seed=seed)[epoch, np.array([longest, 6])].batch
        start = crop_start(seed, epoch, manifest[longest].id, manifest[longest].num_samples - size)
        torch.testing.assert_close(batch.waveforms[0], samples(manifest[longest])[start : start + size])
        other = SpeechDataset(shuffled, CROPPED, seed=seed)
        place = len(manifest) - 1 - longest
        torch.testing.assert_close(other[epoch, np.array([place])].batch.waveforms[0], batch.waveforms[0])
        crops.add(start)
    assert len(crops) == 3


def test_readers_in_other_processes_give_the_same(manifest):
    dataset = SpeechDataset(manifest, CROPPED, seed=3)
    requests = [(e, i) for e in (0, 1) for i in plan_epoch(dataset.lengths, dataset.budget, seed=3, epoch=e, crop=True)]
    here, there = (list(load(dataset, requests, workers=workers)) for workers in (0, 1))
    assert [loaded.batch.ids for loaded in here] == [loaded.batch.ids for loaded in there]
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left.batch.waveforms, right.batch.waveforms)


@pytest.mark.parametrize(
    ("cores", "threads", "gpu", "local_world", "readers"),
    [
        (2, 2, False, "1", 0),  # both cores compute
        (2, 1, False, "1", 1),
        (1, 1, False, "1", 0),
        (8, 8, False, "1", 1),
        (8, 4, False, "4", 0),  # two cores for each of four processes
        (2, 2, True, "1", 1),
        (64, 32, True, "1", 4),
        (64, 32, True, "16", 3),
        (4, 1, True, "8", 1),
    ],
)
def test_as_many_readers_as_suit_the_machine(monkeypatch, cores, threads, gpu, local_world, readers):
    monkeypatch.setattr(dataset_module, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world)
    assert reader_processes() == readers
    assert [reader_processes(asked) for asked in (0, 7)] == [0, 7]


def test_readers_are_chosen_where_nobody_says(manifest, monkeypatch):
    dataset, asked = SpeechDataset(manifest, CROPPED, seed=3), []
    requests = [(0, i) for i in plan_epoch(dataset.lengths, dataset.budget, seed=3, epoch=0, crop=True)]
    monkeypatch.setattr(dataset_module, "reader_processes", lambda workers: asked.append(workers) or 1)
    assert len(list(load(dataset, requests, workers=None))) == len(requests)
    assert asked == [None]


# ------------------------------------------------------------------------------------------------- whole utterances


def test_padded_batches_hold_whole_utterances(manifest, tokenizer):
    dataset = SpeechDataset(manifest, WHOLE, tokenizer=tokenizer)
    indices = np.array([0, 5, 8])
    batch = dataset[0, indices].batch
    assert batch.padded
    assert batch.lengths.tolist() == [manifest[i].num_samples for i in indices]
    for row, length, index in zip(batch.waveforms, batch.lengths, indices, strict=True):
        torch.testing.assert_close(row[:length], samples(manifest[index]))
        assert not row[length:].any()
    for row, length, index in zip(batch.tokens, batch.token_lengths, indices, strict=True):
        assert tokenizer.decode(row[:length].tolist()) == manifest[index].text.upper()
        assert not row[length:].any()
    assert batch.speakers.tolist() == [0, 1, 0]
    assert not dataset[0, np.array([3])].batch.padded


def test_normalised_over_the_utterance_not_its_padding(manifest):
    batch = SpeechDataset(manifest, replace(WHOLE, normalize=True))[0, np.array([0, 7])].batch
    for row, length in zip(batch.waveforms, batch.lengths, strict=True):
        assert abs(float(row[:length].mean())) < 1e-4
        assert float(row[:length].var()) == pytest.approx(1.0, abs=0.01)
        assert not row[length:].any()


def test_padded_batches_leave_nothing_out(manifest):
    config = replace(CROPPED, min_seconds=0.8)  # what training would leave out is measured all the same
    seen = [id_ for loaded in padded_batches(manifest, config, seconds_per_batch=2.0) for id_ in loaded.batch.ids]
    assert sorted(seen) == sorted(u.id for u in manifest)


def test_an_empty_transcript_has_no_tokens(manifest, tokenizer):
    silent = Manifest.of([replace(manifest[0], text=""), manifest[1]])
    batch = SpeechDataset(silent, WHOLE, tokenizer=tokenizer)[0, np.array([0, 1])].batch
    assert batch.tokens.dtype == torch.long
    assert batch.token_lengths.tolist() == [0, len(manifest[1].text)]


# --------------------------------------------------------------------------------------------------------- left out


def test_too_short_and_too_long_are_counted(manifest):
    assert SpeechDataset(manifest, CROPPED).left_out == 0  # longer ones are cropped
    assert SpeechDataset(manifest, replace(CROPPED, min_seconds=0.6)).left_out == 2
    dataset = SpeechDataset(manifest, replace(CROPPED, crop=False))
    assert dataset.left_out == 4
    assert max(u.seconds for u in dataset.utterances) == 0.9
    with pytest.raises(ManifestError, match=r"none of 10 utterances lasts 0\.01 to 0\.02 s"):
        SpeechDataset(manifest, replace(WHOLE, min_seconds=0.01, max_seconds=0.02))


def test_leave_out_keeps_rows_together(manifest, tokenizer):
    dataset = SpeechDataset(manifest, WHOLE, tokenizer=tokenizer)
    dataset.leave_out([0, 2, 9])
    assert [u.id for u in dataset.utterances] == [f"train-{i}" for i in (1, 3, 4, 5, 6, 7, 8)]
    assert dataset.left_out == 3
    batch = dataset[0, np.arange(len(dataset))].batch
    assert batch.lengths.tolist() == dataset.lengths.tolist() == [u.num_samples for u in dataset.utterances]
    assert batch.token_lengths.tolist() == [len(u.text) for u in dataset.utterances]
    assert batch.speakers.tolist() == [int(u.speaker[-1]) for u in dataset.utterances]
    with pytest.raises(ManifestError, match="none of 7 utterances can be used"):
        dataset.leave_out(list(range(7)))


def test_transcripts_must_be_there_and_spell(manifest, tokenizer):
    broken = Manifest.of([replace(manifest[0], text=None), replace(manifest[1], text="zwölf 7"), *manifest[2:]])
    with pytest.raises(ManifestError) as caught:
        SpeechDataset(broken, WHOLE, tokenizer=tokenizer)
    assert "train-0 has no transcript; train-1 has letters outside the vocabulary: 7 L Z Ö; " in str(caught.value)
    SpeechDataset(broken, WHOLE)  # unlabelled training does not care
    many = Manifest.of(replace(u, text=None) for u in manifest)
    with pytest.raises(ManifestError, match="train-2 has no transcript, and 7 more;"):
        SpeechDataset(many, WHOLE, tokenizer=tokenizer)


def test_unreadable_audio_is_left_out_of_its_batch(tmp_path):
    good = Utterance("good", str(tmp_path / "good.wav"), RATE, RATE)
    soundfile.write(good.audio, speech(1.0), RATE)
    gone = Utterance("gone", str(tmp_path / "gone.wav"), RATE, RATE)
    dataset = SpeechDataset(Manifest.of([gone, good]), WHOLE)
    loaded = dataset[0, np.array([0, 1])]
    assert loaded.batch.ids == ("good",)
    assert len(loaded.problems) == 1
    assert "gone.wav" in loaded.problems[0]
    loaded = dataset[0, np.array([0])]
    assert loaded.batch is None
    assert len(loaded.problems) == 1
    assert loaded.pin_memory() is loaded
