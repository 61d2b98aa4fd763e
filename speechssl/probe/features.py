"""Features of whole manifests, computed once and kept: every layer's mean and deviation over time, or single frames.

Shapes: B utterances, T samples, F frames, D channels, N utterances of a manifest.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.config import DataConfig
from speechssl.data.audio import AudioError
from speechssl.data.dataset import LoadedBatch, padded_batches
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.recordings import recording_of, window_batches
from speechssl.data.series import check_readable
from speechssl.data.windows import CONTEXT, SECONDS, Cutting, Window
from speechssl.errors import UserError
from speechssl.nn.encoder import Encoder
from speechssl.nn.pooling import EPSILON, statistics_pool

LOG_MEL, CHANNELS = "log-mel", "channels"  # what is known without an encoder
LOWEST_RATE = 4000  # Hz; of sound, of which log-mel says something
FORMAT = "1"  # of the cached files; another one where features are computed in another way


class FeatureError(UserError):
    """Features that cannot be computed. The message names the manifest or the device and what to do."""


@dataclass(frozen=True)
class Source:
    """What turns a batch into vectors.

    Attributes:
        key: equal for what gives equal vectors; the name of the cached file.
        hears: sample rate and normalisation.
        least: samples of the shortest utterance that it can take, at the rate that it hears.
        device: where `pool` wants its batch.
        pool: Batch -> named vectors, (B, D) each.
        channels: that it reads.
    """

    key: str
    hears: DataConfig
    least: int
    device: torch.device
    pool: Callable[[Batch], Mapping[str, Tensor]]
    channels: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class FrameSource(Source):
    """What says something of every frame; `pool` gives mean and deviation over them.

    Attributes:
        hop: samples from one frame to the next; frame i sees `least` samples from i * hop on.
        frames: Batch -> named frames, (B, F, D) each, and their lengths (B,) or None.
    """

    hop: int
    frames: Callable[[Batch], tuple[Mapping[str, Tensor], Tensor | None]]

    @property
    def cutting(self) -> Cutting:
        """How utterances are cut that are too long to be heard whole."""
        return Cutting.of(self.hop, self.least, self.hears.sample_rate, seconds=SECONDS, context=CONTEXT)

    def middles(self, count: int) -> np.ndarray:
        """(count,) seconds: the middle of what each frame sees."""
        return (np.arange(count) * self.hop + self.least / 2) / self.hears.sample_rate


@dataclass(frozen=True)
class Features:
    """Vectors (N, D) by layer, of the utterances `ids`, in the manifest's order; `problems`: why others are absent.

    Of single frames `ids` are the names of the moments.
    """

    ids: tuple[str, ...]
    layers: dict[str, np.ndarray]
    problems: tuple[str, ...] = ()

    def of(self, ids) -> Features:
        """These utterances only, in this order."""
        place = {name: i for i, name in enumerate(self.ids)}
        rows = [place[name] for name in ids]
        return Features(tuple(ids), {k: v[rows] for k, v in self.layers.items()}, self.problems)


def encoder_source(encoder: Encoder, hears: DataConfig, device: torch.device) -> FrameSource:
    """Layers "0" (what enters the context network), "1", ... of an encoder, and "latents" (the feature encoder's)."""
    encoder = encoder.eval().to(device)

    def frames(batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        output = encoder(batch.waveforms, batch.lengths_or_none)
        named = {"latents": output.latents} | {str(i): layer for i, layer in enumerate(output.layers)}
        return named, output.lengths

    key = fingerprint(encoder, repr(encoder.config), hears.sample_rate, hears.normalize, "statistics")
    sees, channels = encoder.feature_encoder.receptive_field, encoder.channels
    return FrameSource(key, hears, sees, device, _statistics(frames), encoder.hop, frames, channels=channels)


def log_mel_source(hears: DataConfig, device: torch.device, num_bins: int = 80) -> FrameSource:
    """Log-mel (25 ms windows every 10 ms), with the level and colour that a front end removes."""
    from torchaudio.transforms import MelSpectrogram

    hears = replace(hears, normalize=False)
    window, hop = hears.sample_rate // 40, hears.sample_rate // 100
    mel = MelSpectrogram(
        hears.sample_rate, n_fft=window, win_length=window, hop_length=hop, n_mels=num_bins, center=False
    ).to(device)

    def frames(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        log_mel = (mel(batch.waveforms) + 1e-6).log().transpose(1, 2)  # (B, F, D)
        return {LOG_MEL: log_mel}, (batch.lengths - window) // hop + 1

    key = fingerprint(None, "log-mel", num_bins, hears.sample_rate)
    return FrameSource(key, hears, window, device, _statistics(frames), hop, frames)


def _statistics(frames: Callable[[Batch], tuple[Mapping[str, Tensor], Tensor | None]]):
    def pool(batch: Batch) -> dict[str, Tensor]:
        named, lengths = frames(batch)
        return {name: statistics_pool(layer, lengths) for name, layer in named.items()}

    return pool


def channel_source(hears: DataConfig, channels: int, device: torch.device) -> FrameSource:
    """The raw samples of each channel: what is known of a series without an encoder."""

    def frames(batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        return {CHANNELS: batch.waveforms.view(*batch.waveforms.shape[:2], -1)}, batch.lengths

    hears = replace(hears, normalize=False)
    key = fingerprint(None, CHANNELS, hears.sample_rate)
    return FrameSource(key, hears, 1, device, _statistics(frames), 1, frames, channels=channels)


def baseline_source(hears: DataConfig, channels: int, device: torch.device) -> tuple[str, FrameSource]:
    """What an encoder is compared with, and its name, which is that of its one layer as well: log-mel, or the channels
    where there are several, or a rate too low for anything to be heard."""
    if channels > 1 or hears.sample_rate < LOWEST_RATE:
        return CHANNELS, channel_source(hears, channels, device)
    return LOG_MEL, log_mel_source(hears, device)


def fingerprint(module: nn.Module | None, *facts) -> str:
    """A hash of weights and of everything else that decides what comes out."""
    digest = hashlib.sha256(repr((FORMAT, *facts)).encode())
    for name, tensor in sorted((module.state_dict() if module is not None else {}).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


Moments = Mapping[str, Mapping[str, float]]  # utterance -> name of a moment -> seconds from its beginning


def extract(
    source: Source,
    manifest: Manifest,
    cache: Path,
    *,
    title: str,
    seconds_per_batch: float,
    moments: Moments | None = None,
) -> Features:
    """The features of every utterance that can be read, from `cache` if they lie there.

    moments: take the frame nearest to each instead of the whole utterance; `source` is a FrameSource then.
    Raises FeatureError: not one could be read; ManifestError: of another number of channels than the source reads.
    """
    check_readable(manifest, source.hears.sample_rate, source.channels)
    listed = "\n".join(f"{u.id}\t{u.audio}\t{u.start}\t{u.num_samples}\t{u.byte_range}" for u in manifest)
    if moments is not None:
        listed += repr({name: dict(times) for name, times in moments.items()})
    if any(_is_long(source, u) for u in manifest):
        listed += f"\n{SECONDS} {CONTEXT}"
    path = cache / f"{source.key}-{hashlib.sha256(listed.encode()).hexdigest()[:20]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            layers = {name.removeprefix("layer/"): file[name] for name in file.files if name.startswith("layer/")}
            return Features(tuple(file["ids"].tolist()), layers, tuple(file["problems"].tolist()))
    features = _compute(source, manifest, title, seconds_per_batch, moments)
    buffer = io.BytesIO()
    arrays = {"ids": np.array(features.ids), "problems": np.array(features.problems, dtype=str)}
    np.savez(buffer, **arrays, **{f"layer/{k}": v for k, v in features.layers.items()})  # type: ignore[arg-type]
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
    return features


def batches(
    source: Source, manifest: Manifest, problems: list[str], *, title: str, seconds_per_batch: float
) -> Iterator[Batch]:
    """Batches, on the source's device, of the utterances that it can take; adds to `problems` why others are absent."""
    short = {u.id for u in manifest if u.length_at(source.hears.sample_rate) < source.least}
    problems += [f"{u.id}: too short for one frame ({u.seconds:.3f} s)." for u in manifest if u.id in short]
    long_enough = manifest.filter(lambda u: u.id not in short)
    read: Iterable[LoadedBatch] = ()
    if long_enough:
        read = padded_batches(long_enough, source.hears, seconds_per_batch=seconds_per_batch, channels=source.channels)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=len(manifest), completed=len(short))
        for loaded in read:
            problems += loaded.problems
            if loaded.batch is not None:
                yield loaded.batch.to(source.device)
            progress.advance(task, len(loaded.problems) + (0 if loaded.batch is None else len(loaded.batch.ids)))


@torch.inference_mode()
def _compute(
    source: Source, manifest: Manifest, title: str, seconds_per_batch: float, moments: Moments | None
) -> Features:
    problems: list[str] = []
    rows: dict[str, dict[str, np.ndarray]] = {}  # id, or name of a moment -> layer -> (D,)
    whole, long = manifest.filter(lambda u: not _is_long(source, u)), manifest.filter(lambda u: _is_long(source, u))
    for batch in batches(source, whole, problems, title=title, seconds_per_batch=seconds_per_batch):
        if moments is None:
            vectors = {layer: of_layer.float().cpu().numpy() for layer, of_layer in source.pool(batch).items()}
            for row, name in enumerate(batch.ids):
                rows[name] = {layer: of_layer[row] for layer, of_layer in vectors.items()}
        else:
            assert isinstance(source, FrameSource)
            for name, layers in frames_of(source, batch):
                nearest = _nearest(source, moments.get(name, {}), len(next(iter(layers.values()))))
                for moment, frame in nearest.items():
                    rows[moment] = {layer: of_layer[frame].copy() for layer, of_layer in layers.items()}
    for utterance in track(long, f"{title}: long ones", console=Console(stderr=True)) if long else ():
        assert isinstance(source, FrameSource)
        try:
            if moments is None:
                rows[utterance.id] = _statistics_in_windows(source, utterance, seconds_per_batch)
            else:
                rows |= _moments_in_windows(source, utterance, moments.get(utterance.id, {}), seconds_per_batch)
        except AudioError as error:
            problems.append(str(error))
    if not rows:
        reason = problems[0] if problems else "none of them has a label"
        raise FeatureError(f"not one of {len(manifest)} utterances could be used: {reason}")
    wanted = [u.id for u in manifest] if moments is None else [m for u in manifest for m in moments.get(u.id, {})]
    ids = tuple(name for name in wanted if name in rows)
    layers = {layer: np.stack([rows[name][layer] for name in ids]) for layer in next(iter(rows.values()))}
    return Features(ids, layers, tuple(problems))


def frames_of(source: FrameSource, batch: Batch) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each utterance's id and its frames (F, D) by layer, without padding."""
    named, lengths = source.frames(batch)
    on_host = {layer: of_layer.float().cpu().numpy() for layer, of_layer in named.items()}
    size = next(iter(on_host.values())).shape[1]
    counts = [size] * len(batch.ids) if lengths is None else lengths.tolist()
    for row, (name, count) in enumerate(zip(batch.ids, counts, strict=True)):
        yield name, {layer: of_layer[row, :count] for layer, of_layer in on_host.items()}


def _nearest(source: FrameSource, times: Mapping[str, float], count: int) -> dict[str, int]:
    """The frame of `count` whose middle is nearest to each moment."""
    middles = source.middles(count)
    return {moment: int(np.abs(middles - seconds).argmin()) for moment, seconds in times.items()}


# ------------------------------------------------------------------------------------------------------ long utterances


def _is_long(source: Source, utterance: Utterance) -> bool:
    length = utterance.length_at(source.hears.sample_rate)
    return isinstance(source, FrameSource) and source.cutting.is_long(length)


def _in_windows(
    source: FrameSource, utterance: Utterance, seconds_per_batch: float
) -> Iterator[tuple[Window, dict[str, Tensor]]]:
    """Each window of a long utterance with the frames (F, D) by layer that are kept of it. Raises AudioError."""
    hears = source.hears
    recording = recording_of(utterance, hears.sample_rate)
    for batch, windows in window_batches(
        recording, source.cutting, normalize=hears.normalize, seconds_per_batch=seconds_per_batch
    ):
        named, _ = source.frames(batch.to(source.device))
        for row, window in enumerate(windows):
            yield window, {layer: of_layer[row, window.kept()].float() for layer, of_layer in named.items()}


def _statistics_in_windows(
    source: FrameSource, utterance: Utterance, seconds_per_batch: float
) -> dict[str, np.ndarray]:
    """What `pool` gives (2 D,), by sums over the windows."""
    sums: dict[str, Tensor] = {}  # (2, D): of the frames, and of their squares
    count = 0
    for window, layers in _in_windows(source, utterance, seconds_per_batch):
        kept = window.stop - window.first
        count += kept
        for layer, frames in layers.items():
            variance, mean = (x.cpu().double() for x in torch.var_mean(frames, 0, correction=0))
            sums[layer] = sums.get(layer, 0.0) + kept * torch.stack((mean, variance + mean.square()))
    vectors = {}
    for layer, total in sums.items():
        mean, square = total / count
        vectors[layer] = torch.cat((mean, (square - mean.square()).clamp(min=EPSILON).sqrt())).float().numpy()
    return vectors


def _moments_in_windows(
    source: FrameSource, utterance: Utterance, times: Mapping[str, float], seconds_per_batch: float
) -> dict[str, dict[str, np.ndarray]]:
    """The frame (D,) by layer nearest to each moment."""
    nearest = _nearest(source, times, source.cutting.frames(utterance.length_at(source.hears.sample_rate)))
    found: dict[str, dict[str, np.ndarray]] = {}
    for window, layers in _in_windows(source, utterance, seconds_per_batch) if nearest else ():
        for moment, frame in nearest.items():
            if window.first <= frame < window.stop:
                found[moment] = {k: frames[frame - window.first].cpu().numpy() for k, frames in layers.items()}
    return found
