"""Makes features: MFCC, or a layer of a checkpoint's encoder, shard by shard in as many processes as asked for.

Shapes: T samples, F frames, D channels.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from speechssl.batch import Batch
from speechssl.checkpoint import find_checkpoint, load_checkpoint, read_record
from speechssl.config import DataConfig
from speechssl.data.arrays import growing_array
from speechssl.data.audio import AudioError
from speechssl.data.dataset import LoadedBatch, padded_batches
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.recordings import Segment, recording_of, window_batches
from speechssl.data.series import check_readable
from speechssl.data.windows import CONTEXT, SECONDS, Cutting
from speechssl.device import pick_device
from speechssl.nn.encoder import Encoder
from speechssl.units.features import (
    FeaturesError,
    FeaturesRecord,
    claim,
    is_finished,
    manifest_hash,
    shard_path,
    shards_of,
    write_index,
)

MFCC_HOP_MS, MFCC_WINDOW_MS, NUM_CEPS = 10, 25, 13
DELTA_FRAMES = 4  # to either side: what deltas of deltas see

T = TypeVar("T")
Task = tuple[int, Manifest]  # a shard's number, and its utterances
# Ids, and (F, D) or why there is none; a long utterance comes in several parts, one behind the other.
Encode = Callable[[Manifest], Iterator[tuple[str, np.ndarray | str]]]


def mfcc(waveform: Tensor, sample_rate: int) -> Tensor:
    """(T,) -> (F, 39) every 10 ms: 13 coefficients, their deltas and the deltas of these, as HuBERT's first iteration.

    Kaldi's definition, by torchaudio: windows of 25 ms lie wholly inside the waveform, so that frame i begins at
    10 ms * i.
    """
    from torchaudio.compliance.kaldi import mfcc as kaldi_mfcc
    from torchaudio.functional import compute_deltas

    if len(waveform) < sample_rate * MFCC_WINDOW_MS // 1000:
        return torch.empty(0, 3 * NUM_CEPS)
    cepstra = kaldi_mfcc(waveform[None], sample_frequency=sample_rate, num_ceps=NUM_CEPS, use_energy=False).t()
    deltas = compute_deltas(cepstra)
    return torch.cat((cepstra, deltas, compute_deltas(deltas))).t()


def normalize_cepstra(frames: np.ndarray) -> np.ndarray:
    """(F, D) of an utterance -> every coefficient with mean 0 and variance 1 (CMVN); what never changes becomes 0."""
    spread = frames.std(axis=0)
    return (frames - frames.mean(axis=0)) / np.where(spread > 1e-5, spread, np.float32(1))


def extract_mfcc(
    manifest_path: Path,
    folder: Path,
    *,
    hop_ms: int = 20,
    sample_rate: int = 16_000,
    cmvn: bool = False,
    shard_hours: float,
    jobs: int,
) -> None:
    """Writes MFCC of a manifest into a features folder.

    Args:
        hop_ms: 10, or a multiple: then every second, third, ... frame is kept.
        sample_rate: Hz that the audio is resampled to.
        cmvn: gives every coefficient mean 0 and variance 1 over the frames of its utterance (`normalize_cepstra`), so
            that units do not tell microphones and levels apart; HuBERT's first iteration did without.
        shard_hours: hours of audio per shard.
        jobs: processes.

    Raises:
        FeaturesError, ManifestError.
    """
    if hop_ms < 1 or hop_ms % MFCC_HOP_MS:
        raise FeaturesError(f"MFCC come every {MFCC_HOP_MS} ms: --hop-ms must be a multiple of it, not {hop_ms}.")
    if sample_rate % 200:
        raise FeaturesError(f"{MFCC_HOP_MS} and {MFCC_WINDOW_MS} ms are no whole samples at {sample_rate} Hz.")
    manifest = Manifest.read(manifest_path)
    shards = shards_of(manifest, shard_hours)
    record = FeaturesRecord(
        kind="mfcc",
        hop=sample_rate * hop_ms // 1000,
        sample_rate=sample_rate,
        dim=3 * NUM_CEPS,
        num_shards=len(shards),
        manifest=manifest_hash(manifest),
        sees=sample_rate * MFCC_WINDOW_MS // 1000,
        cmvn=cmvn,
    )
    encode = partial(_normalized_mfcc_of if cmvn else _mfcc_of, sample_rate, hop_ms // MFCC_HOP_MS)
    _all_shards(folder, record, shards, encode, jobs, np.float32)


def extract_layer(
    checkpoint_path: Path,
    layer: int,
    manifest_path: Path,
    folder: Path,
    *,
    shard_hours: float,
    jobs: int,
    device: str | None = None,
    seconds_per_batch: float = 60.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    window: float = SECONDS,
    context: float = CONTEXT,
) -> None:
    """Writes a layer of a checkpoint's encoder, in half precision, into a features folder.

    Args:
        layer: 0 = input of the context network's first block, i = output of block i after residual and norm.
        device: "cpu", "cuda", ...; None: a GPU where there is one. Several `jobs` share it.
        seconds_per_batch: largest batch in seconds of audio, padding included, if one window does not pass it.
        precision: of the encoder's products.
        window, context: seconds. What lasts longer than `window` is read in such windows, of which `context` at each
            inner edge is left out: see docs/long.md.

    Raises:
        FeaturesError: no such layer, or not a device; CheckpointError, ManifestError, WindowError.
    """
    manifest = Manifest.read(manifest_path)
    checkpoint_path = find_checkpoint(checkpoint_path)
    where = str(pick_device(device or str(_processes().device)))
    config, encoder = _loaded(checkpoint_path, where)
    if not 0 <= layer <= encoder.num_layers:
        raise FeaturesError(f"{checkpoint_path}: has layers 0 to {encoder.num_layers}, and no layer {layer}.")
    check_readable(manifest, config.sample_rate, encoder.channels)
    shards, sees = shards_of(manifest, shard_hours), encoder.feature_encoder.receptive_field
    cutting = Cutting.of(encoder.hop, sees, config.sample_rate, seconds=window, context=context)
    any_long = any(cutting.is_long(u.length_at(config.sample_rate)) for u in manifest)
    with torch.no_grad():
        one_frame = torch.zeros(1, sees, *([encoder.channels] * (encoder.channels > 1)), device=where)
        dim = encoder(one_frame, num_layers=layer).layers[layer].shape[-1]
    record = FeaturesRecord(
        kind="layer",
        hop=encoder.hop,
        sample_rate=config.sample_rate,
        dim=dim,
        num_shards=len(shards),
        manifest=manifest_hash(manifest),
        checkpoint=str(checkpoint_path),
        weights=read_record(checkpoint_path)["sha256"]["objective.safetensors"],
        layer=layer,
        sees=encoder.feature_encoder.receptive_field,
        precision=precision,
        window=window if any_long else 0.0,
        context=context if any_long else 0.0,
    )
    workers = 0 if jobs > 1 else 1  # readers beside each process
    encode = partial(_layer_of, checkpoint_path, layer, where, cutting, seconds_per_batch, precision, workers)
    _all_shards(folder, record, shards, encode, jobs, np.float16)


def _processes() -> PartialState:
    """All processes of this launch. Those that mpirun starts know of one another only if told that there is no GPU."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _all_shards(
    folder: Path, record: FeaturesRecord, shards: list[Manifest], encode: Encode, jobs: int, kind: type
) -> None:
    """Makes the shards that are not finished; processes under `accelerate launch` share them out."""
    state = _processes()
    with state.main_process_first():
        claim(folder, record)
    mine = range(state.process_index, len(shards), state.num_processes)
    todo = [number for number in mine if not is_finished(folder, number)]
    if not todo:
        print(f"{folder}: made before with these settings, left as it is")
        return
    if len(todo) < len(mine):
        print(f"{folder}: {len(mine) - len(todo)} of {len(mine)} shards are there, the others follow")
    make = partial(_make_shard, folder, record.dim, encode, kind)
    problems: list[str] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("features", total=sum(shards[number].hours for number in todo))
        for number, found in _each(make, [(number, shards[number]) for number in todo], min(jobs, len(todo))):
            problems += found
            progress.advance(task, shards[number].hours)
    if problems:
        shown = "\n".join(f"  {sentence}" for sentence in problems[:10])
        print(f"{len(problems)} utterances have no features; the first of them:\n{shown}")


def _each(make: Callable[[Task], T], tasks: list[Task], jobs: int) -> Iterator[T]:
    """Results in order, from `jobs` processes that share out the cores."""
    if jobs <= 1:
        yield from map(make, tasks)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield from pool.map(make, tasks)


def _make_shard(folder: Path, dim: int, encode: Encode, kind: type, task: Task) -> tuple[int, list[str]]:
    """Writes one shard; returns its number and the sentences about utterances that have no frames."""
    number, manifest = task
    rows: dict[str, tuple[int, int]] = {}  # id -> its first row, and how many
    problems: list[str] = []
    with growing_array(shard_path(folder, number), kind, (dim,)) as append:
        for utterance, frames in encode(manifest):
            if isinstance(frames, str):
                problems.append(frames)
                rows.pop(utterance, None)  # its first parts stay in the file, and nothing points to them
                continue
            frames = frames.astype(kind)
            if not np.isfinite(frames).all():
                raise FeaturesError(f"{utterance}: its features are not finite numbers in {np.dtype(kind)}.")
            first = append(frames)
            before, count = rows.get(utterance, (first, 0))
            rows[utterance] = before, count + len(frames)
    write_index(folder, number, [(utterance, *place) for utterance, place in rows.items()])
    return number, problems


def _mfcc_of(sample_rate: int, every: int, manifest: Manifest) -> Iterator[tuple[str, np.ndarray | str]]:
    hop, sees = sample_rate * MFCC_HOP_MS // 1000, sample_rate * MFCC_WINDOW_MS // 1000
    cutting = Cutting(hop, sees, round(SECONDS * 1000) // MFCC_HOP_MS, DELTA_FRAMES)
    for utterance in manifest:
        recording = Segment(utterance, sample_rate)
        if not cutting.frames(recording.total):
            yield utterance.id, _too_short(utterance)
        try:
            for window in cutting.windows(recording.total):
                frames = mfcc(recording.read(window.start * hop, window.samples), sample_rate)[window.kept()]
                yield utterance.id, frames[-window.first % every :: every].numpy()
        except AudioError as error:
            yield utterance.id, str(error)


def _normalized_mfcc_of(sample_rate: int, every: int, manifest: Manifest) -> Iterator[tuple[str, np.ndarray | str]]:
    """An utterance's parts are held (8 kB a second) until it is whole: it is normalised as one."""
    for utterance in manifest:
        found = [part for _, part in _mfcc_of(sample_rate, every, Manifest.of([utterance]))]
        problem = next((part for part in found if isinstance(part, str)), None)
        yield utterance.id, problem or normalize_cepstra(np.concatenate(found))


def _layer_of(
    checkpoint_path: Path,
    layer: int,
    device: str,
    cutting: Cutting,
    seconds_per_batch: float,
    precision: str,
    workers: int,
    manifest: Manifest,
) -> Iterator[tuple[str, np.ndarray | str]]:
    config, encoder = _loaded(checkpoint_path, device)
    rate = config.sample_rate
    frames = {u.id: cutting.frames(u.length_at(rate)) for u in manifest}

    def encode(batch: Batch) -> np.ndarray:
        batch = batch.to(device)
        with torch.inference_mode(), torch.autocast(batch.waveforms.device.type, torch.bfloat16, precision == "bf16"):
            output = encoder(batch.waveforms, batch.lengths_or_none, num_layers=layer)
        return output.layers[layer].float().cpu().numpy()

    for utterance in manifest:
        if not frames[utterance.id]:
            yield utterance.id, _too_short(utterance)
    short = manifest.filter(lambda u: 0 < frames[u.id] <= cutting.size)
    config = replace(config, workers=workers)
    read: Iterable[LoadedBatch] = ()
    if short:
        read = padded_batches(short, config, seconds_per_batch=seconds_per_batch, channels=encoder.channels)
    for loaded in read:
        for sentence in loaded.problems:
            yield "", sentence
        if loaded.batch is None:
            continue
        for utterance_id, row in zip(loaded.batch.ids, encode(loaded.batch), strict=True):
            yield utterance_id, row[: frames[utterance_id]]
    for utterance in manifest.filter(lambda u: frames[u.id] > cutting.size):
        try:
            recording = recording_of(utterance, rate)
            batches = window_batches(
                recording, cutting, normalize=config.normalize, seconds_per_batch=seconds_per_batch
            )
            for batch, windows in batches:
                for window, row in zip(windows, encode(batch), strict=True):
                    yield utterance.id, row[window.kept()]
        except AudioError as error:
            yield utterance.id, str(error)


@lru_cache(maxsize=1)
def _loaded(checkpoint_path: Path, device: str) -> tuple[DataConfig, Encoder]:
    """Once per process."""
    checkpoint = load_checkpoint(checkpoint_path)
    return checkpoint.config.data, checkpoint.objective.encoder.to(device)


def _too_short(utterance: Utterance) -> str:
    return f"{utterance.id}: too short for one frame ({utterance.seconds:.3f} s)."
