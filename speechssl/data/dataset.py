"""Utterances -> `Batch`: reads, crops or pads, normalises, encodes transcripts."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechssl.batch import Batch
from speechssl.config import DataConfig
from speechssl.data.audio import AudioError, normalize
from speechssl.data.batching import crop_start, plan_epoch
from speechssl.data.labels import classes, label_of
from speechssl.data.manifest import Manifest, ManifestError
from speechssl.data.scan import cores
from speechssl.data.series import check_readable, is_series, normalize_series, read_samples
from speechssl.data.tokens import Tokenizer
from speechssl.data.units import Units, UnitsError


@dataclass(frozen=True)
class LoadedBatch:
    """A batch, and of utterances that could not be read a sentence and the id. `batch` is None when none could."""

    batch: Batch | None
    problems: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class SpeechDataset(Dataset):
    """`dataset[epoch, indices]` is a whole micro-batch, so that it is one DataLoader item.

    Utterances outside min_seconds .. max_seconds are left out when it is made (`left_out` counts them; longer ones
    stay if batches are cropped).

    Args:
        manifest: what to read.
        config: rate, lengths, cropping, normalisation.
        seed: of the crops.
        tokenizer: to read labels with; None: none are read.
        speakers: their names (or those of what `config.label` says) in the order of their numbers; none: those of this
            manifest, sorted.
        units: what to read units from; None: none are read.
        channels: that the encoder reads.

    Raises:
        ManifestError: nothing is left, the encoder reads another number of channels, a series has another rate, a
            transcript is missing or has letters outside the vocabulary, or a speaker is not among `speakers`.
        UnitsError: the units are of another sample rate.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: DataConfig,
        *,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        speakers: Sequence[str] = (),
        units: Units | None = None,
        channels: int = 1,
    ):
        rate = config.sample_rate
        if units is not None and units.record.sample_rate != rate:
            raise UnitsError(
                f"{units.folder}: made at {units.record.sample_rate} Hz, and data.sample_rate is {rate}; "
                "make the units at the rate that the encoder hears."
            )
        check_readable(manifest, rate, channels)
        self.units = units
        shortest, longest = round(config.min_seconds * rate), round(config.max_seconds * rate)
        kept = [u for u in manifest if u.length_at(rate) >= shortest and (config.crop or u.length_at(rate) <= longest)]
        if not kept:
            raise ManifestError(
                f"none of {len(manifest)} utterances lasts {config.min_seconds:g} to {config.max_seconds:g} s; "
                "change data.min_seconds or data.max_seconds, or use another manifest."
            )
        self.config, self.seed = config, seed
        self.utterances = kept
        self.left_out = len(manifest) - len(kept)
        full = np.array([u.length_at(rate) for u in kept])
        self.lengths = np.minimum(full, longest)  # what may be used of each
        names = {speaker: i for i, speaker in enumerate(speakers or classes(manifest, config.label))}
        named = [name for u in kept if (name := label_of(u, config.label)) is not None]
        if strange := sorted(set(named) - names.keys()):
            more = f" (and {len(strange) - 1} more)" if strange[1:] else ""
            raise ManifestError(
                f"{config.label} {strange[0]}{more} is not among the {len(names)} that the model tells apart; "
                "remove these utterances, or train on a manifest with them."
            )
        self.speakers = [names[name] for name in named] if len(named) == len(kept) else None
        self.tokens = None if tokenizer is None else self._encode(tokenizer)

    def _encode(self, tokenizer: Tokenizer) -> list[list[int]]:
        rows, problems = [], []
        for utterance in self.utterances:
            if utterance.text is None:
                problems.append(f"{utterance.id} has no transcript")
            elif unknown := tokenizer.unknown(utterance.text):
                problems.append(f"{utterance.id} has letters outside the vocabulary: {' '.join(sorted(unknown))}")
            else:
                rows.append(tokenizer.encode(utterance.text))
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ManifestError(
                f"{'; '.join(problems[:3])}{more}; correct or remove these lines of the manifest, "
                "or make the vocabulary from text that holds these letters."
            )
        return rows

    def leave_out(self, indices: list[int]) -> None:
        """Removes utterances by index; their new numbers follow the old order."""
        gone = set(indices)
        keep = [i for i in range(len(self)) if i not in gone]
        if not keep:
            raise ManifestError(f"none of {len(gone)} utterances can be used.")
        self.utterances = [self.utterances[i] for i in keep]
        self.lengths = self.lengths[keep]
        self.speakers = None if self.speakers is None else [self.speakers[i] for i in keep]
        self.tokens = None if self.tokens is None else [self.tokens[i] for i in keep]
        self.left_out += len(gone)

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def budget(self) -> int:
        """Largest micro-batch in samples."""
        return round(self.config.seconds_per_batch * self.config.sample_rate)

    def __getitem__(self, request: tuple[int, np.ndarray]) -> LoadedBatch:
        epoch, indices = request
        size = int(self.lengths[indices].min()) if self.config.crop else None
        waveforms, kept, problems = [], [], {}
        for index in indices.tolist():
            try:
                waveforms.append(self._read(index, epoch, size))
                kept.append(index)
            except AudioError as error:
                problems[self.utterances[index].id] = str(error)
        batch = self._collate(waveforms, kept, self._units(kept, epoch, size)) if kept else None
        return LoadedBatch(batch, tuple(problems.values()), tuple(problems))

    def instead_of(self, epoch: int, indices: np.ndarray) -> LoadedBatch:
        """The next utterance that can be read, alone: a function of the data, so that a resume sees the same.

        `batch` is None when none of the next hundred can.
        """
        following = (int(indices[-1]) + np.arange(1, 101)) % len(self)
        found = (self[epoch, following[i : i + 1]] for i in range(len(following)))
        return next((loaded for loaded in found if loaded.batch is not None), LoadedBatch(None))

    def _place(self, index: int, epoch: int, size: int | None) -> tuple[int, int]:
        """First sample of an utterance's crop, and how many; with units, a crop begins where a unit does."""
        utterance, step = self.utterances[index], 1 if self.units is None else self.units.record.hop
        count = int(self.lengths[index]) if size is None else size
        spare = utterance.length_at(self.config.sample_rate) - count
        return crop_start(self.seed, epoch, utterance.id, spare // step) * step if spare > 0 else 0, count

    def _units(self, indices: list[int], epoch: int, size: int | None) -> Tensor | None:
        """(B, U) of the same crops; -1 behind an utterance's end, and where there are none."""
        if self.units is None:
            return None
        hop, rows = self.units.record.hop, []
        for index in indices:
            first, count = self._place(index, epoch, size)
            units = self.units.read(self.utterances[index].id, first // hop, -(-count // hop))
            rows.append(torch.from_numpy(units))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)

    def _read(self, index: int, epoch: int, size: int | None) -> Tensor:
        utterance, rate = self.utterances[index], self.config.sample_rate
        first, count = self._place(index, epoch, size)
        samples = read_samples(utterance, rate, first=first, count=count)
        if not self.config.normalize:
            return samples
        return normalize_series(samples) if is_series(utterance.audio) else normalize(samples)

    def _collate(self, waveforms: list[Tensor], indices: list[int], units: Tensor | None) -> Batch:
        lengths = torch.tensor([len(w) for w in waveforms])
        tokens = None if self.tokens is None else [torch.tensor(self.tokens[i], dtype=torch.long) for i in indices]
        return Batch(
            ids=tuple(self.utterances[i].id for i in indices),
            waveforms=torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            lengths=lengths,
            padded=bool((lengths != lengths[0]).any()),
            units=units,
            tokens=None if tokens is None else torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            token_lengths=None if tokens is None else torch.tensor([len(t) for t in tokens]),
            speakers=None if self.speakers is None else torch.tensor([self.speakers[i] for i in indices]),
        )


def load(
    dataset: SpeechDataset, requests: Iterable, *, workers: int | None, pin_memory: bool = False, timeout: float = 0.0
) -> Iterator[LoadedBatch]:
    """Reads requests (epoch, indices) in order, ahead of time in as many processes as `reader_processes(workers)`.

    With a timeout, in seconds, RuntimeError is raised when the processes take longer for a batch.
    """
    workers = reader_processes(workers)
    if workers:
        _end_readers_at_exit()
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            worker_init_fn=_leave_signals_to_the_trainer,
        )
    )


def reader_processes(asked: int | None = None) -> int:
    """How many processes should read ahead for this one: `asked`, or all its cores but one beside a GPU, up to 4.

    One keeps up with an H100 on paper (docs/scaling.md); resampling and slow disks want more. On a CPU one, and none
    where the one or two cores of this process all compute: a reader takes a core from a thread that the others then
    wait for (docs/performance.md).
    """
    if asked is not None:
        return asked
    mine = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if torch.cuda.is_available():
        return min(4, max(1, mine - 1))
    return int(mine > 2 or torch.get_num_threads() < mine)


def _leave_signals_to_the_trainer(worker: int) -> None:
    # A scheduler signals every process of a job; a reader that died of it would take the trainer's save along.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@cache
def _end_readers_at_exit() -> None:
    # Python would end them by the signal that they ignore, and wait for ever.
    def end() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


def padded_batches(
    manifest: Manifest,
    config: DataConfig,
    *,
    seconds_per_batch: float,
    tokenizer: Tokenizer | None = None,
    channels: int = 1,
) -> Iterator[LoadedBatch]:
    """Whole utterances, each once, in batches of similar length: for decoding and measuring. Nothing is left out."""
    longest = max(u.length_at(config.sample_rate) for u in manifest) / config.sample_rate
    config = replace(
        config,
        crop=False,
        min_seconds=1e-4,
        max_seconds=longest + 1,
        seconds_per_batch=max(seconds_per_batch, longest + 1),
    )
    dataset = SpeechDataset(manifest, config, tokenizer=tokenizer, channels=channels)
    requests = [(0, indices) for indices in plan_epoch(dataset.lengths, dataset.budget, seed=0, epoch=0, crop=False)]
    return load(dataset, requests, workers=config.workers)
