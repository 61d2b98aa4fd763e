"""K-means on features, in mini-batches read in pieces; scikit-learn's. Shapes: N frames, D channels, K clusters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from speechssl.errors import UserError
from speechssl.units.features import Features

FORMAT = "speechssl-kmeans-1"
INIT_FRAMES = 40_000  # that the k-means++ starts are drawn from and compared on


class KMeansError(UserError):
    """Clusters that cannot be made or used. The message names the file and what to do."""


@dataclass(frozen=True, kw_only=True)
class KMeansConfig:
    """HuBERT's numbers (Hsu et al. 2021, section IV-B, and its implementation)."""

    num_units: int = 500
    hours: float = 100.0  # of speech that the clusters are made from, whole utterances drawn at random
    batch_frames: int = 10_000
    starts: int = 20  # k-means++ initialisations, of which the best is taken
    epochs: int = 100  # most passes over these hours
    tolerance: float = 1e-3  # ends when a pass lowers the mean distance by a smaller share
    seed: int = 1


@dataclass(frozen=True)
class KMeans:
    """
    centroids: (K, D) float32.
    source: what the features were (kind, layer, hop, ...), as plain data.
    made_with: KMeansConfig, hashes of the manifests, and the mean squared distance, as plain data.
    """

    centroids: Tensor
    source: dict
    made_with: dict

    def assign(self, frames: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) int64, the nearest centroid by Euclidean distance."""
        points = torch.from_numpy(frames)
        # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), and |x|^2 is the same for all c
        closeness = points @ self.centroids.t() - self.centroids.square().sum(1) / 2
        return closeness.argmax(1).numpy()


def fit(folders: Sequence[Path], config: KMeansConfig) -> KMeans:
    """Clusters of the frames of one or several features folders.

    Only a mini-batch of frames is in memory at a time, besides the INIT_FRAMES for the start.

    Raises:
        KMeansError: fewer frames than clusters, features of different kinds, or scikit-learn is missing.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise KMeansError("scikit-learn is missing; install it with `pip install 'speechssl[units]'`.") from None
    sets = open_features(folders)
    generator = np.random.default_rng(config.seed)
    subset = _subset(sets, config.hours, generator)
    total = sum(sets[s].index[i][3] for s, i in subset)
    if total < config.num_units:
        raise KMeansError(f"{folders[0]}: {total} frames cannot make {config.num_units} clusters; give more speech.")
    model = MiniBatchKMeans(
        n_clusters=config.num_units,
        init=_start(sets, subset, config, generator),
        n_init=1,
        batch_size=config.batch_frames,
        reassignment_ratio=0.0,
        random_state=config.seed,
    )
    distance = np.inf
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("k-means", total=config.epochs)
        for epoch in range(config.epochs):
            inertia = 0.0
            for frames in _batches(sets, subset, config.batch_frames, generator):
                inertia += model.partial_fit(frames).inertia_
            last, distance = distance, inertia / total
            progress.update(task, advance=1, description=f"k-means, mean squared distance {distance:.4g}")
            if epoch and distance > last * (1 - config.tolerance):
                break
    made_with = asdict(config) | {
        "manifests": [features.record.manifest for features in sets],
        "frames": total,
        "passes": epoch + 1,
        "mean_squared_distance": distance,
    }
    centroids = torch.from_numpy(model.cluster_centers_.astype(np.float32))
    return KMeans(centroids, sets[0].record.source(), made_with)


def fit_to_file(folders: Sequence[Path], path: Path, config: KMeansConfig) -> KMeans:
    """Clusters in a file; what was made before with the same settings is left as it is.

    Raises KMeansError: the file holds something else.
    """
    if path.exists():
        old = read_kmeans(path)
        sets = open_features(folders)
        wanted = asdict(config) | {"manifests": [features.record.manifest for features in sets]}
        changed = [name for name, value in wanted.items() if old.made_with.get(name) != value]
        if changed or old.source != sets[0].record.source():
            what = changed[0] if changed else "the kind of features"
            raise KMeansError(f"{path}: holds clusters made otherwise ({what} differs); choose another file.")
        print(f"{path}: made before with these settings, left as it is")
        return old
    result = fit(folders, config)
    metadata = {"format": FORMAT, "source": json.dumps(result.source), "made_with": json.dumps(result.made_with)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({"centroids": result.centroids.numpy()}, temporary, metadata)
    temporary.replace(path)
    return result


def read_kmeans(path: str | Path) -> KMeans:
    """Raises KMeansError."""
    if not Path(path).is_file():
        raise KMeansError(f"{path}: no such file; make it with `speechssl kmeans`.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise KMeansError(f"{path}: was not made by `speechssl kmeans`; choose another file.")
            centroids = file.get_tensor("centroids").float()
        return KMeans(centroids, json.loads(metadata["source"]), json.loads(metadata["made_with"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, KMeansError):
            raise
        raise KMeansError(f"{path}: cannot be read: {error}; make the clusters again.") from None


def open_features(folders: Sequence[Path]) -> list[Features]:
    """Folders of one kind of features. Raises FeaturesError, KMeansError."""
    sets = [Features(folder) for folder in folders]
    first = sets[0].record.source()
    for features in sets[1:]:
        own = features.record.source()
        different = [name for name in first if own.get(name) != first[name]]
        if different or own.keys() != first.keys():
            raise KMeansError(
                f"{features.folder}: its features are not of the kind of {sets[0].folder} "
                f"({(different or ['kind'])[0]} differs); make both with the same settings."
            )
    ids = Counter(utterance for features in sets for utterance, *_ in features.index)
    utterance, count = ids.most_common(1)[0] if ids else ("", 0)
    if count > 1:
        raise KMeansError(
            f"utterance '{utterance}' is in {count} of the folders; give the features of every manifest once, "
            "and manifests without common ids."
        )
    return sets


Places = list[tuple[int, int]]  # which features folder, which utterance of it


def _subset(sets: list[Features], hours: float, generator: np.random.Generator) -> Places:
    """Utterances drawn without replacement until they last `hours`."""
    places = [(s, i) for s, features in enumerate(sets) for i in range(len(features))]
    limit = hours * 3600 * sets[0].record.sample_rate / sets[0].record.hop
    chosen: Places = []
    frames = 0
    for number in generator.permutation(len(places)):
        if frames >= limit:
            break
        chosen.append(places[number])
        frames += sets[places[number][0]].index[places[number][1]][3]
    return chosen


def _batches(sets: list[Features], subset: Places, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """All frames once, in mini-batches (size, D) of whole utterances in a new order; the last one may be smaller."""
    pieces: list[np.ndarray] = []
    held = 0
    for number in generator.permutation(len(subset)):
        s, i = subset[number]
        pieces.append(sets[s].read(i))
        held += len(pieces[-1])
        while held >= size:
            joined = np.concatenate(pieces)
            yield joined[:size]
            pieces, held = [joined[size:]], held - size
    if held:
        yield np.concatenate(pieces)


def _start(sets: list[Features], subset: Places, config: KMeansConfig, generator: np.random.Generator) -> np.ndarray:
    """(K, D): the best of several k-means++ starts, by the mean distance of INIT_FRAMES frames."""
    from sklearn.cluster import kmeans_plusplus

    size = max(INIT_FRAMES, 3 * config.num_units)
    frames = next(_batches(sets, subset, size, generator))
    best, least = None, np.inf
    for _ in range(config.starts):
        centroids, _ = kmeans_plusplus(frames, config.num_units, random_state=int(generator.integers(2**31)))
        points, centres = torch.from_numpy(frames), torch.from_numpy(centroids)
        closeness = points @ centres.t() - centres.square().sum(1) / 2
        distance = float((points.square().sum(1) - 2 * closeness.amax(1)).mean())
        if distance < least:
            best, least = centroids, distance
    assert best is not None
    return best
